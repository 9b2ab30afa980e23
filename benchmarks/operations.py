"""Synaptic operations beside SpikingJelly's counter: `python -m benchmarks.operations`.

Writes results/operations.  In float64, where spikes are the same.  SpikingJelly counts a spike at
every weight of a convolution or linear layer that reads spikes of 0 and 1, borders minded, as we
do; what it does not count are pools, shortcuts, and weights behind them, which read other numbers.
Needs benchmarks/requirements.txt, and a minute.
"""

import argparse
import inspect
import sys
import textwrap
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
from spikingjelly.activation_based.op_counter import DispatchCounterMode, SynOpCounter

from benchmarks import peers
from benchmarks.systems import workload
from results.pages import WIDTH, source, table
from tcl_jax import clip, convert, provenance, simulation
from tcl_jax.graph import Graph
from tcl_jax.record import write_json

RESULTS = Path(__file__).resolve().parent.parent / "results" / "operations"
BATCH, TIMESTEPS = 10, 32
PLAIN = "plain CNN"


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.parse_args()
    about = {**provenance.describe(), "seed": 0}
    rows = []
    for network in (PLAIN, "cnet", "resnet20", "mobilenet"):
        graph, images = _plain() if network == PLAIN else workload(network, BATCH)
        wide = jax.tree.map(lambda x: np.asarray(x, np.float64), graph)
        images = images.astype(np.float64)
        rows.append(
            {"network": network, "ours": _ours(wide, images), "theirs": _theirs(wide, images)}
        )
        print(rows[-1], flush=True)
    RESULTS.mkdir(parents=True, exist_ok=True)
    write_json(RESULTS / "operations.json", {"rows": rows, "about": about})
    _write(rows, about)
    return 0


def _plain() -> tuple[Graph, np.ndarray]:
    """Convolutions of all kinds of strides, borders and groups, and linear layers; nothing else."""
    rng = np.random.default_rng(0)
    layers = (
        ((3, 3, 3, 16), (1, 1), "SAME", 1),
        ((3, 3, 16, 24), (2, 2), ((1, 1), (1, 1)), 1),
        ((3, 3, 12, 32), (1, 1), "VALID", 2),
        ((5, 5, 1, 32), (2, 2), ((2, 2), (2, 2)), 32),
    )
    kernels = [rng.normal(0, (2 / np.prod(s[:3])) ** 0.5, s) for s, *_ in layers]
    dense = [rng.normal(0, 0.05, s) for s in ((7 * 7 * 32, 64), (64, 10))]
    images = rng.normal(0, 1, (BATCH, 32, 32, 3)).astype(np.float32)

    def forward(w: Any, x: jax.Array) -> jax.Array:
        for kernel, (_, strides, padding, groups) in zip(w[:4], layers, strict=True):
            x = jax.lax.conv_general_dilated(
                x,
                kernel,
                strides,
                padding,
                dimension_numbers=("NHWC", "HWIO", "NHWC"),
                feature_group_count=groups,
            )
            x = clip(jax.nn.relu(x), 1.0)
        x = clip(jax.nn.relu(x.reshape(x.shape[0], -1) @ w[4]), 1.0)
        return x @ w[5]

    weights = [jnp.asarray(w, jnp.float32) for w in (*kernels, *dense)]
    graph = convert(forward, weights, [jnp.asarray(images)], norm="tcl")
    return jax.device_get(graph), images


def _ours(graph: Graph, images: np.ndarray) -> int:
    batch = {"image": images, "label": np.zeros(BATCH, int), "mask": np.ones(BATCH, bool)}
    with jax.enable_x64(True):
        _, activity = simulation.measure(graph, [batch], TIMESTEPS)
    return int(activity.by_image.sum())


def _theirs(graph: Graph, images: np.ndarray) -> int:
    network = peers.Network(graph, "spikingjelly", "single", "nchw", BATCH)
    counter = SynOpCounter()
    # Not in inference mode, in which the counter does not see convolutions as such.
    with torch.no_grad(), DispatchCounterMode([counter]):
        inspect.unwrap(type(network).forward)(network, images, TIMESTEPS)
    return int(counter.get_total())


def _write(rows: list[dict[str, Any]], about: dict[str, Any]) -> None:
    figures = [
        (r["network"], f"{r['ours']:,}", f"{r['theirs']:,}", f"{r['theirs'] / r['ours']:.4f}")
        for r in rows
    ]
    text = (
        f"Synaptic operations of {BATCH} random images in {TIMESTEPS} steps, networks of random "
        "weights, in float64: counted from spikes and fan-outs, and by SpikingJelly's SynOpCounter "
        "while it runs the same network.  It counts spikes at weights; pools and shortcuts, which "
        "we count as synapses of their own, it does not, nor weights behind a pool, which read "
        "other numbers than 0 and 1.  So the plain CNN, which has nothing else, is where both "
        "count the same thing."
    )
    page = [
        "# Synaptic operations, counted twice",
        "",
        "Written by `python -m benchmarks.operations`.",
        "",
        *textwrap.wrap(text, WIDTH),
        "",
        *table(("network", "ours", "SpikingJelly's", "theirs / ours"), figures),
        "",
        *source(about),
    ]
    (RESULTS / "README.md").write_text("\n".join(page) + "\n", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
