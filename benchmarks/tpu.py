"""Simulations as a TPU would run them: `python -m benchmarks.tpu` writes results/tpu.

Step by step and by blocks of steps, with float32 products of the highest precision, with float32
weights in parts, and with weights of fewer bits.  Compiled by the TPU's own compiler, which needs
no TPU but pip install 'tcl_jax[plan]'; nothing is run.  Takes one to three minutes a row, of two
cores; what results/tpu has already is not compiled again.
"""

import argparse
import importlib.metadata
import json
import textwrap
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from results.networks import convert_random
from results.pages import WIDTH, table
from tcl_jax import programs, provenance, simulation, topology
from tcl_jax.graph.synapses import WEIGHTS
from tcl_jax.record import write_json
from tcl_jax.runs.plan import plan_simulation
from tcl_jax.simulation.latency import lowered
from tcl_jax.simulation.settings import PAPER, Simulation

RESULTS = Path(__file__).resolve().parent.parent / "results" / "tpu"
SLICE, IMAGES, TIMESTEPS = "v5e:2x4", 4, 32
SHAPE = (224, 224, 3)
NETWORKS = ("vgg16_imagenet", "resnet34")
ROWS = (
    ("scan", "float32", False),
    ("scan", "float32", True),
    ("scan", "bfloat16", True),
    ("scan", "int8", True),
    ("blocked:4,memory=64", "float32", False),
    ("blocked:4,memory=64", "float32", True),
    ("blocked:4,memory=64", "int8", True),
)
"""Executor, type of the weights, and whether products are split where that is exact."""


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.parse_args()
    RESULTS.mkdir(parents=True, exist_ok=True)
    path = RESULTS / "programs.json"
    record = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    about = {**provenance.describe(), "libtpu": importlib.metadata.version("libtpu"), "seed": 0}
    for network in NETWORKS:
        for row in ROWS:
            key = _key(network, *row)
            if key not in record:
                print(f"{key} …", flush=True)
                started = time.perf_counter()
                found = _compiled(network, *row)
                record[key] = {**found, "compile": time.perf_counter() - started, "about": about}
                write_json(path, record)
    (RESULTS / "README.md").write_text("\n".join(_page(record)) + "\n", encoding="utf-8")
    return 0


def _key(network: str, executor: str, weights: str, split: bool) -> str:
    return f"{network}, {executor}, {weights}{', split' if split else ''}"


def _compiled(network: str, executor: str, weights: str, split: bool) -> dict[str, Any]:
    there = topology.find(SLICE)
    settings: Simulation = replace(PAPER, executor=simulation.EXECUTORS.read(executor))
    graph, images = convert_random(network, SHAPE)
    graph = WEIGHTS.find(weights)(graph, images)
    graph = simulation.lower(graph, "tpu", settings.neurons if split else None)
    batch_size = IMAGES * there.cluster.own.mesh.size
    return plan_simulation(graph, there, TIMESTEPS, settings, shape=SHAPE, batch_size=batch_size)


def _needed(network: str) -> int:
    """FLOPs of all products on a chip, as they are written, of weights in one part."""
    graph, _ = convert_random(network, SHAPE)
    written = lowered(simulation.lower(graph, "tpu"), SHAPE, IMAGES, TIMESTEPS)
    return programs.flops_as_written(written)


def _page(record: dict[str, Any]) -> list[str]:
    lines = [
        "# Simulations on a TPU, compiled without one",
        "",
        *textwrap.wrap(
            f"Written by `python -m benchmarks.tpu`: what gives accuracy at every T up to "
            f"{TIMESTEPS}, {IMAGES} images of 224×224 on each chip of a {SLICE}, as the TPU's "
            "compiler makes it. Nothing was run. *passes* is how often the matrix units go through "
            "all products: six times for float32 ones, three times where spikes meet weights in "
            "three parts (“split”), once for bfloat16; more where the compiler fills up with "
            "zeros, or what meets weights is no number of few spikes. Of a step, in ms: least by "
            "products, and by memory traffic, at what is published of the chip; and expected: the "
            "cycles that the compiler expects its operations to take, one after another.",
            WIDTH,
            break_on_hyphens=False,
        ),
    ]
    for network in NETWORKS:
        found = {row: record[key] for row in ROWS if (key := _key(network, *row)) in record}
        if found:
            lines += ["", f"## {network}", "", *_table(found, _needed(network))]
    runs = {
        (a["command"], provenance.short(a["commit"]), a["libtpu"], a["seed"])
        for a in (found["about"] for found in record.values())
    }
    return [
        *lines,
        "",
        *(
            f"`{command}` at commit {commit}, libtpu {libtpu}, seed {seed}.  "
            for command, commit, libtpu, seed in sorted(runs)
        ),
    ]


def _table(found: dict[tuple[str, str, bool], dict[str, Any]], needed: int) -> list[str]:
    """Of one network, whose weights in one part take so many FLOPs."""
    rows = []
    for (executor, weights, split), of in found.items():
        steps, seconds = of["timesteps"], of["seconds"]
        times = (f"{1e3 * seconds[which] / steps:.2f}" for which in ("products", "memory"))
        expected = seconds["expected"]
        rows.append(
            (
                executor.split(",")[0],
                f"{weights}{', split' if split and weights == 'float32' else ''}",
                f"{of['memory_bytes'] / 2**30:.2f}",
                f"{of['bytes'] / steps / 1e9:.2f}",
                f"{of['passes'] / needed:.1f}",
                *times,
                f"{1e3 * expected / steps:.2f}" if expected else "–",
            )
        )
    headings = ("executor", "weights", "GiB", "GB", "passes", "products", "memory", "expected")
    return table(headings, rows)


if __name__ == "__main__":
    raise SystemExit(main())
