"""Training on one CPU device and on several: `python -m benchmarks.devices` writes results/devices.

Seconds of an epoch of 60,000 images of 28×28, and of an evaluation of 10,000, each measured in a
process of its own, on a machine that does nothing else; and whether evaluation comes to its end,
twenty times over, alone and while another process trains on the same cores.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "results" / "devices"
NETWORKS = ("cnet", "resnet20")
DEVICES = (1, 2)
BATCH, TRAIN_IMAGES, TEST_IMAGES = 128, 60_000, 10_000
TRAIN_STEPS, WARM_UP = 50, 5
EVALUATIONS = 20
BESIDE = ("nothing", "a training of CNET on both cores")


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--one", nargs=2, metavar=("WHAT", "NETWORK"), help="in this process")
    options = parser.parse_args()
    if options.one:
        what, network = options.one
        {"time": _time, "stress": _stress, "load": _load}[what](network)
        return 0
    from tcl_jax import provenance

    RESULTS.mkdir(parents=True, exist_ok=True)
    timed: dict[str, Any] = {}
    ended: dict[str, Any] = {}
    for network in NETWORKS:
        for devices in DEVICES:
            print(f"{network}: timing on {devices} devices", flush=True)
            done = _child("time", network, devices)
            timed[f"{network}/{devices}"] = json.loads(done.communicate()[0])
    for network in NETWORKS:
        for beside in BESIDE:
            print(f"{network}: {EVALUATIONS} evaluations beside {beside}", flush=True)
            ended[f"{network}/{beside}"] = _evaluations(network, loaded=beside != BESIDE[0])
    record = {**provenance.describe(), "seed": 0, "seconds": timed, "evaluations": ended}
    (RESULTS / "devices.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    _write(record)
    return 0


def _child(what: str, network: str, devices: int) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "benchmarks.devices", "--one", what, network],
        cwd=ROOT,
        env={**os.environ, "JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": str(devices)},
        stdout=subprocess.PIPE,
        text=True,
    )


def _evaluations(network: str, *, loaded: bool) -> dict[str, Any]:
    """How many came to their end on two devices, and the steps that the load took meanwhile."""
    load = _child("load", "cnet", 2) if loaded else None
    if load and load.stdout:
        load.stdout.readline()  # it has begun
    done = _child("stress", network, 2)
    lines = done.communicate()[0].splitlines()
    found = {"ended": len(lines), "status": done.returncode}
    if load:
        assert load.poll() is None, "the other training died"
        load.terminate()
        found["other_steps"] = len(load.communicate()[0].splitlines())
    return found


class _Work:
    """A network on all devices, and random images."""

    def __init__(self, network: str):
        import numpy as np

        from tcl_jax import cluster, data, models
        from tcl_jax.training import config, evaluation, optimizer, step

        shape = (28, 28, 1)
        rng = np.random.default_rng(0)
        info = data.DataInfo("random", shape, 10, TRAIN_IMAGES, TEST_IMAGES, (0.3,), (0.35,))
        self.devices = cluster.everywhere()
        images = rng.integers(0, 256, (TEST_IMAGES, *shape), np.uint8)
        self.test = data.ArraySource(images, rng.integers(0, 10, TEST_IMAGES).astype(np.int32))
        model = models.create(network, image_shape=shape, num_classes=10)
        tx = optimizer.make(config.OptimConfig(), total_steps=10_000, batch_size=BATCH)
        self.state = self.devices.replicate(step.init_state(model, tx, info, 0))
        self.eval_step = evaluation.make_eval_step(model, info)
        self._train_step = step.make_train_step(model, tx, info)

    def train(self) -> Iterator[None]:
        """One step after the other, each read one step late, as training does."""
        import numpy as np

        from tcl_jax.training import step

        before = None
        for number in count():
            rows = np.arange(BATCH) + number * BATCH
            image, label = self.test.gather(rows % TEST_IMAGES)
            batch = self.devices.put({"image": image, "label": label})
            self.state, metrics = self._train_step(self.state, batch)
            if before is not None:
                step.read_metrics(before)
            before = metrics
            yield

    def evaluate(self) -> dict[str, float]:
        from tcl_jax.training.evaluation import evaluate

        return evaluate(self.state.network, self.eval_step, self.test, BATCH, self.devices)


def _time(network: str) -> None:
    work = _Work(network)
    steps = work.train()
    seconds = []
    for number in range(WARM_UP + TRAIN_STEPS):
        started = time.perf_counter()
        next(steps)
        if number >= WARM_UP:
            seconds.append(time.perf_counter() - started)
    work.evaluate()
    evaluations = []
    for _ in range(3):
        started = time.perf_counter()
        work.evaluate()
        evaluations.append(time.perf_counter() - started)
    epoch = statistics.median(seconds) * (TRAIN_IMAGES // BATCH)
    print(json.dumps({"epoch": epoch, "evaluation": statistics.median(evaluations)}))


def _stress(network: str) -> None:
    work = _Work(network)
    for _ in range(EVALUATIONS):
        print(json.dumps(work.evaluate()), flush=True)


def _load(network: str) -> None:
    for _ in _Work(network).train():
        print("step", flush=True)


def _write(record: dict[str, Any]) -> None:
    from results.pages import table
    from tcl_jax import provenance

    seconds = [
        (*key.split("/"), f"{s['epoch']:.0f}", f"{s['evaluation']:.1f}")
        for key, s in record["seconds"].items()
    ]
    ended = [
        (*key.split("/"), e["ended"], e["status"], e.get("other_steps", "–"))
        for key, e in record["evaluations"].items()
    ]
    rows = [
        "# One CPU device, and one for every core",
        "",
        "Written by `python -m benchmarks.devices`, which says how each figure is measured, at",
        f"commit {provenance.short(record['commit'])}, seed {record['seed']}, on "
        f"{provenance.machine(record)}.",
        "",
        f"Seconds of an epoch of {TRAIN_IMAGES:,} images of 28×28 (the median of {TRAIN_STEPS}",
        f"steps of {BATCH} images, times {TRAIN_IMAGES // BATCH}), and of the evaluation of "
        f"{TEST_IMAGES:,}",
        "that follows it:",
        "",
        *table(("network", "devices", "epoch, s", "evaluation, s"), seconds),
        "",
        f"Evaluations of {TEST_IMAGES:,} images on two devices, of {EVALUATIONS}, that came to",
        "their end, and the steps of the training beside them meanwhile:",
        "",
        *table(("network", "beside it", "ended", "exit status", "steps"), ended),
    ]
    (RESULTS / "README.md").write_text("\n".join(rows) + "\n", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
