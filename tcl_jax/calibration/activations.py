"""Norm-factors from activations of the analog network, read from a stream of images."""

from collections.abc import Callable, Iterable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Real

from tcl_jax import graph as g
from tcl_jax.calibration.norms import Norms, by_channel, of_neurons
from tcl_jax.errors import InputError

Largest = dict[str, Float[np.ndarray, " _"]]
"""Largest activation of every channel, by name of neurons and of the output."""

# Passes over the images, and bits that each tells apart of a float32 without its sign: 31.
_LAYER_DIGITS = (2, 16)
_CHANNEL_DIGITS = (3, 11)


def largest_activations(
    graph: g.SpikingGraph, batches: Iterable[Real[Array | np.ndarray, "_ ..."]]
) -> Largest:
    """The largest activation of every channel of every population, and the largest logits.

    Raises:
        InputError: there are no images, or they are not finite.
    """

    @jax.jit
    def of_batch(graph: g.SpikingGraph, x: Array) -> tuple[Array, dict[str, Array]]:
        found: dict[str, Array] = {}
        g.evaluate(graph, x, lambda name, a: found.__setitem__(name, by_channel(a).max(0)))
        return jnp.isfinite(x).all(), found

    largest: Largest = {}
    for number, x in enumerate(batches, start=1):
        x = g.images(graph, x)
        if not len(x):
            raise InputError(f"calibration batch {number} holds no images: leave it out")
        finite, tops = of_batch(graph, x)
        if not finite:
            raise InputError(
                f"calibration batch {number} holds values that are not finite: mend it"
            )
        for name, top in tops.items():
            largest[name] = np.maximum(largest.get(name, -np.inf), np.asarray(top))
    if not largest:
        raise InputError("there are no calibration images: give at least one")
    return largest


def max_norm(graph: g.SpikingGraph, largest: Largest, per_channel: bool) -> Norms:
    r"""λ of a population is its largest activation (Diehl et al. 2015, data-based normalisation).

    .. math:: \lambda^l = \max_{x, i} a^l_i(x)

    over calibration images x and neurons i of the layer or channel.

    Args:
        graph: folded, with thresholds as traced.
        largest: from `largest_activations`.
        per_channel: whether i runs over a channel and not the layer.
    """
    return {n.name: of_neurons(n.op.clip, largest[n.name], per_channel) for n in graph.neurons}


def percentile_norm(
    graph: g.SpikingGraph,
    batches: Callable[[], Iterable[Real[Array | np.ndarray, "_ ..."]]],
    largest: Largest,
    percent: float,
    per_channel: bool,
) -> Norms:
    r"""λ of a population is a percentile of its activations (Rueckauer et al. 2017, §2.2.2).

    .. math:: \lambda^l = \min \{ \lambda : P(a^l \le \lambda) \ge p / 100 \}

    over all activations of all calibration images, zeros included; where that is 0, over those
    above 0, for λ must be.

    It is an activation of the data, exact to float32 however far apart these lie: a single one that
    is a million times too large moves it by no more than one of common size would.  Memory does not
    grow with the images: 512 KiB of counts a layer, or 16 KiB a channel.

    Args:
        graph: folded, with thresholds as traced.
        batches: makes a fresh iterator over the same images at each call, of which there are two,
            for channels three, and where some are never active five.
        largest: from `largest_activations`.
        percent: p.
        per_channel: one λ a channel, of that channel's own activations.  A channel that is never
            active takes its layer's.
    """
    sizes = {n.name: largest[n.name].size for n in graph.neurons}
    norms: dict[str, np.ndarray] = {}
    if not per_channel or any((largest[name] <= 0).any() for name in sizes):
        norms = _percentiles(graph, batches, dict.fromkeys(sizes, 1), percent, _LAYER_DIGITS)
    if per_channel:
        of_channels = _percentiles(graph, batches, sizes, percent, _CHANNEL_DIGITS)
        for name, found in of_channels.items():
            norms[name] = np.where(found > 0, found, norms.get(name, found))
    return {n.name: of_neurons(n.op.clip, norms[n.name], per_channel) for n in graph.neurons}


def _percentiles(
    graph: g.SpikingGraph,
    batches: Callable[[], Iterable[Array | np.ndarray]],
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
    graph: g.SpikingGraph,
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
    return np.where(rank > silent, rank, of_active).astype(np.int64)
