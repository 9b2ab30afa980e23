"""Simulation with weights of fewer bits: `python -m benchmarks.weights` writes results/weights.

Networks of random weights in float32, rounded to bfloat16 and to int8 (`convert.py --weights`);
and beside them SpikingJelly, whose fastest way in float32 is run in bfloat16, too: then its
potentials are of 8 digits, and its spikes others.  Systems take turns, each in a process of its
own; a figure is the median over rounds.  Needs benchmarks/requirements.txt, and half an hour.
"""

import argparse
import json
import statistics
import sys
import textwrap
from pathlib import Path
from typing import Any

import jax

from benchmarks.simulator import Measurements
from benchmarks.systems import NETWORKS, PEERS, workload
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
    record: dict[str, Any] = {**provenance.describe(), "seed": 0, "rows": []}
    for network in NETWORKS:
        for batch in BATCHES:
            print(f"{network}, {batch} images", flush=True)
            with Measurements(network, batch) as measure:
                row = {"network": network, "batch": batch, **_rounds(measure)}
            record["rows"].append(row | {"bytes": _bytes(network)})
            write_json(path, record)
    _write(json.loads(path.read_text(encoding="utf-8")))
    return 0


def _rounds(measure: Measurements) -> dict[str, Any]:
    tried = {v: measure(PEER, v, TIMESTEPS)["seconds"] for v in PEERS[PEER]}
    fastest = min(tried, key=lambda variant: sum(tried[variant].values()))
    measure.end()
    systems = [("tcl_jax", weights) for weights in WEIGHTS]
    systems += [(PEER, f"{fastest}/{dtype}") for dtype in TYPES]
    runs: dict[tuple[str, str], list[dict[str, Any]]] = {system: [] for system in systems}
    for turn in range(ROUNDS):
        for system in systems if turn % 2 else reversed(systems):
            runs[system].append(measure(*system, TIMESTEPS))
    seconds = {
        f"{system} {variant.split('/')[-1]}": [sum(run["seconds"].values()) for run in found]
        for (system, variant), found in runs.items()
    }
    return {
        "variant": fastest,
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


def _write(record: dict[str, Any]) -> None:
    systems = [*(f"tcl_jax {w}" for w in WEIGHTS), *(f"{PEER} {dtype}" for dtype in TYPES)]
    rows = [
        (
            row["network"],
            row["batch"],
            *(f"{1e3 * row['seconds'][system] / TIMESTEPS:.2f}" for system in systems),
        )
        for row in record["rows"]
    ]
    sizes = [
        (row["network"], *(f"{row['bytes'][w] / 2**20:.1f}" for w in WEIGHTS))
        for row in record["rows"]
        if row["batch"] == BATCHES[0]
    ]
    text = (
        f"Written by `python -m benchmarks.weights`: ms a step, of T={TIMESTEPS}, by type of "
        f"weights: of tcl_jax, and in the last two columns of {PEER}. Weights are random."
    )
    lines = [
        "# Weights of fewer bits",
        "",
        *textwrap.wrap(text, WIDTH),
        "",
        *table(("network", "batch", *WEIGHTS, *TYPES), rows),
        "",
        "Of the network that is saved, in MiB:",
        "",
        *table(("network", *WEIGHTS), sizes),
        "",
        *source(record),
    ]
    (RESULTS / "README.md").write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
