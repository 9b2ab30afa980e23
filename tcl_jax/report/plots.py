"""Plots, written beside the tables that they show."""

from collections.abc import Mapping, Sequence
from itertools import cycle
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from cycler import cycler
from jaxtyping import Float

matplotlib.use("Agg")

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, ScalarFormatter

from tcl_jax.record import whole
from tcl_jax.simulation.values import ErrorCurve

COLOURS = matplotlib.color_sequences["tab10"]


def save(figure: Figure, path: Path, dpi: int = 150) -> None:
    """Write a figure whole, and let go of it."""
    with whole(path, "wb") as file:
        figure.savefig(file, dpi=dpi)
    plt.close(figure)


def plot_curves(
    curves: Mapping[str, Sequence[float]],
    ann_accuracy: Mapping[str, float],
    path: Path,
    *,
    title: str,
    spreads: Mapping[str, Float[np.ndarray, " t"] | None] | None = None,
    errors: ErrorCurve | None = None,
) -> None:
    """Accuracy against latency T, on a logarithmic axis, with the analog networks' as lines.

    Args:
        curves: accuracy at T = 1, 2, ... by label.
        ann_accuracy: horizontal lines by label; one that is also a curve's has its colour.
        path: the PNG to write.
        title: above the plot.
        spreads: how far to either side of a curve a band goes, by its label.
        errors: of the values, for a second panel.
    """
    many = len(curves) > 6
    size = (10 if many or errors is not None else 7, 4.5)
    figure = plt.figure(figsize=size, layout="constrained")
    axes = figure.add_subplot(1, 1 if errors is None else 2, 1)
    axes.set_prop_cycle(cycler(linestyle=["-", "--", ":", "-."]) * cycler(color=COLOURS))
    colour = {}
    for label, accuracy in curves.items():
        t, percent = np.arange(1, len(accuracy) + 1), 100 * np.asarray(accuracy)
        (line,) = axes.plot(t, percent, label=label, linewidth=1.8)
        colour[label] = line.get_color()
        if spreads and (spread := spreads.get(label)) is not None:
            band = percent - 100 * spread, percent + 100 * spread
            axes.fill_between(t, *band, color=line.get_color(), alpha=0.2, linewidth=0)
    for (label, level), dashes in zip(ann_accuracy.items(), cycle(("--", ":"))):
        axes.axhline(
            100 * level,
            color=colour.get(label, "0.4"),
            linestyle=dashes,
            linewidth=1,
            label=f"ANN{', ' + label if len(ann_accuracy) > 1 else ''} {level:.2%}",
        )
    _of_latency(axes, max(len(accuracy) for accuracy in curves.values()))
    axes.set(title=title)
    axes.grid(alpha=0.3)
    if many:
        figure.legend(loc="outside right upper", fontsize="small")
    else:
        axes.legend(fontsize="small")
    if errors is not None:
        _plot_errors(figure.add_subplot(1, 2, 2), errors)
    save(figure, path)


def _plot_errors(axes: Axes, errors: ErrorCurve) -> None:
    """Errors as parts of the values against T, on logarithmic axes, beside a line of 1/T."""
    t = np.arange(1, len(errors.rms) + 1)
    for label, error in {"root mean square": errors.rms, "largest": errors.largest}.items():
        axes.plot(t, error / errors.scale, label=label, linewidth=1.8)
    axes.plot(t, errors.rms[-1] / errors.scale * t[-1] / t, "k:", linewidth=1, label="1/T")
    _on_latencies(axes, len(t))
    axes.set_yscale("log")
    axes.set(ylabel="error, of the values' root mean square")
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small")


def _of_latency(axes: Axes, longest: int) -> None:
    """Accuracy in percent against T from 1, on a logarithmic axis."""
    _on_latencies(axes, longest)
    axes.set_ylim(0, 100)
    axes.set(ylabel="test accuracy (%)")


def _on_latencies(axes: Axes, longest: int) -> None:
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter(ScalarFormatter())
    axes.set_xticks([t for t in (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000) if t <= longest])
    axes.set_xlim(1, max(2, longest))
    axes.set(xlabel="latency T (time steps)")


