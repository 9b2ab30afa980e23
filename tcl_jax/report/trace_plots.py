"""Pictures of what single neurons do for an image: rasters, membrane potentials and rates."""

from collections.abc import Mapping
from pathlib import Path

import matplotlib
import numpy as np
from jaxtyping import Float, Int

matplotlib.use("Agg")

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from tcl_jax.report.names import shortened
from tcl_jax.report.plots import COLOURS, save

ROWS = 100
"""Neurons of a layer in a raster at most, evenly spread over it."""


def plot_traces(
    traces: Mapping[str, tuple[Int[np.ndarray, "t ..."], Float[np.ndarray, "t ..."]]],
    image: Float[np.ndarray, "..."],
    path: Path,
    *,
    title: str,
) -> None:
    """Of each layer a raster, membrane potentials of three neurons, and the rates of all.

    Args:
        traces: spikes and potentials at t = 1, 2, ... for one image, by layer.
        image: as the network takes it; shown where it has two axes, or three and colours last.
        path: the PNG to write.
        title: above.
    """
    _, names = shortened(list(traces), "")
    height = 1.7 * len(traces) + 0.9
    figure = plt.figure(figsize=(11, height), layout="constrained")
    grid = figure.add_gridspec(len(traces), 4, width_ratios=(1.1, 3, 3, 1.6))
    _show(figure.add_subplot(grid[0, 0]), image)
    for row, (name, (spikes, potential)) in enumerate(zip(names, traces.values(), strict=True)):
        flat = spikes.reshape(len(spikes), -1)
        panels = [figure.add_subplot(grid[row, column]) for column in (1, 2, 3)]
        _raster(panels[0], flat)
        panels[0].set_title(f"{name}: {flat.shape[1]:,} neurons", fontsize=8)
        _potentials(panels[1], flat, potential.reshape(len(potential), -1))
        rates = np.sort(flat.mean(0))[::-1]
        panels[2].step(np.arange(1, rates.size + 1), rates, where="mid", linewidth=1.2)
        panels[2].set_title(f"mean rate {rates.mean():.3f}", fontsize=8)
        panels[2].set_ylim(0, max(1.0, float(rates.max())) * 1.05)
        panels[2].set_ylabel("rate", fontsize=7)
        for axes in panels:
            axes.tick_params(labelsize=6)
            axes.grid(alpha=0.25)
    for axes, label in zip(panels, ("time step", "time step", "neurons, by rate"), strict=True):
        axes.set_xlabel(label, fontsize=8)
    _save(figure, path, title)


def _show(axes: Axes, image: Float[np.ndarray, "..."]) -> None:
    axes.set_axis_off()
    low, high = float(np.min(image)), float(np.max(image))
    scaled = (image - low) / (high - low) if high > low else np.zeros_like(image)
    if scaled.ndim == 3 and scaled.shape[-1] == 1:
        scaled = scaled[..., 0]
    if scaled.ndim == 2 or (scaled.ndim == 3 and scaled.shape[-1] == 3):
        axes.imshow(scaled, cmap="gray", interpolation="nearest")


def _raster(axes: Axes, spikes: Int[np.ndarray, "t n"]) -> None:
    neurons = spikes.shape[1]
    shown = np.unique(np.linspace(0, neurons - 1, min(neurons, ROWS)).round().astype(int))
    t, row = np.nonzero(spikes[:, shown])
    axes.scatter(t + 1, shown[row], marker="|", s=6, linewidths=0.7, color="0.15")
    axes.set_xlim(0.5, len(spikes) + 0.5)
    margin = 0.02 * neurons + 0.5
    axes.set_ylim(-margin, neurons - 1 + margin)
    axes.set_ylabel("neuron", fontsize=7)


def _potentials(
    axes: Axes, spikes: Int[np.ndarray, "t n"], potential: Float[np.ndarray, "t n"]
) -> None:
    """Of three neurons: among those that fire, a tenth, half and nine tenths fire more often."""
    rates = spikes.mean(0)
    firing = np.argsort(-rates, kind="stable")[: int((rates > 0).sum())]
    if not firing.size:
        firing = np.argsort(-potential[-1])
    places = np.round(np.array([0.1, 0.5, 0.9]) * (firing.size - 1)).astype(int)
    chosen = firing[np.unique(places)].tolist()
    t = np.arange(1, len(spikes) + 1)
    above = axes.get_xaxis_transform()  # spikes stand in lines of their own, below the upper edge
    for line, (neuron, colour) in enumerate(zip(chosen, COLOURS, strict=False)):
        label = f"{neuron}, rate {rates[neuron]:.2f}"
        axes.plot(t, potential[:, neuron], color=colour, linewidth=0.9, label=label)
        fired = t[spikes[:, neuron] > 0]
        height = np.full(fired.size, 0.96 - 0.06 * line)
        axes.plot(fired, height, "|", color=colour, markersize=4, transform=above)
    axes.axhline(1.0, color="0.4", linestyle="--", linewidth=0.7)
    axes.set_xlim(0.5, len(spikes) + 0.5)
    low, high = min(0.0, float(potential[:, chosen].min())), float(potential[:, chosen].max())
    axes.set_ylim(low - 0.05, max(1.05, high) + 0.35 * (max(1.0, high) - low))
    axes.set_ylabel("V / θ", fontsize=7)
    axes.set_title("potentials after each step, and spikes, of neurons", fontsize=8)
    axes.legend(fontsize=6, loc="lower right", framealpha=0.6)


def _save(figure: Figure, path: Path, title: str) -> None:
    figure.suptitle(title, fontsize=10)
    save(figure, path, dpi=120)
