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
    v = about["verification"]
    _console.print(
        f"folded = trained network: max |Δ logit| {v['max_abs_logit_difference_folded']:.2e} "
        f"(largest logit {v['largest_logit']:.2f}), the same class on {v['same_class']} of "
        f"{v['images']} test images; normalised = folded: max |Δ logit| "
        f"{v['max_abs_logit_difference_normalised']:.2e}",
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
    accuracy: Sequence[float], ann_accuracy: float, latencies: Sequence[int], title: str
) -> None:
    """Accuracy at some latencies beside the analog network's, and the loss by conversion."""
    table = Table(title=title)
    for heading in ("T", "SNN accuracy", "ANN accuracy", "conversion loss"):
        table.add_column(heading, justify="right")
    for t in latencies:
        snn = accuracy[t - 1]
        table.add_row(
            str(t), f"{snn:.2%}", f"{ann_accuracy:.2%}", f"{100 * (ann_accuracy - snn):+.2f} points"
        )
    _console.print(table)
