"""Simulation beside other libraries: `python -m benchmarks.simulation` writes results/simulation.

Same weights, same images, same machine, products accurate to float32.  The systems take turns, in
an order that is reversed from one round to the next; a figure is the median over rounds.  Of a
library that can be run in several ways, a first round finds the fastest.  On a CPU every
measurement is a process of its own; on an accelerator all share one, which has it to itself.  Needs
benchmarks/requirements.txt.
"""

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "results" / "simulation"
# Image shapes.
NETWORKS = {
    "cnet": (28, 28, 1),
    "vgg16": (32, 32, 3),
    "resnet20": (32, 32, 3),
    "mobilenet": (32, 32, 3),
}
BATCHES = (1, 50)
LATENCIES = (32, 100)
OURS = {"tcl_jax": ["jit"], "ann-jax": ["jit"]}
PEERS = {
    "spikingjelly": ["single/nchw", "single/channels_last", "multi/nchw", "multi/channels_last"],
    "sinabs": ["multi/nchw", "multi/channels_last"],
    "snntorch": ["single/nchw", "single/channels_last"],
    "ann-torch": ["ann/nchw", "ann/channels_last"],
}
SYSTEMS = OURS | PEERS


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    parser.add_argument("--batches", nargs="+", type=int, default=list(BATCHES))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--systems", nargs="+", choices=SYSTEMS, default=list(SYSTEMS))
    parser.add_argument("--one", nargs=4, metavar=("SYSTEM", "VARIANT", "NETWORK", "BATCH"))
    options = parser.parse_args()
    if options.one:
        system, variant, network, batch = options.one
        from tcl_jax import cluster

        cluster.cores_as_devices(int(batch))
        print(json.dumps(_System(system, variant, network, int(batch)).measure()))
        return 0
    import jax

    from tcl_jax import provenance

    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # PyTorch needs memory too
    RESULTS.mkdir(parents=True, exist_ok=True)
    about = provenance.describe()  # before the record changes the tree
    record = RESULTS / f"{jax.default_backend()}.json"
    known = json.loads(record.read_text(encoding="utf-8")) if record.exists() else {"rows": {}}
    if known["rows"] and known["hardware"] != about["hardware"]:
        sys.exit(f"{record} is of {provenance.machine(known)}: move it away, and run this again")
    found = known["rows"]
    for network in options.networks:
        for batch in options.batches:
            key = f"{network}/{batch}"
            if key in found:
                continue
            here = jax.default_backend() != "cpu"
            found[key] = _rounds(
                options.systems, options.rounds, (_Here if here else _Apart)(network, batch)
            )
            found[key]["commit"] = about["commit"]
            versions = {p: metadata.version(p) for p in ("torch", *list(PEERS)[:3])}
            content = {**about, "peers": versions, "rows": found}
            record.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
            _write()
    _write()
    return 0


class _Apart:
    """Measurements of one workload, each in a process of its own."""

    def __init__(self, network: str, batch: int):
        self.workload = network, str(batch)

    def __call__(self, system: str, variant: str) -> dict[str, Any]:
        command = ["-m", "benchmarks.simulation", "--one", system, variant, *self.workload]
        done = subprocess.run(
            [sys.executable, *command], cwd=ROOT, stdout=subprocess.PIPE, check=True, text=True
        )
        return json.loads(done.stdout.splitlines()[-1])


class _Here:
    """The same in this process, where each system is prepared once."""

    def __init__(self, network: str, batch: int):
        self.network, self.batch = network, batch
        self.prepared: dict[tuple[str, str], _System] = {}

    def __call__(self, system: str, variant: str) -> dict[str, Any]:
        key = system, variant
        if key not in self.prepared:
            self.prepared[key] = _System(*key, self.network, self.batch)
        return self.prepared[key].measure()


def _rounds(
    systems: list[str], rounds: int, measure: Callable[[str, str], dict[str, Any]]
) -> dict[str, Any]:
    chosen = {}
    for system in systems:
        tried = {v: measure(system, v) for v in SYSTEMS[system]}
        chosen[system] = min(tried, key=lambda v: sum(tried[v]["seconds"].values()))
        shown = {v: [round(s, 4) for s in t["seconds"].values()] for v, t in tried.items()}
        print(system, shown, flush=True)
    runs: dict[str, list[dict[str, Any]]] = {system: [] for system in systems}
    for turn in range(rounds):
        for system in systems if turn % 2 else reversed(systems):
            runs[system].append(measure(system, chosen[system]))
    return {
        system: {
            "variant": chosen[system],
            "seconds": {
                t: statistics.median(r["seconds"][t] for r in runs[system])
                for t in runs[system][0]["seconds"]
            },
            "all": [r["seconds"] for r in runs[system]],
            "counts": runs[system][0]["counts"],
        }
        for system in systems
    }


class _System:
    """One library, in one of the ways that it can be run, with a workload; all compiled."""

    def __init__(self, system: str, variant: str, network: str, batch: int):
        graph, self.images = _workload(network, batch)
        self.repeats = 3 if batch == 1 else 1
        self.is_ann = system.startswith("ann")
        if system == "ann-jax":
            self.run = _ann(graph, batch)
        elif system == "tcl_jax":
            self.run = _ours(graph, batch)
        else:
            self.run = _peer(graph, system, variant, batch)
        # Ours compiles for every T; others are ready after a few steps.
        for t in (1,) if self.is_ann else LATENCIES if system == "tcl_jax" else (2,):
            self.run(self.images, t)

    def measure(self) -> dict[str, Any]:
        """Seconds from images to spike counts at every T, or for one ANN forward pass."""
        run, images = self.run, self.images
        if self.is_ann:
            return {"seconds": {"forward": _seconds(lambda: run(images, 1), 10)}, "counts": None}
        seconds = {str(t): _seconds(lambda t=t: run(images, t), self.repeats) for t in LATENCIES}
        counts = run(images, LATENCIES[0])
        return {"seconds": seconds, "counts": np.asarray(counts).astype(int).ravel().tolist()}