def plot_lambda(history: Mapping[str, Sequence[float]], path: Path, *, title: str) -> None:
    """λ of every layer against epochs (the paper's Fig. 3)."""
    figure, axes = plt.subplots(figsize=(7, 4.5), layout="constrained")
    colours = plt.get_cmap("viridis")(np.linspace(0, 0.95, len(history)))
    for (layer, values), colour in zip(history.items(), colours, strict=True):
        axes.plot(range(1, len(values) + 1), values, label=layer, color=colour)
    axes.set(xlabel="epoch", ylabel="λ", title=title)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3)
    columns = -(-len(history) // 27)  # as many as fit beside the plot, one below the other
    figure.legend(loc="outside right upper", fontsize="x-small", ncols=columns)
    save(figure, path)


def plot_training(epochs: Sequence[Mapping[str, Any]], path: Path, *, title: str) -> None:
    """Loss and accuracy on training and test images against epochs (the paper's Figs. 4 and 5)."""
    figure, panels = plt.subplots(1, 2, figsize=(9, 3.8), layout="constrained")
    number = [r["epoch"] for r in epochs]
    for axes, what, factor in zip(panels, ("loss", "accuracy"), (1, 100), strict=True):
        for part in ("train", "test"):
            axes.plot(number, [factor * r[f"{part}_{what}"] for r in epochs], label=part)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set(xlabel="epoch", ylabel=what + (" (%)" if factor == 100 else ""))
        axes.grid(alpha=0.3)
        axes.legend(fontsize="small")
    figure.suptitle(title)
    save(figure, path)


def plot_energy(
    energy: Sequence[float],
    most: tuple[Sequence[float], Sequence[float]],
    ann_energy: float,
    accuracy: Sequence[float],
    ann_accuracy: float,
    path: Path,
    *,
    title: str,
) -> None:
    """Accuracy and energy against latency T, and against each other, beside the analog network's.

    Args:
        energy: in µJ an image, at T = 1, 2, ...
        most: between what that of most images lies, at the same T.
        ann_energy: the analog network's.
        accuracy: in [0, 1], at the same T.
        ann_accuracy: the analog network's.
        path: the PNG to write.
        title: above the plot.
    """
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.2), layout="constrained")
    t = range(1, len(energy) + 1)
    left.plot(t, 100 * np.asarray(accuracy), label="accuracy", linewidth=1.8)
    left.axhline(100 * ann_accuracy, color="C0", linestyle="--", linewidth=1, label="of the ANN")
    _of_latency(left, len(energy))
    other = left.twinx()
    other.plot(t, energy, color="C1", label="energy", linewidth=1.8)
    other.fill_between(t, *most, color="C1", alpha=0.2, linewidth=0, label="of 9 in 10 images")
    other.axhline(ann_energy, color="C1", linestyle="--", linewidth=1, label="of the ANN")
    other.set(ylabel="energy an image (µJ)")
    other.set_ylim(bottom=0)
    (lines, names), (more, others) = (a.get_legend_handles_labels() for a in (left, other))
    left.legend([*lines, *more], [*names, *others], fontsize="small", loc="upper left")
    right.plot(energy, 100 * np.asarray(accuracy), label="SNN, by T", linewidth=1.8)
    right.plot(ann_energy, 100 * ann_accuracy, "o", color="0.4", label="ANN")
    right.set(xlabel="energy an image (µJ)", ylabel="test accuracy (%)")
    right.set_xscale("log")
    right.set_ylim(0, 100)
    right.legend(fontsize="small", loc="lower right")
    for axes in (left, right):
        axes.grid(alpha=0.3)
    figure.suptitle(title)
    save(figure, path)


def plot_adaptive(
    stopped_at: Sequence[int],
    accuracy: Sequence[float],
    adaptive_accuracy: float,
    path: Path,
    *,
    title: str,
) -> None:
    """When images stopped, and accuracy at their mean latency beside that at fixed ones.

    Args:
        stopped_at: numbers of images, at t = 1, 2, ...
        accuracy: in [0, 1], at the same fixed T.
        adaptive_accuracy: of the images as they stopped.
        path: the PNG to write.
        title: above the plot.
    """
    t = np.arange(1, len(stopped_at) + 1)
    mean = float(np.average(t, weights=stopped_at))
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4.2), layout="constrained")
    left.bar(t, np.asarray(stopped_at) / np.sum(stopped_at) * 100, width=1.0)
    left.axvline(mean, color="0.2", linestyle="--", linewidth=1, label=f"mean {mean:.1f}")
    left.set(xlabel="stopped at t", ylabel="images (%)")
    right.plot(t, 100 * np.asarray(accuracy), label="fixed T", linewidth=1.8)
    right.plot(mean, 100 * adaptive_accuracy, "o", color="C1", label="adaptive, mean T")
    _of_latency(right, t.size)
    for axes in (left, right):
        axes.grid(alpha=0.3)
    left.legend(fontsize="small")
    right.legend(fontsize="small", loc="lower right")  # below any curve that rises
    figure.suptitle(title)
    save(figure, path)
