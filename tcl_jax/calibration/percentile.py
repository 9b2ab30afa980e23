"""Norm-factors that are percentiles of activations, read from a stream of images."""

from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int, Real

from tcl_jax import graph as g
from tcl_jax.calibration.method import (
    NORMS,
    Batches,
    Largest,
    NormFactors,
    NormMethod,
    check_active,
    of_neurons,
)
from tcl_jax.errors import InputError

# Passes over the images, and bits that each tells apart of a float32 without its sign: 31.
_LAYER_DIGITS = (2, 16)
_CHANNEL_DIGITS = (3, 11)


@NORMS.register("percentile")
@dataclass(frozen=True)
class Percentile(NormMethod):
    r"""λ of a population is a percentile of its activations (Rueckauer et al. 2017, §2.2.2).

    .. math:: \lambda^l = \min \{ \lambda : P(a^l \le \lambda) \ge p / 100 \}

    over all activations of all calibration images, zeros included; where that is 0, over those
    above 0, for λ must be.

    It is an activation of the data, exact to float32 however far apart these lie: a single one that
    is a million times too large moves it by no more than one of common size would.  Memory does not
    grow with the images: 512 KiB of counts a layer, or 16 KiB a channel.  Images are read twice
    more, for channels three times, and where some are never active five.
    """

    reference: ClassVar[str] = "Rueckauer et al. 2017"

    percent: float
    """p: the part of all activations, in percent, that is not clipped."""
    channel: bool = False
    """One λ a channel, of that channel's own activations.  A channel that is never active takes its
    layer's."""

    def __post_init__(self) -> None:
        if not 0 < self.percent <= 100:
            raise InputError(
                f"{self.percent} is no percentile: write percentile:P with P above 0 and at most "
                "100, as in percentile:99.9"
            )

    def norm_factors(self, graph: g.Graph, batches: Batches, largest: Largest) -> NormFactors:
        check_active(graph, largest, self)
        sizes = {n.name: largest[n.name].size for n in graph.neurons}
        found: dict[str, np.ndarray] = {}
        if not self.channel or any((largest[name] <= 0).any() for name in sizes):
            layers = dict.fromkeys(sizes, 1)
            found = _percentiles(graph, batches, layers, self.percent, _LAYER_DIGITS)
        if self.channel:
            channels = _percentiles(graph, batches, sizes, self.percent, _CHANNEL_DIGITS)
            for name, own in channels.items():
                found[name] = np.where(own > 0, own, found.get(name, own))
        return {n.name: of_neurons(n.op.clip, found[n.name], self.channel) for n in graph.neurons}


def _percentiles(
    graph: g.Graph,
    batches: Batches,
    columns: dict[str, int],
    percent: float,
    digits: tuple[int, int],
) -> dict[str, np.ndarray]:
    """One percentile for each column of a population: its channels, or one for all.

    By radix selection.  Bits of floats that are not negative, read as a whole number, are in the
    order of the floats: one pass over the images counts how many begin with which bits, the next
    tells apart those that begin as the percentile does.
    """
    passes, digit = digits
    begins = {name: np.zeros(size, np.int32) for name, size in columns.items()}
    ranks: dict[str, np.ndarray] = {}
    for left in range((passes - 1) * digit, -1, -digit):
        counts = {name: np.zeros((size, 1 << digit), np.int64) for name, size in columns.items()}
        for x in batches():
            for name, found in _count(graph, x, begins, left, digit=digit).items():
                counts[name] += np.asarray(found)
        for name, histogram in counts.items():
            rank = ranks[name] if name in ranks else _rank(histogram, percent)
            below = np.cumsum(histogram, -1)
            next_digit = np.argmax(below >= rank[:, None], -1)
            smaller = np.take_along_axis(below - histogram, next_digit[:, None], -1)[:, 0]
            ranks[name] = rank - smaller
            begins[name] = (begins[name] << digit | next_digit).astype(np.int32)
    return {name: bits.view(np.float32) for name, bits in begins.items()}


@partial(jax.jit, static_argnames="digit")
def _count(
    graph: g.Graph,
    x: Real[Array, "b ..."],
    begins: dict[str, Int[Array, " _"]],
    left: int | Int[Array, ""],
    *,
    digit: int,
) -> dict[str, Int[Array, "_ bins"]]:
    """How many activations of each column have which next digit, of those that begin so."""
    found: dict[str, Array] = {}

    def count(name: str, a: Array) -> None:
        if name in begins:
            columns, bins = begins[name].size, 1 << digit
            a = a.astype(jnp.float32).reshape(-1, columns)
            # XLA may take what is smaller than a normal float for 0.
            above = a >= jnp.finfo(jnp.float32).tiny
            bits = jnp.where(above, jax.lax.bitcast_convert_type(a, jnp.int32), 0) >> left
            bin_of = jnp.where(bits >> digit == begins[name][None], bits & bins - 1, bins)
            bin_of += jnp.arange(columns, dtype=bin_of.dtype)[None] * (bins + 1)
            counts = jnp.bincount(bin_of.ravel(), length=columns * (bins + 1))
            found[name] = counts.reshape(columns, -1)[:, :-1]

    g.evaluate(graph, x, count)
    return found


def _rank(histogram: Int[np.ndarray, "c bins"], percent: float) -> Int[np.ndarray, " c"]:
    """Which activation of a column is its percentile, counted from the smallest; 1 is the first."""
    total, silent = histogram.sum(-1), histogram[:, 0]
    rank = np.ceil(total * (percent / 100))
    of_active = silent + np.maximum(np.ceil((total - silent) * (percent / 100)), 1)
    return np.asarray(np.where(rank > silent, rank, of_active), np.int64)
