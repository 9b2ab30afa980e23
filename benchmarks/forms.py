"""Forms of convolutions, as they are expected and measured: `python -m benchmarks.forms`.

Writes results/forms: of every different convolution of the benchmarks' networks, and of some that
are known to be slow, the microseconds that an image takes in each form when 16 are computed at once
by one core, beside those that `tcl_jax.simulation.costs` expects; by these `lower` chooses.  Only
on a CPU, where forms are chosen.  Takes two minutes.
"""

import json
import os
import statistics
import sys
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.systems import NETWORKS, workload
from results.pages import WIDTH, source, table
from tcl_jax import graph as g
from tcl_jax import provenance
from tcl_jax.record import write_json
from tcl_jax.simulation.costs import costs
from tcl_jax.simulation.lowering import forms

RESULTS = Path(__file__).resolve().parent.parent / "results" / "forms"
IMAGES, TIMES = 16, 9
# Side, channels in and out, groups, window.
CROWDED = [(2, 64, 64, 1, 3), (2, 128, 128, 32, 3), (2, 512, 512, 32, 3), (4, 64, 64, 1, 5)]


def main() -> int:
    jax.config.update("jax_platforms", "cpu")
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})  # one core, before there are threads
    known = costs("cpu")
    assert known is not None
    record: dict[str, Any] = {**provenance.describe(), "images": IMAGES, "rows": []}
    for name, conv, before, after in _convolutions():
        row = {"name": name, "expected": {}, "measured": {}}
        for form in forms(conv, known, before, after):
            row["expected"][form.name] = form.seconds
            row["measured"][form.name] = _seconds(list(form.parts().values()), before)
        print(name, {form: f"{1e6 * s:.0f} µs" for form, s in row["measured"].items()}, flush=True)
        record["rows"].append(row)
    RESULTS.mkdir(parents=True, exist_ok=True)
    write_json(RESULTS / "cpu.json", record)
    _write(json.loads((RESULTS / "cpu.json").read_text(encoding="utf-8")))
    return 0


def _convolutions() -> Iterator[tuple[str, g.Conv, tuple[int, ...], tuple[int, ...]]]:
    seen = set()
    for network in NETWORKS:
        graph, _ = workload(network, 1)
        shapes = list(g.shapes(graph).values())
        for number, node in enumerate(graph.nodes):
            if isinstance(node.op, g.Conv):
                before, after = shapes[node.inputs[0]], shapes[number]
                key = (before, after, node.op.kernel.shape, node.op.strides)
                if key not in seen:
                    yield _named(node.op, before), node.op, before, after
                seen.add(key)
    for side, ins, outs, groups, window in CROWDED:
        kernel = np.random.default_rng(0).normal(size=(window, window, ins // groups, outs))
        padding = ((window // 2,) * 2,) * 2
        conv = g.Conv(jnp.asarray(kernel, jnp.float32), None, (1, 1), padding, (1, 1), groups)
        yield _named(conv, (side, side, ins)), conv, (side, side, ins), (side, side, outs)


def _named(conv: g.Conv, before: tuple[int, ...]) -> str:
    """As in ``8×8×64, 3×3→128/2``: stride 2; groups in brackets."""
    *window, _, outs = conv.kernel.shape
    by = "×".join
    groups = f" ({conv.groups})" if conv.groups > 1 else ""
    stride = f"/{conv.strides[0]}" if conv.strides[0] > 1 else ""
    return f"{by(map(str, before))}, {by(map(str, window))}→{outs}{stride}{groups}"


def _seconds(steps: list[Any], before: tuple[int, ...]) -> float:
    """Of one image among several, of spikes; the weights are an argument, as in a simulation."""

    @jax.jit
    def run(steps: list[Any], x: jax.Array) -> jax.Array:
        for op in steps:
            x = op.apply(x)
        return x

    spikes = np.random.default_rng(0).random((IMAGES, *before)) < 0.2
    x = jnp.asarray(spikes, jnp.float32)
    run(steps, x).block_until_ready()
    taken = []
    for _ in range(TIMES):
        started = time.perf_counter()
        run(steps, x).block_until_ready()
        taken.append(time.perf_counter() - started)
    return statistics.median(taken) / IMAGES


def _write(record: dict[str, Any]) -> None:
    rows, lost = [], []
    for row in record["rows"]:
        measured, expected = row["measured"], row["expected"]
        chosen = min(expected, key=expected.__getitem__)
        lost.append(measured[chosen] / min(measured.values()))
        for form, seconds in measured.items():
            times = (f"{1e6 * seconds:.1f}", f"{1e6 * expected[form]:.1f}")
            name = row["name"] if form == "convolution" else ""
            rows.append((name, form, *times, "*" if form == chosen else ""))
    ratio = statistics.geometric_mean(lost)
    text = (
        f"The form that is chosen (*) takes {ratio:.2f} times as long as the fastest one in the "
        f"geometric mean, {max(lost):.2f} times at most."
    )
    lines = [
        "# Forms of convolutions",
        "",
        "Written by `python -m benchmarks.forms`, which says how it measures: µs an image.",
        "",
        *table(("convolution", "form", "measured", "expected", ""), rows),
        "",
        *textwrap.wrap(text, WIDTH),
        "",
        *source(record),
    ]
    (RESULTS / "README.md").write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
