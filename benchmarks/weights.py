"""Simulation with weights of fewer bits: `python -m benchmarks.weights` writes results/weights.

Networks of random weights in float32, rounded to bfloat16 and to int8 (`convert.py --weights`);
and beside them SpikingJelly, whose fastest way in float32 is run in bfloat16, too: then its
potentials are of 8 digits, and its spikes others.  Systems take turns, each in a process of its
own; a figure is the median over rounds.  What results/weights has already is not measured again.
Needs benchmarks/requirements.txt, and about an hour.
"""

import argparse
import itertools
import json
import statistics
import sys
import textwrap
from pathlib import Path
from typing import Any

import jax

from benchmarks.simulator import Measurements, fastest, in_turns
from benchmarks.systems import NETWORKS, workload
from results.pages import WIDTH, source, table
from tcl_jax import provenance
from tcl_jax.graph.synapses import WEIGHTS
from tcl_jax.record import write_json

RESULTS = Path(__file__).resolve().parent.parent / "results" / "weights"
BATCHES, TIMESTEPS, ROUNDS = (1, 50), 32, 3
PEER, TYPES = "spikingjelly", ("float32", "bfloat16")


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.parse_args()
    RESULTS.mkdir(parents=True, exist_ok=True)
    path = RESULTS / f"{jax.default_backend()}.json"
    rows = json.loads(path.read_text(encoding="utf-8")) if path.exists() else []
    about = {**provenance.describe(), "seed": 0}
    for network, batch in itertools.product(NETWORKS, BATCHES):
        if (network, batch) in ((row["network"], row["batch"]) for row in rows):
            continue
        print(f"{network}, {batch} images", flush=True)
        with Measurements(network, batch) as measure:
            row = {"network": network, "batch": batch, **_rounds(measure)}
        rows.append({**row, "bytes": _bytes(network), "about": about})
        write_json(path, rows)
    _write(rows)
    return 0


def _rounds(measure: Measurements) -> dict[str, Any]:
    peer = fastest(measure, PEER)
    systems = [("tcl_jax", weights) for weights in WEIGHTS]
    systems += [(PEER, f"{peer}/{dtype}") for dtype in TYPES]
    seconds = {
        f"{system} {variant.split('/')[-1]}": [sum(run["seconds"].values()) for run in found]
        for (system, variant), found in in_turns(ROUNDS, measure, systems, TIMESTEPS).items()
    }
    return {
        "variant": peer,
        "all": seconds,
        "seconds": {key: statistics.median(found) for key, found in seconds.items()},
    }


def _bytes(network: str) -> dict[str, int]:
    """Of a network as it is saved, by its type of weights."""
    graph, images = workload(network, 1)
    return {
        weights: sum(
            array.nbytes for array in jax.tree.leaves(WEIGHTS.find(weights)(graph, images))
        )
        for weights in WEIGHTS
    }


def _write(measured: list[dict[str, Any]]) -> None:
    systems = [*(f"tcl_jax {w}" for w in WEIGHTS), *(f"{PEER} {dtype}" for dtype in TYPES)]
    rows = [
        (
            row["network"],
            row["batch"],
            *(f"{1e3 * row['seconds'][system] / TIMESTEPS:.2f}" for system in systems),
        )
        for row in measured
    ]
    sizes = [
        (row["network"], *(f"{row['bytes'][w] / 2**20:.1f}" for w in WEIGHTS))
        for row in measured
        if row["batch"] == BATCHES[0]
    ]
    text = (
        f"Written by `python -m benchmarks.weights`: ms a step, of T={TIMESTEPS}, by type of "
        f"weights: of tcl_jax, and *in italics* of {PEER}. Weights are random. {PEER}'s "
        f"time over that of tcl_jax: {'; '.join(_gain(measured, dtype) for dtype in TYPES)}."
    )
    lines = [
        "# Weights of fewer bits",
        "",
        *textwrap.wrap(text, WIDTH),
        "",
        *table(("network", "batch", *WEIGHTS, *(f"*{dtype}*" for dtype in TYPES)), rows),
        "",
        "Of the network that is saved, in MiB:",
        "",
        *table(("network", *WEIGHTS), sizes),
        "",
        *dict.fromkeys("\n".join(source(row["about"])) for row in measured),
    ]
    (RESULTS / "README.md").write_text("\n".join(lines) + "\n", encoding="utf-8")


def _gain(measured: list[dict[str, Any]], dtype: str) -> str:
    """How many times the peer's time is ours, both with weights of this type."""
    times = [row["seconds"] for row in measured]
    gains = [t[f"{PEER} {dtype}"] / t[f"tcl_jax {dtype}"] for t in times]
    mean = statistics.geometric_mean(gains)
    return f"in {dtype} {mean:.2f} in the geometric mean, {min(gains):.2f} at least"


if __name__ == "__main__":
    sys.exit(main())
