"""What a backend rounds products to: `python -m benchmarks.precision` writes results/precision.

Of what a TPU would do, its compiler tells: the simulation of a converted network is compiled ahead
of time, at the precision that tcl_jax asks for and at the backend's default; bfloat16 arrays in the
program are roundings to 8 bits.  That needs no TPU, but benchmarks/requirements.txt.  On the
backend at hand, logits and spike counts are compared with those in float64, and the spikes of
integer networks with those of the CPU.  Weights are random.  `--what` measures one of the two;
the page shows every backend that has been measured.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "results" / "precision"
NETWORKS = ("cnet", "resnet20")
IMAGE, BATCH, TIMESTEPS, LATENCY = (32, 32, 3), 100, 16, 100
TPU = "v5e:2x2"
PRECISIONS = ("default", "highest")


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--what", nargs="+", choices=MEASURES, default=list(MEASURES))
    parser.add_argument(
        "--one",
        nargs=3,
        metavar=("WHAT", "NETWORK", "PRECISION"),
        help="measure one row in this process, and print it as JSON",
    )
    options = parser.parse_args()
    if options.one:
        print(json.dumps(_one(*options.one)))
        return 0
    RESULTS.mkdir(parents=True, exist_ok=True)
    for what in options.what:
        _measure(what)
    records = sorted(RESULTS.glob("*.json"))
    _write({path.stem: json.loads(path.read_text(encoding="utf-8")) for path in records})
    return 0


def _measure(what: str) -> None:
    """Every row in a process of its own: JAX would remember the programs of another precision."""
    from tcl_jax import provenance

    about = provenance.describe()  # before a record changes the tree
    rows = []
    for network in NETWORKS:
        for precision in PRECISIONS:
            command = ["-m", "benchmarks.precision", "--one", what, network, precision]
            done = subprocess.run(
                [sys.executable, *command], cwd=ROOT, stdout=subprocess.PIPE, check=True, text=True
            )
            rows.append(json.loads(done.stdout))
            print(rows[-1], flush=True)
    record = {**about, "seed": 0, "tpu": TPU, "rows": rows}
    backend = about["hardware"]["backend"]
    path = RESULTS / f"{'tpu_compiler' if what == 'tpu' else backend}.json"
    path.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


def _one(what: str, network: str, precision: str) -> dict[str, Any]:
    os.environ["TPU_SKIP_MDS_QUERY"] = "1"  # there is none to ask
    import jax

    from results.networks import convert_random
    from tcl_jax.graph import convolution

    graph = jax.device_get(convert_random(network, IMAGE)[0])
    convolution.PRECISION = precision
    return {"network": network, "precision": precision} | MEASURES[what](graph)


def _compiled(graph: Any) -> dict[str, Any]:
    """Arrays of either type in the program of a simulation, and the seconds of its compilation."""
    import jax
    from jax.experimental import topologies

    from tcl_jax import simulation

    tpu = topologies.get_topology_desc(TPU, platform="tpu").devices[0]
    here = jax.sharding.SingleDeviceSharding(tpu)

    def like(a: Any) -> Any:
        return jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=here)

    def simulate(graph: Any, x: Any) -> Any:
        return simulation.simulate(graph, x, TIMESTEPS).output.counts

    images = like(np.zeros((BATCH, *IMAGE), np.float32))
    lowered = jax.jit(simulate).lower(jax.tree.map(like, graph), images)
    started = time.perf_counter()
    text = lowered.compile().as_text()
    seconds = time.perf_counter() - started
    found = {dtype: len(re.findall(rf"\b{dtype}\[", text)) for dtype in ("bf16", "f32")}
    return found | {"compilation_seconds": round(seconds, 1)}


def _here(graph: Any) -> dict[str, Any]:
    """What the backend at hand makes of logits and of spikes."""
    import jax

    from tcl_jax import simulation
    from tcl_jax.conversion import evaluate

    images = np.random.default_rng(0).normal(0, 1, (BATCH, *IMAGE)).astype(np.float32)

    def counts(graph: Any, x: Any) -> Any:
        return simulation.simulate(graph, x, LATENCY).output.counts

    def computed(function: Callable[..., Any], *arguments: Any) -> np.ndarray:
        return np.asarray(jax.jit(function)(*arguments))

    with jax.enable_x64(True):
        wide = jax.tree.map(lambda a: np.asarray(a, np.float64), graph)
        exact, spikes = (computed(f, wide, images.astype(np.float64)) for f in (evaluate, counts))
    unlike = None  # a CPU is not unlike itself
    if jax.default_backend() != "cpu":
        integers = jax.device_get(simulation.quantise(graph, images))
        on_default = computed(counts, integers, images)
        with jax.default_device(jax.devices("cpu")[0]):
            unlike = int(np.sum(computed(counts, integers, images) != on_default))
    logits, found = (computed(f, graph, images) for f in (evaluate, counts))
    return {
        "error": float(np.max(np.abs(logits - exact)) / np.max(np.abs(exact))),
        "counts": spikes.size,
        "counts_unlike_float64": int(np.sum(found != spikes)),
        "classes_unlike_float64": int(np.sum(found.argmax(-1) != spikes.argmax(-1))),
        "integer_counts_unlike_cpu": unlike,
    }


MEASURES: dict[str, Callable[[Any], dict[str, Any]]] = {"tpu": _compiled, "here": _here}


def _write(records: dict[str, Any]) -> None:
    from results.pages import table
    from tcl_jax import provenance

    def made(record: dict[str, Any]) -> str:
        return (
            f"(`{record['command']}`, commit {provenance.short(record['commit'])}, seed "
            f"{record['seed']})"
        )

    lines = [
        "# What a backend rounds products to",
        "",
        "Written by `python -m benchmarks.precision`, which says how each figure is measured.",
        "`highest` is what tcl_jax asks for, whatever `jax_default_matmul_precision` says;",
        "`default` is the backend's.",
    ]
    if compiled := records.pop("tpu_compiler", None):
        rows = [
            (r["network"], r["precision"], r["bf16"], r["f32"], r["compilation_seconds"])
            for r in compiled["rows"]
        ]
        lines += [
            "",
            "## What a TPU would compute",
            "",
            f"The simulation of {BATCH} images of 32×32×3 over {TIMESTEPS} steps, compiled for a "
            f"TPU {TPU.split(':')[0]}:",
            "arrays in the program, where each of bfloat16 rounds to 8 bits",
            f"{made(compiled)}.",
            "",
            *table(("network", "precision", "bfloat16", "float32", "compiled in, s"), rows),
        ]
    for record in records.values():
        rows = [
            (
                r["network"],
                r["precision"],
                f"{r['error']:.1e}",
                f"{r['counts_unlike_float64']} of {r['counts']}",
                f"{r['classes_unlike_float64']} of {BATCH}",
                "–" if r["integer_counts_unlike_cpu"] is None else r["integer_counts_unlike_cpu"],
            )
            for r in record["rows"]
        ]
        heads = ("network", "precision", "logits", "counts", "classes", "int8")
        lines += ["", f"## {provenance.machine(record)}", "", *table(heads, rows), "", made(record)]
    lines += [
        "",
        "- *logits*: the largest error of a logit against float64, over the largest logit.",
        f"- *counts*, *classes*: of {BATCH} images at T = {LATENCY}, output neurons' spike counts,",
        "  and classes by the most spikes, unlike those in float64.",
        "- *int8*: spike counts of the network in whole numbers (`simulation.quantise`) unlike",
        "  those that a CPU gives it.",
    ]
    (RESULTS / "README.md").write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
