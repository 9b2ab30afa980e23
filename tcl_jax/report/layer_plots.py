"""Plots of a conversion, layer by layer: activations, rates and errors."""

from collections.abc import Sequence
from pathlib import Path

import matplotlib
import numpy as np

matplotlib.use("Agg")

import matplotlib.pyplot as plt
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from tcl_jax.report.layers import PARTS, Layer
from tcl_jax.report.names import shortened
from tcl_jax.report.plots import save

_COLUMNS = 5


def plot_activations(layers: Sequence[Layer], path: Path, *, title: str) -> None:
    """Histograms of the ANN's activations in logarithmic scale, λ marked (the paper's Fig. 1A)."""
    figure, panels = _grid(len(layers))
    for axes, layer, name in zip(panels, layers, _names(layers), strict=False):
        edges = np.asarray(layer.edges)
        axes.stairs(layer.histogram, edges, fill=True, color="tab:blue")
        axes.axvline(1.0, color="tab:red", linewidth=1)
        axes.set_yscale("log")
        axes.minorticks_off()
        axes.set_xlim(0, max(1.05, edges[-1] * 1.02))
        axes.set_title(name, fontsize=7)
    figure.supxlabel("activation, in units of λ (red)", fontsize=9)
    figure.supylabel("number", fontsize=9)
    _save(figure, path, title)


def plot_rates(layers: Sequence[Layer], timesteps: int, path: Path, *, title: str) -> None:
    """Rates of spiking neurons against activations of the ANN at one latency T."""
    figure, panels = _grid(len(layers))
    for axes, layer, name in zip(panels, layers, _names(layers), strict=False):
        activation = np.asarray(layer.points["activation"])
        axes.plot((0, 1), (0, 1), color="0.6", linewidth=0.8)
        axes.scatter(activation, layer.points[str(timesteps)], s=2, alpha=0.4, linewidths=0)
        axes.set_xlim(-0.03, max(1.03, float(activation.max(initial=0)) * 1.02))
        axes.set_ylim(-0.03, 1.03)
        axes.set_title(name, fontsize=7)
    figure.supxlabel("activation of the ANN, in units of λ", fontsize=9)
    figure.supylabel(f"rate of the SNN over {timesteps} steps", fontsize=9)
    _save(figure, path, title)


def plot_errors(layers: Sequence[Layer], path: Path, *, title: str) -> None:
    """Mean absolute error by layer and latency, and its parts (which may cancel each other)."""
    times = sorted(layers[0].at)
    figure, panels = plt.subplots(
        1, len(times), figsize=(3.6 * len(times), 3.6), sharey=True, layout="constrained"
    )
    number = np.arange(1, len(layers) + 1)
    for axes, t in zip(np.atleast_1d(panels), times, strict=True):
        bottom = np.zeros(len(layers))
        for part in PARTS:
            height = np.asarray([getattr(layer.at[t], part) for layer in layers])
            axes.bar(number, height, bottom=bottom, label=part)
            bottom += height
        error = [layer.at[t].error for layer in layers]
        axes.plot(number, error, "k.-", linewidth=0.8, label="error")
        axes.set(xlabel="layer", title=f"T = {t}")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(alpha=0.3, axis="y")
    first = np.atleast_1d(panels)[0]
    first.set_ylabel("mean absolute error, in units of λ")
    first.legend(fontsize="x-small")
    _save(figure, path, title)


def _grid(count: int) -> tuple[Figure, np.ndarray]:
    columns = min(count, _COLUMNS)
    rows = -(-count // columns)
    width, height = 2.1 * columns + 0.5, 1.7 * rows + 0.6
    # Placed by hand: to lay out fifty panels by what is written in them takes longer than to draw.
    margins = {"left": 0.75 / width, "right": 1 - 0.1 / width}
    margins |= {"bottom": 0.5 / height, "top": 1 - 0.55 / height, "wspace": 0.3, "hspace": 0.4}
    figure, panels = plt.subplots(
        rows, columns, figsize=(width, height), squeeze=False, gridspec_kw=margins
    )
    for axes in panels.ravel()[count:]:
        axes.set_axis_off()
    for axes in panels.ravel():
        axes.tick_params(labelsize=6)
    return figure, panels.ravel()


def _names(layers: Sequence[Layer]) -> list[str]:
    """Without what all have in common, and not wider than a panel."""
    _, names = shortened([layer.name for layer in layers], "")
    return [name if len(name) <= 26 else "…" + name[-25:] for name in names]


def _save(figure: Figure, path: Path, title: str) -> None:
    figure.suptitle(title, fontsize=10)
    save(figure, path, dpi=130)
