"""Where a conversion loses accuracy: every layer's activations against its neurons' rates."""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Real

from tcl_jax import graph as g
from tcl_jax.errors import InputError
from tcl_jax.promotion import against
from tcl_jax.simulation.dynamics import init_state, step
from tcl_jax.simulation.neurons import IF
from tcl_jax.simulation.settings import Simulation
from tcl_jax.simulation.simulator import check_times

_BINS = 100
_POINTS = 2000
_ROOM = 1 << 30
"""Bytes that values of all neurons may take at a time, as activations and membrane potentials."""
PARTS = ("clipping", "quantisation", "inherited", "unevenness")


@dataclass(frozen=True)
class AtLatency:
    """One layer at one latency T.  Errors are means of absolute values, in units of λ.

    Attributes:
        rate: spikes a step and neuron.
        saturated: part of neurons and images whose membrane potential ends at θ or above: more
            arrived than one spike a step can carry.
        error: between activation a and rate.
        clipping: a − min(a, λ), which the ANN had and no rate can show.
        quantisation: what is lost as a rate is a multiple of λ/T.
        inherited: what the layers before did to the mean current.
        unevenness: what the order of arriving spikes does: spikes fired too early, or not yet.
    """

    rate: float
    saturated: float
    error: float
    clipping: float
    quantisation: float
    inherited: float
    unevenness: float


@dataclass(frozen=True)
class Layer:
    """One layer's report.

    Attributes:
        name: of its neurons.
        neurons: their number.
        dead: part of them that fired on no image up to the longest T.
        at: by T.
        edges: of the histogram's bins, in units of λ.
        histogram: number of activations of the ANN by bin; the last takes what is beyond.
        points: activations and, by T, rates of some neurons, for a scatter plot.
    """

    name: str
    neurons: int
    dead: float
    at: dict[int, AtLatency]
    edges: list[float]
    histogram: list[int]
    points: dict[str, list[float]]


def layer_report(
    graph: g.Graph,
    batches: Iterable[tuple[Real[Array, "_ ..."], Bool[Array, " _"]]],
    timesteps: Sequence[int],
    *,
    v0: float = 0.0,
) -> list[Layer]:
    r"""Compare the activations of a network with the rates of its spiking neurons, layer by layer.

    In units of λ, with activation a of the ANN, n spikes of a neuron in T steps and its mean
    current z̄, from its membrane by n + V(T) − V(0) = T z̄, the error is split exactly,

    .. math::
        a - \frac{n}{T} = \underbrace{a - \bar a}_\text{clipping}
        + \underbrace{\bar a - q(\bar a)}_\text{quantisation}
        + \underbrace{q(\bar a) - q(\bar z)}_\text{inherited}
        + \underbrace{q(\bar z) - \tfrac{n}{T}}_\text{unevenness}

    where ā = min(a, 1) and q(z) = clip(⌊T z + V(0)⌋, 0, T) / T is the rate of a neuron under a
    constant current.  Clipping, quantisation and unevenness are those of Bu et al. 2022 (QCFS),
    who look at one layer with exact inputs; *inherited* is what a layer gets from those before.

    Args:
        graph: normalised, all thresholds 1.  Read as an analog network, it is the ANN.
        batches: images, and which of them count.
        timesteps: latencies T to report at.
        v0: membrane potential at the start, as a fraction of the threshold.

    Returns:
        Reports of all layers of neurons, in order; the output's is not among them.

    Raises:
        InputError: a latency is not above 0, or there are no images.

    >>> import jax, jax.numpy as jnp
    >>> from tcl_jax import clip, convert
    >>> from tcl_jax.report.layers import layer_report
    >>> def network(w, x):
    ...     return clip(jax.nn.relu(x @ w), 2.0) @ w
    >>> graph = convert(network, jnp.eye(1), [jnp.ones((1, 1))])
    >>> images, mask = jnp.array([[0.7]]), jnp.array([True])
    >>> (layer,) = layer_report(graph, [(images, mask)], timesteps=[4])
    >>> layer.at[4].rate  # 0.35 × 4 = 1.4 spikes' worth
    0.25
    >>> round(layer.at[4].quantisation, 6)
    0.1
    """
    times = sorted(set(timesteps))
    for t in times:
        check_times(t)
    names = [n.name for n in graph.neurons]
    shapes = g.shapes(graph)
    fired = {n: np.zeros(shapes[n], bool) for n in names}
    histogram = {n: np.zeros(_BINS, np.int64) for n in names}
    sums: Any = None
    tops: dict[str, float] = {}
    points: dict[str, dict[str, list[float]]] = {}
    seen = 0
    for x, mask in parts(batches, graph, 3):
        activations, samples, totals, spiked = _of_batch(graph, x, mask, times=tuple(times), v0=v0)
        kept = np.asarray(mask)
        for name in names:
            a = np.asarray(activations[name])[kept]
            top = tops.setdefault(name, max(1.0, float(a.max(initial=0.0))))
            histogram[name] += np.histogram(np.minimum(a, top), _BINS, (0.0, top))[0]
            fired[name] |= np.asarray(spiked[name])
            if name not in points:
                counting = _sampled(np.repeat(kept, np.prod(shapes[name])))
                points[name] = {
                    what: np.asarray(values)[counting].tolist()
                    for what, values in samples[name].items()
                }
        sums = jax.tree.map(lambda s, t: s + float(t), sums, totals) if sums else totals
        seen += int(kept.sum())
    if not seen:
        raise InputError("there are no images to report on: give at least one")
    return [
        Layer(
            name=name,
            neurons=int(np.prod(shapes[name])),
            dead=float(1 - fired[name].mean()),
            at={
                t: AtLatency(**{k: float(v) / seen for k, v in sums[t][name].items()})
                for t in times
            },
            edges=np.linspace(0, tops[name], _BINS + 1).tolist(),
            histogram=histogram[name].tolist(),
            points=points[name],
        )
        for name in names
    ]


