"""Tables for the terminal."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from tcl_jax.report.layers import PARTS, Layer

_console = Console()


def print_conversion(about: Mapping[str, Any]) -> None:
    """λ of every layer, and how exactly the converted network computes what the trained one did."""
    table = Table(title=f"norm-factors ({about['norm']})")
    table.add_column("neurons")
    table.add_column("λ", justify="right")
    for name, lam in about["lambda"].items():
        table.add_row(name, _norm(lam))
    _console.print(table)
    step, last = about["checkpoint_step"], about["total_steps"]
    if step < last:
        _console.print(f"this is the network at step {step} of {last}, not at the end of training")
    v = about["verification"]
    _console.print(
        f"folded = trained network: max |Δ logit| {v['max_abs_logit_difference_folded']:.2e} "
        f"(largest logit {v['largest_logit']:.2f}), the same class on {v['same_class']} of "
        f"{v['images']} test images; normalised = folded: max |Δ logit| "
        f"{v['max_abs_logit_difference_normalised']:.2e}",
        highlight=False,
        soft_wrap=True,
    )
    if "same_class_as_trained" in v:
        _console.print(
            f"trained in {about['trained_in']}, converted from its float32 weights: max |Δ logit| "
            f"{v['max_abs_logit_difference_as_trained']:.2e}, the same class on "
            f"{v['same_class_as_trained']} of {v['images']} test images",
            highlight=False,
            soft_wrap=True,
        )


def _norm(lam: float | list[Any]) -> str:
    """One λ as it is; of one a channel the range, the median and the number."""
    if isinstance(lam, float):
        return _digits(lam)
    low, median, high = (_digits(f(lam)) for f in (np.min, np.median, np.max))
    return f"{low}–{high}, median {median} of {np.size(lam)}"


def _digits(value: float) -> str:
    # Bounds from weights alone grow beyond what can be read in full.
    return f"{value:.4f}" if value < 1e5 else f"{value:.3e}"


def print_layers(layers: Sequence[Layer], timesteps: int) -> None:
    """What spiking does to every layer at one latency T."""
    table = Table(title=f"ANN against SNN at T = {timesteps}, errors in % of λ")
    table.add_column("neurons")
    for heading in ("rate", "dead", "saturated", "error", *PARTS):
        table.add_column(heading, justify="right")
    for layer in layers:
        at = layer.at[timesteps]
        parts = (f"{100 * getattr(at, part):.2f}" for part in PARTS)
        table.add_row(
            layer.name,
            f"{at.rate:.3f}",
            f"{layer.dead:.1%}",
            f"{at.saturated:.1%}",
            f"{100 * at.error:.2f}",
            *parts,
        )
    _console.print(table)


def print_curve(
    accuracy: Sequence[float],
    ann_accuracy: Mapping[str, float],
    latencies: Sequence[int],
    title: str,
) -> None:
    """Accuracy at some latencies beside the analog network's, and the loss by conversion.

    Args:
        accuracy: at T = 1, 2, ...
        ann_accuracy: the analog network's by the type that it computes in, float32 first.
        latencies: those to show.
        title: above the table.
    """
    (_, ann), *others = ann_accuracy.items()
    table = Table(title=title)
    for heading in ("T", "SNN accuracy", "ANN accuracy", "conversion loss"):
        table.add_column(heading, justify="right")
    for t in latencies:
        snn = accuracy[t - 1]
        table.add_row(str(t), f"{snn:.2%}", f"{ann:.2%}", f"{100 * (ann - snn):+.2f} points")
    _console.print(table)
    for dtype, other in others:
        _console.print(f"the ANN in {dtype}, as it was trained: {other:.2%}", highlight=False)


def print_energy(
    content: Mapping[str, Any], accuracy: Sequence[float], ann_accuracy: float
) -> None:
    """Activity of every layer, and energy at some latencies beside the analog network's.

    Args:
        content: of `energy.json`.
        accuracy: at T = 1, 2, ...
        ann_accuracy: the analog network's.
    """
    t = content["timesteps"]
    table = Table(title=f"activity up to T = {t}, an image on average")
    table.add_column("neurons of")
    for heading in ("number", "spikes a step", "synaptic operations"):
        table.add_column(heading, justify="right")
    for layer in content["layers"]:
        additions = f"{layer['additions']:,.0f}"
        table.add_row(layer["name"], f"{layer['neurons']:,}", f"{layer['rate']:.4f}", additions)
    _console.print(table)
    cost, ann = content["cost_pj"], content["ann"]
    table = Table(
        title=f"energy an image, at {cost['ac']:g} pJ an addition (AC), {cost['mac']:g} pJ a MAC"
    )
    for heading in ("T", "accuracy", "ACs", "MACs", "energy, µJ", "of the ANN's"):
        table.add_column(heading, justify="right")
    rows = [(f"{t}", accuracy[int(t) - 1], at) for t, at in content["at"].items()]
    for label, right, at in [*rows, ("ANN", ann_accuracy, ann)]:
        part = f"{at['energy_uj'] / ann['energy_uj']:.2f}" if ann["energy_uj"] else "–"
        energy = f"{at['energy_uj']:,.3f}"
        table.add_row(
            label, f"{right:.2%}", f"{at['additions']:,.0f}", f"{at['macs']:,}", energy, part
        )
    _console.print(table)


def print_adaptive(content: Mapping[str, Any]) -> None:
    """Adaptive latency beside fixed ones.

    Args:
        content: of `adaptive.json`.
    """
    at_mean, seconds = content["accuracy_fixed_at_mean"], content["seconds"]
    rows = [
        (f"fixed T = {content['timesteps']}", content["accuracy_fixed"], content["timesteps"]),
        (f"fixed T = {at_mean['T']}", at_mean["accuracy"], at_mean["T"]),
        ("adaptive", content["accuracy"], content["mean_steps"]),
    ]
    times = (f"{seconds['fixed']:.1f}", "–", f"{seconds['adaptive']:.1f}")
    table = Table(
        title=f"{content['network']} on {content['images']} test images of {content['data']}"
    )
    for heading in ("latency", "accuracy", "mean T", "seconds"):
        table.add_column(heading, justify="right")
    for (label, accuracy, steps), time in zip(rows, times, strict=True):
        table.add_row(label, f"{accuracy:.2%}", f"{steps:.2f}", time)
    _console.print(table)
    held_out = content["held_out"]
    loss = 100 * (held_out["accuracy_fixed"] - held_out["accuracy"])
    bound = "∞" if content["bound"] is None else f"{content['bound']:.3f}"
    shares = ", ".join(f"{p} % by {t:g}" for p, t in content["percentiles"].items())
    _console.print(
        f"stopped: {shares}; at a margin of {bound}, which cost {loss:+.2f} points on "
        f"{held_out['images']} training images ({content['max_loss_points']:g} allowed)",
        highlight=False,
        soft_wrap=True,
    )
