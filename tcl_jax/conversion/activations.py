"""Norm-factors from activations of the analog network, read from a stream of images."""

from collections.abc import Callable, Iterable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from tcl_jax.conversion import graph as g
from tcl_jax.conversion.norms import Norms, by_channel, of_neurons
from tcl_jax.errors import InputError

Largest = dict[str, Float[np.ndarray, " c"]]
"""Largest activation of every channel, by name of neurons and of the output."""

_LAYER_BINS = 1 << 14
_CHANNEL_BINS = 1 << 10


def largest_activations(graph: g.SpikingGraph, batches: Iterable[Float[Array, "b ..."]]) -> Largest:
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
    return {n.name: of_neurons(n, largest[n.name], per_channel) for n in graph.neurons}


def percentile_norm(
    graph: g.SpikingGraph,
    batches: Callable[[], Iterable[Float[Array, "b ..."]]],
    largest: Largest,
    percent: float,
    per_channel: bool,
) -> Norms:
    r"""λ of a population is a percentile of its activations (Rueckauer et al. 2017, §2.2.2).

    .. math:: \lambda^l = \min \{ \lambda : P(a^l \le \lambda) \ge p / 100 \}

    over all activations of all calibration images, zeros included.

    Counted in equal bins between 0 and the largest activation, and rounded up to a bin's end: λ is
    never 0, and too large by at most that largest activation divided by the number of bins, which
    is 2¹⁴ for a layer and 2¹⁰ for a channel (8 KiB of counts).

    Args:
        graph: folded, with thresholds as traced.
        batches: makes a fresh iterator over the same images at each call, of which there are two
            at most.
        largest: from `largest_activations`.
        percent: p.
        per_channel: one λ a channel, of that channel's own activations.  A channel that is never
            active takes its layer's.
    """
    layers = {n.name: largest[n.name].max(keepdims=True) for n in graph.neurons}
    channels = {name: largest[name] for name in layers}
    norms: dict[str, np.ndarray] = {}
    if not per_channel or any((tops <= 0).any() for tops in channels.values()):
        norms = _percentiles(graph, batches(), layers, percent, _LAYER_BINS)
    if per_channel:
        for name, found in _percentiles(graph, batches(), channels, percent, _CHANNEL_BINS).items():
            norms[name] = np.where(channels[name] > 0, found, norms.get(name, found))
    return {n.name: of_neurons(n, norms[n.name], per_channel) for n in graph.neurons}


def _percentiles(
    graph: g.SpikingGraph, batches: Iterable[Array], tops: Largest, percent: float, bins: int
) -> dict[str, np.ndarray]:
    """One percentile for every maximum: those of a layer's channels, or its single own."""

    @jax.jit
    def of_batch(graph: g.SpikingGraph, x: Array) -> dict[str, Array]:
        found: dict[str, Array] = {}

        def count(name: str, a: Array) -> None:
            if name in tops:
                # What is silent has a percentile of 0, but 0 could not be divided by.
                width = jnp.asarray(np.where(tops[name] > 0, tops[name], 1)[None] / bins)
                columns = width.size
                bin_of = jnp.ceil(a.reshape(-1, columns) / width).astype(jnp.int32)
                bin_of = jnp.clip(bin_of, 0, bins) + jnp.arange(columns)[None] * (bins + 1)
                counts = jnp.bincount(bin_of.ravel(), length=columns * (bins + 1))
                found[name] = counts.reshape(columns, bins + 1)

        g.evaluate(graph, x, count)
        return found

    histograms = {name: np.zeros((top.size, bins + 1), np.int64) for name, top in tops.items()}
    for x in batches:
        for name, found in of_batch(graph, x).items():
            histograms[name] += np.asarray(found)
    percentiles = {}
    for name, histogram in histograms.items():
        enough = np.cumsum(histogram, -1) >= histogram.sum(-1, keepdims=True) * (percent / 100)
        # Bin 0 holds the zeros alone: a layer that is mostly silent still needs a λ above 0.
        ends = np.maximum(np.argmax(enough, -1), 1)
        percentiles[name] = tops[name].astype(np.float64) * ends / bins
    return percentiles