def parts(
    batches: Iterable[tuple[Array, ...]], graph: g.Graph, copies: int
) -> Iterator[tuple[Array, ...]]:
    """The same images in batches of which all neurons have room, and of one size where those were.

    Args:
        batches: images, and what belongs to them.
        graph: the network.
        copies: of a value for each neuron, that are kept at a time.
    """
    shapes = g.shapes(graph)
    values = copies * sum(math.prod(shapes[n.name]) for n in graph.neurons)
    most = max(1, _ROOM // max(1, values * graph.dtype.itemsize))
    for batch in batches:
        images = len(batch[0])
        size = max(n for n in range(1, most + 1) if images % n == 0)
        for at in range(0, images, size):
            yield tuple(array[at : at + size] for array in batch)


def _sampled(values: Any) -> Any:
    """Some, evenly: what a scatter plot shows of the values of all images and neurons."""
    flat = values.reshape(-1)
    return flat[:: max(1, flat.size // _POINTS)]


@partial(jax.jit, static_argnames="times")
def _of_batch(
    graph: g.Graph,
    x: Real[Array, "b ..."],
    mask: Bool[Array, " b"],
    *,
    times: tuple[int, ...],
    v0: float,
) -> tuple[dict[str, Array], dict[str, Any], dict[int, Any], dict[str, Array]]:
    """Activations, samples of them and of rates, sums of what `AtLatency` holds, who ever fired."""
    activations: dict[str, Array] = {}
    g.evaluate(graph, x, activations.__setitem__)
    constant = g.constant_values(graph, x)

    def body(carry: Any, _: None) -> tuple[Any, None]:
        state, counts = carry
        state, spikes = step(graph, state, constant)
        return (state, {n: c + spikes[n].astype(c.dtype) for n, c in counts.items()}), None

    thresholds = {n.name: n.op.threshold for n in graph.neurons}
    names = list(thresholds)
    state = init_state(graph, x.shape[0], Simulation(IF(v0=v0)))
    start = state.neurons
    carry = (state, {n: jnp.zeros_like(start[n]) for n in names})
    samples = {n: {"activation": _sampled(activations[n])} for n in names}
    totals: dict[int, Any] = {}
    before = 0
    for t in times:
        carry, _ = jax.lax.scan(body, carry, length=t - before)
        before = t
        (state, counts) = carry
        totals[t] = {}
        for n in names:
            # In spikes, of which one takes θ away; that is 1 but in networks of whole numbers.
            began, left = (v / against(thresholds[n], v) for v in (start[n], state.neurons[n]))
            spikes = counts[n].astype(left.dtype)
            found = _split(activations[n], spikes, left, began, t)
            found |= {"rate": spikes / t, "saturated": (left >= 1).astype(left.dtype)}
            weight = mask.reshape(-1, *(1,) * (left.ndim - 1))
            size = left[0].size
            totals[t][n] = {k: jnp.sum(v * weight.astype(v.dtype)) / size for k, v in found.items()}
            samples[n][str(t)] = _sampled(counts[n]) / t
    spiked = {
        n: jnp.any((counts[n] > 0) & mask.reshape(-1, *(1,) * (counts[n].ndim - 1)), 0)
        for n in names
    }
    return activations, samples, totals, spiked


def _split(a: Array, spikes: Array, left: Array, began: Array, t: int) -> dict[str, Array]:
    """Absolute error and its four parts; reckoned in spikes, of which equal numbers cancel."""

    def quantised(charge: Array) -> Array:
        return jnp.clip(jnp.floor(charge + began), 0, t)

    bounded = jnp.minimum(a, 1.0)
    ideal, given = quantised(bounded * t), quantised(spikes + left - began)
    parts = ((a - bounded) * t, bounded * t - ideal, ideal - given, given - spikes)
    found = {"error": a * t - spikes, **dict(zip(PARTS, parts, strict=True))}
    return {name: jnp.abs(part) / t for name, part in found.items()}


def as_json(layers: Sequence[Layer], graph: g.Graph, **about: Any) -> dict[str, Any]:
    """What `report.json` holds: all but the scatter plot's points, with every layer's λ."""
    norms = {n.name: np.asarray(n.op.unit).tolist() for n in graph.neurons}
    kept = [
        {"lambda": norms[layer.name]} | {k: v for k, v in asdict(layer).items() if k != "points"}
        for layer in layers
    ]
    return {**about, "errors": "means of absolute values, in units of λ", "layers": kept}
