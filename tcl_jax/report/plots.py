"""Plots, written beside the tables that they show."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np

matplotlib.use("Agg")

import matplotlib.pyplot as plt
from matplotlib.ticker import ScalarFormatter


def plot_curves(
    curves: Mapping[str, Sequence[float]],
    ann_accuracy: Mapping[str, float],
    path: Path,
    *,
    title: str,
) -> None:
    """Accuracy against latency T, on a logarithmic axis, with the analog networks' as lines.

    Args:
        curves: accuracy at T = 1, 2, ... by label.
        ann_accuracy: horizontal lines by label; one that is also a curve's has its colour.
        path: the PNG to write.
        title: above the plot.
    """
    figure, axes = plt.subplots(figsize=(7, 4.5), layout="constrained")
    colour = {}
    for label, accuracy in curves.items():
        t = np.arange(1, len(accuracy) + 1)
        (line,) = axes.plot(t, 100 * np.asarray(accuracy), label=label, linewidth=1.8)
        colour[label] = line.get_color()
    for label, level in ann_accuracy.items():
        axes.axhline(
            100 * level,
            color=colour.get(label, "0.4"),
            linestyle="--",
            linewidth=1,
            label=f"ANN{', ' + label if len(ann_accuracy) > 1 else ''} {level:.2%}",
        )
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter(ScalarFormatter())
    axes.set_xticks(
        [t for t in (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000) if t <= _longest(curves)]
    )
    axes.set_xlim(1, max(2, _longest(curves)))
    axes.set_ylim(0, 100)
    axes.set(xlabel="latency T (time steps)", ylabel="test accuracy (%)", title=title)
    axes.grid(alpha=0.3)
    axes.legend(loc="lower right", fontsize="small")
    figure.savefig(path, dpi=150)
    plt.close(figure)


def _longest(curves: Mapping[str, Sequence[float]]) -> int:
    return max(len(accuracy) for accuracy in curves.values())


def plot_lambda(history: Mapping[str, Sequence[float]], path: Path, *, title: str) -> None:
    """λ of every layer against epochs (the paper's Fig. 3)."""
    figure, axes = plt.subplots(figsize=(7, 4.5), layout="constrained")
    colours = plt.get_cmap("viridis")(np.linspace(0, 0.95, len(history)))
    for (layer, values), colour in zip(history.items(), colours, strict=True):
        axes.plot(range(1, len(values) + 1), values, label=layer, color=colour)
    axes.set(xlabel="epoch", ylabel="λ", title=title)
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3)
    axes.legend(fontsize="x-small", ncols=2)
    figure.savefig(path, dpi=150)
    plt.close(figure)


def plot_training(epochs: Sequence[Mapping[str, Any]], path: Path, *, title: str) -> None:
    """Loss and accuracy on training and test images against epochs (the paper's Figs. 4 and 5)."""
    figure, panels = plt.subplots(1, 2, figsize=(9, 3.8), layout="constrained")
    number = [r["epoch"] for r in epochs]
    for axes, what, factor in zip(panels, ("loss", "accuracy"), (1, 100), strict=True):
        for part in ("train", "test"):
            axes.plot(number, [factor * r[f"{part}_{what}"] for r in epochs], label=part)
        axes.set(xlabel="epoch", ylabel=what + (" (%)" if factor == 100 else ""))
        axes.grid(alpha=0.3)
        axes.legend(fontsize="small")
    figure.suptitle(title)
    figure.savefig(path, dpi=150)
    plt.close(figure)