def _seconds(call: Callable[[], Any], repeats: int) -> float:
    taken = []
    for _ in range(repeats):
        started = time.perf_counter()
        call()
        taken.append(time.perf_counter() - started)
    return statistics.median(taken)


def _workload(network: str, batch: int) -> tuple[Any, np.ndarray]:
    """A converted network of random weights, and random images."""
    import jax

    from results.networks import convert_random

    graph, _ = convert_random(network, NETWORKS[network])
    images = np.random.default_rng(1).normal(0, 1, (batch, *NETWORKS[network]))
    return jax.device_get(graph), images.astype(np.float32)


def _peer(graph: Any, library: str, variant: str, batch: int) -> Callable[..., np.ndarray]:
    from benchmarks.peers import runner

    return runner(graph, library, variant, batch)


def _ours(graph: Any, batch: int) -> Callable[..., np.ndarray]:
    import jax

    from tcl_jax import cluster, simulation

    devices = cluster.everywhere()
    lowered = devices.replicate(simulation.lower(graph))
    simulate = jax.jit(
        lambda graph, x, timesteps: simulation.simulate(graph, x, timesteps).output.counts,
        static_argnames="timesteps",
    )
    return lambda images, timesteps: np.asarray(
        simulate(lowered, devices.put(images), timesteps=timesteps)
    )


def _ann(graph: Any, batch: int) -> Callable[..., np.ndarray]:
    import jax

    from tcl_jax import cluster, conversion, simulation

    devices = cluster.everywhere()
    lowered = devices.replicate(simulation.lower(graph))
    forward = jax.jit(conversion.evaluate)
    forward(lowered, devices.put(np.zeros((batch, *graph.input.op.shape), np.float32)))
    return lambda images, _: np.asarray(forward(lowered, devices.put(images)))


def _write() -> None:
    rows = [
        "# Simulation beside other libraries",
        "",
        "Written by `python -m benchmarks.simulation`, which says how it measures: seconds",
        "from images to output spike counts, medians; weights and images random.  Spike counts, at",
        f"T = {LATENCIES[0]}, may differ where a membrane potential meets its threshold but for",
        "the last bits, and snnTorch's neurons fire above it, not at it.",
    ]
    for record in sorted(RESULTS.glob("*.json")):
        rows += _of_machine(json.loads(record.read_text(encoding="utf-8")))
    (RESULTS / "README.md").write_text("\n".join(rows) + "\n", encoding="utf-8")


def _of_machine(record: dict[str, Any]) -> list[str]:
    from results.pages import table
    from tcl_jax import provenance

    peers = list(PEERS)[:3]
    seconds, ratios, steps = [], [], []
    for key, row in record["rows"].items():
        workload = key.split("/")
        for t in map(str, LATENCIES):
            ours = row["tcl_jax"]["seconds"][t]
            theirs = {p: row[p]["seconds"][t] for p in peers}
            best = min(theirs, key=theirs.__getitem__)
            ratios.append(theirs[best] / ours)
            mine = row["tcl_jax"]["counts"]
            differ = sum(a != b for a, b in zip(mine, row[best]["counts"], strict=True))
            times = [f"{s:.4f}" for s in (ours, *theirs.values())]
            seconds.append((*workload, t, *times, f"{ratios[-1]:.2f}", f"{differ}/{len(mine)}"))
        step = row["tcl_jax"]["seconds"][str(LATENCIES[-1])] / LATENCIES[-1]
        ann = [row[a]["seconds"]["forward"] for a in ("ann-jax", "ann-torch")]
        times = [f"{1e3 * s:.3f}" for s in (step, *ann)]
        steps.append((*workload, *times, f"{step / min(ann):.2f}"))
    workloads = [f"{network}/{batch}" for network in NETWORKS for batch in BATCHES]
    missing = [w for w in workloads if w not in record["rows"]]
    mean = math.exp(statistics.fmean(map(math.log, ratios)))
    commits: dict[str, list[str]] = {}
    for key, row in record["rows"].items():
        commits.setdefault(provenance.short(row["commit"]), []).append(key)
    return [
        "",
        f"## {provenance.machine(record)}",
        "",
        *table(("network", "batch", "T", "tcl_jax", *peers, "gain", "differ"), seconds),
        "",
        f"*gain* is the fastest peer's time over that of tcl_jax: geometric mean {mean:.2f}, least",
        f"{min(ratios):.2f}.  *differ* counts neurons whose spikes are not that peer's.  One step",
        "beside one forward pass of the network that it came from, in ms:",
        "",
        *table(("network", "batch", "step", "ANN, JAX", "ANN, PyTorch", "step ÷ ANN"), steps),
        "",
        ", ".join(f"{p} {v}" for p, v in record["peers"].items()) + ".  Commits:",
        *(f"{commit} ({', '.join(keys)})" for commit, keys in commits.items()),
        *(["", f"Not measured: {', '.join(missing)} (network/batch)."] if missing else []),
    ]


if __name__ == "__main__":
    sys.exit(main())
