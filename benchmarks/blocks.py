"""How long a block of steps should be: `python -m benchmarks.blocks` writes results/blocks.

Of the benchmarks' networks, with 1 and 50 images: seconds that a simulation takes step by step, and
by blocks of K steps, beside the K that `tcl_jax.simulation.costs` tells.  The lengths take turns;
a figure is the median over rounds.  Only on a CPU, where costs were measured.  Takes ten minutes.
"""

import itertools
import json
import multiprocessing
import statistics
import sys
import textwrap
import time
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import jax
import matplotlib.pyplot as plt
import numpy as np

from benchmarks.systems import NETWORKS, workload
from results.pages import WIDTH, source, table
from tcl_jax import cluster, provenance, simulation
from tcl_jax.record import write_json
from tcl_jax.simulation import Blocked, Simulation

plt.switch_backend("Agg")
RESULTS = Path(__file__).resolve().parent.parent / "results" / "blocks"
BATCHES = (1, 50)
LENGTHS = (1, 2, 4, 8, 16, 32)
TIMESTEPS, ROUNDS = 32, 5
ROOM = 8.0  # GiB, for the longest


def main() -> int:
    record: dict[str, Any] = {**provenance.describe(), "timesteps": TIMESTEPS, "rows": []}
    RESULTS.mkdir(parents=True, exist_ok=True)
    for network, batch in itertools.product(NETWORKS, BATCHES):
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as apart:
            record["rows"].append(apart.submit(_measured, network, batch).result())
        print(json.dumps(record["rows"][-1]), flush=True)
        write_json(RESULTS / "cpu.json", record)
    _write(json.loads((RESULTS / "cpu.json").read_text(encoding="utf-8")))
    return 0


def _measured(network: str, batch: int) -> dict[str, Any]:
    """Seconds, to run and to compile, and bytes of values, by K."""
    jax.config.update("jax_platforms", "cpu")
    cluster.cores_as_devices(batch)
    graph, images = workload(network, batch)
    devices = cluster.everywhere()
    lowered, x = devices.replicate(simulation.lower(graph)), devices.put(images)
    programs, compiling, memory, counts = {}, {}, {}, {}
    for length in LENGTHS:
        settings = Simulation(executor=Blocked(length, memory=ROOM))
        started = time.perf_counter()
        run = jax.jit(partial(_counts, settings=settings)).lower(lowered, x).compile()
        compiling[length] = time.perf_counter() - started
        memory[length] = run.memory_analysis().temp_size_in_bytes
        programs[length], counts[length] = run, np.asarray(run(lowered, x))
    taken: dict[int, list[float]] = {length: [] for length in LENGTHS}
    for _ in range(ROUNDS):
        for length, run in programs.items():
            started = time.perf_counter()
            jax.block_until_ready(run(lowered, x))
            taken[length].append(time.perf_counter() - started)
    return {
        "network": network,
        "batch": batch,
        "chosen": Blocked().block(lowered, batch, TIMESTEPS),
        "seconds": {k: statistics.median(times) for k, times in taken.items()},
        "compile": compiling,
        "memory": memory,
        "differ": max(int(np.sum(c != counts[1])) for c in counts.values()),
        "outputs": int(counts[1].size),
    }


def _counts(graph: Any, x: jax.Array, *, settings: Simulation) -> jax.Array:
    return simulation.simulate(graph, x, TIMESTEPS, settings).output.counts


def _write(record: dict[str, Any]) -> None:
    rows, lost = [], []
    for row in record["rows"]:
        seconds, chosen = row["seconds"], str(row["chosen"])
        lost.append(seconds[chosen] / min(seconds.values()))
        times = (f"{s:.4f}{'*' if k == chosen else ' '}" for k, s in seconds.items())
        rows.append((row["network"], str(row["batch"]), *times, f"{lost[-1]:.2f}"))
    of_programs = [
        (row["network"], str(row["batch"]), *(f"{s:.1f} s, {m / 2**20:.0f}" for s, m in both))
        for row in record["rows"]
        for both in [zip(row["compile"].values(), row["memory"].values(), strict=True)]
    ]
    differ, outputs = (sum(row[of] for row in record["rows"]) for of in ("differ", "outputs"))
    mean = statistics.geometric_mean(lost)
    text = (
        f"The K that is chosen (*) takes {mean:.2f} times as long as the fastest in the geometric "
        f"mean, {max(lost):.2f} times at most (the last column). Of the spike counts of {outputs} "
        f"outputs at most {differ} differ from those of single steps. To compile the programs, and "
        "MiB that they take beside weights:"
    )
    headings = ("network", "images", *(f"K={k}" for k in LENGTHS))
    lines = [
        "# Blocks of steps",
        "",
        "Written by `python -m benchmarks.blocks`, which says how it measures: seconds for "
        f"T = {record['timesteps']}.",
        "",
        *table((*headings, ""), rows),
        "",
        *textwrap.wrap(text, WIDTH),
        "",
        *table(headings, of_programs),
        "",
        "![Seconds against the length of a block](cpu.png)",
        "",
        *source(record),
    ]
    (RESULTS / "README.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    _plot(record)


def _plot(record: dict[str, Any]) -> None:
    figure, axes = plt.subplots(
        1, len(BATCHES), figsize=(9, 3.6), sharey=True, layout="constrained"
    )
    for ax, batch in zip(axes, BATCHES, strict=True):
        for row in record["rows"]:
            if row["batch"] != batch:
                continue
            single = row["seconds"]["1"]
            lengths = [int(k) for k in row["seconds"]]
            (line,) = ax.plot(
                lengths, [s / single for s in row["seconds"].values()], label=row["network"]
            )
            chosen = row["seconds"][str(row["chosen"])] / single
            ax.plot(row["chosen"], chosen, "o", color=line.get_color())
        ax.set_xscale("log", base=2)
        ax.set_xticks(LENGTHS, [str(k) for k in LENGTHS])
        ax.set(title=f"batch {batch}", xlabel="steps in a block, K")
    axes[0].set(ylabel="time, of that of single steps", ylim=(0, None))
    axes[0].legend(title="chosen: ●", frameon=False)
    figure.savefig(RESULTS / "cpu.png", dpi=120)


if __name__ == "__main__":
    sys.exit(main())
