"""Norm-factors λ: trained (TCL), or read from the activations of calibration images."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from tcl_jax.conversion import graph as g
from tcl_jax.errors import InputError

Norms = dict[str, float]
_BINS = 1 << 14


@dataclass(frozen=True)
class Method:
    """How norm-factors are found.

    Attributes:
        name: ``tcl`` (trained bounds), ``max`` (Diehl et al. 2015: the largest activation) or
            ``percentile`` (Rueckauer et al. 2017).
        percent: for ``percentile``, the part of all activations, zeros included, in percent, that
            is not clipped.
    """

    name: str
    percent: float = 100.0

    def __str__(self) -> str:
        return f"percentile:{self.percent:g}" if self.name == "percentile" else self.name


def method(text: str) -> Method:
    """Read a method: ``tcl``, ``max`` or ``percentile:P``.

    Raises:
        InputError: it is none of them.

    >>> from tcl_jax.conversion import norms
    >>> norms.method("percentile:99.9")
    Method(name='percentile', percent=99.9)
    """
    name, _, value = text.partition(":")
    if name in ("tcl", "max") and not value:
        return Method(name)
    if name == "percentile":
        try:
            percent = float(value)
        except ValueError:
            percent = -1.0
        if 0 < percent <= 100:
            return Method(name, percent)
        raise InputError(f"{text!r} names no percentile: write percentile:99.9")
    raise InputError(f"unknown norm {text!r}: the norms are tcl, max and percentile:P")


def with_norms(graph: g.SpikingGraph, norms: Norms) -> g.SpikingGraph:
    """The graph with thresholds set by neuron name (the output's too); others stay.

    >>> import jax, jax.numpy as jnp
    >>> from tcl_jax.conversion import trace, with_norms
    >>> graph = trace(lambda x: jax.nn.relu(x), jnp.zeros((1, 2)))
    >>> graph.neurons[0].threshold.item()
    inf
    >>> with_norms(graph, {graph.neurons[0].name: 2.0}).neurons[0].threshold.item()
    2.0
    """
    return g.SpikingGraph(
        tuple(
            replace(n, threshold=jnp.asarray(norms[n.name], graph.dtype))
            if isinstance(n, g.Neuron | g.Output) and n.name in norms
            else n
            for n in graph.nodes
        )
    )


def calibrate(
    graph: g.SpikingGraph,
    how: Method,
    batches: Callable[[], Iterable[Float[Array, "b ..."]]],
) -> Norms:
    """Norm-factors of every layer by one method, and of the output by its largest logit.

    Memory does not grow with the number of images.  Maxima are exact.  A percentile is read from
    2¹⁴ equal bins between 0 and a layer's maximum, in a second pass, and rounded up to a bin's end:
    it is at most maximum/2¹⁴ too large.

    Args:
        graph: folded, with thresholds as traced.
        how: the method.
        batches: makes a fresh iterator over batches of calibration images, at each call the same.

    Returns:
        λ by name of neurons, and of the output.

    Raises:
        InputError: ``tcl`` for a network with an unclipped ReLU; a layer that is never active.

    >>> import jax, jax.numpy as jnp
    >>> from tcl_jax.conversion import calibrate, method, trace
    >>> graph = trace(lambda x: jax.nn.relu(x) @ jnp.ones((2, 1)), jnp.zeros((1, 2)))
    >>> images = jnp.array([[1.0, 3.0], [2.0, -5.0]])
    >>> sorted(calibrate(graph, method("max"), lambda: [images]).values())
    [3.0, 4.0]
    """
    bare = [n.name for n in graph.neurons if not np.isfinite(np.asarray(n.threshold)).all()]
    if how.name == "tcl" and bare:
        raise InputError(
            f"the ReLU at {bare[0]!r} has no trained λ (nor have {len(bare) - 1} others): convert "
            "this network with --norm max or --norm percentile:99.9, or train it with TCL"
        )
    maxima = _maxima(graph, batches())
    dead = [name for name, top in maxima.items() if top <= 0]
    if dead:
        raise InputError(
            f"layer {dead[0]!r} is 0 on every calibration image, so that it has no norm-factor: "
            "the network did not learn; train it again, or calibrate on more images"
        )
    if how.name == "tcl":
        return {graph.output.name: maxima[graph.output.name]}
    if how.name == "max":
        return maxima
    found = _percentiles(graph, batches(), maxima, how.percent)
    return found | {graph.output.name: maxima[graph.output.name]}


def _maxima(graph: g.SpikingGraph, batches: Iterable[Array]) -> Norms:
    @jax.jit
    def of_batch(graph: g.SpikingGraph, x: Array) -> dict[str, Array]:
        found: dict[str, Array] = {}
        g.evaluate(graph, x, lambda name, a: found.__setitem__(name, jnp.max(a)))
        return found

    maxima: Norms = {}
    for x in batches:
        for name, top in of_batch(graph, x).items():
            maxima[name] = max(maxima.get(name, -np.inf), float(top))
    if not maxima:
        raise InputError("there are no calibration images: give at least one")
    return maxima


def _percentiles(
    graph: g.SpikingGraph, batches: Iterable[Array], maxima: Norms, percent: float
) -> Norms:
    @jax.jit
    def of_batch(graph: g.SpikingGraph, x: Array) -> dict[str, Array]:
        found: dict[str, Array] = {}

        def count(name: str, a: Array) -> None:
            if name in thresholds:
                bins = jnp.ceil(a.ravel() / (maxima[name] / _BINS)).astype(jnp.int32)
                found[name] = jnp.bincount(jnp.clip(bins, 0, _BINS), length=_BINS + 1)

        g.evaluate(graph, x, count)
        return found

    thresholds = {n.name for n in graph.neurons}
    counts = {name: np.zeros(_BINS + 1, np.int64) for name in thresholds}
    for x in batches:
        for name, found in of_batch(graph, x).items():
            counts[name] += np.asarray(found)
    norms = {}
    for name, histogram in counts.items():
        enough = np.cumsum(histogram) >= histogram.sum() * (percent / 100)
        # Bin 0 holds the zeros alone: a layer that is mostly silent still needs a λ above 0.
        norms[name] = maxima[name] * max(int(np.argmax(enough)), 1) / _BINS
    return norms
