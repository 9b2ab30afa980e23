"""Integer networks: int8 weights, int32 membrane potentials, the same spikes on every machine."""

import math
from dataclasses import replace
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Real

from tcl_jax import graph as g
from tcl_jax.errors import InputError

# Of an int8, but for -128, which has no opposite.
_LARGEST = 127
# Sums below it are exact in float32 too, in which a CPU computes them.
_EXACT = 2**24


def quantise(graph: g.SpikingGraph, images: Real[Array, "b ..."]) -> g.SpikingGraph:
    r"""The same network in whole numbers, so that its spikes do not depend on the order of sums.

    The current into a neuron is counted in units u, one for each of a layer's output channels:

    .. math:: u = \max |W| / 127, \quad \hat W = \operatorname{round}(W / u), \quad
              \hat b = \operatorname{round}(b / u), \quad
              \hat V_{thr} = \operatorname{round}(V_{thr} / u)

    Weights are int8, all else int32; spikes are 1.  An average pool counts spikes, and its factor
    is taken into the weights that follow, as is the step of the images, which become int8.  A
    shortcut is weighted in int32, in the unit of the layer that it joins.

    Simulated like any graph, on any backend, over any number of devices, with bit-identical spikes
    for the same standardised images.  A potential is exact while its size is below 2³¹, which any
    network keeps for 127 steps and one of moderate weights for some ten thousands.

    Args:
        graph: normalised, before `lower`.
        images: a batch, of which the largest value sets the step of the images.

    Returns:
        A graph of whole numbers.

    Raises:
        InputError: two affine maps follow each other with no neurons between them (see `fold`),
            branches of a concatenation have incommensurable pools, or a sum might reach 2²⁴.

    >>> import jax, jax.numpy as jnp
    >>> from tcl_jax import clip, convert, simulation
    >>> def network(w, x):
    ...     return clip(jax.nn.relu(x @ w), 1.0) @ w
    >>> x = jnp.array([[1.0, 0.5]])
    >>> graph = simulation.quantise(convert(network, jnp.eye(2), x), x)
    >>> [str(node.kernel.dtype) for node in graph.nodes if hasattr(node, "kernel")]
    ['int8', 'int8']
    >>> simulation.simulate(graph, x, timesteps=8).counts.tolist()
    [[8, 4]]
    """
    largest = float(jnp.max(jnp.abs(images)))
    if not (math.isfinite(largest) and largest > 0):
        raise InputError(f"the images' largest value is {largest}: give images that are not empty")
    return _Quantiser(graph, largest / _LARGEST).run()


# What hands currents on, or adds them up.
_SUMMING = (g.Pool, g.Sum, g.Reshape, g.Transpose, g.Add, g.Concat, g.Pad, g.Slice)


class _Signal(NamedTuple):
    """Whole numbers: which node makes them, what 1 stands for, and how large they can be."""

    name: str
    step: float
    bound: int


class _Quantiser:
    def __init__(self, graph: g.SpikingGraph, step: float):
        self.graph, self.step = graph, step
        self.by_name = {node.name: node for node in graph.nodes}
        self.shapes = g.shapes(graph)
        self.nodes: dict[str, g.Node] = {}
        self.signals: dict[str, _Signal | None] = {}

    def run(self) -> g.SpikingGraph:
        for node in self.graph.nodes:
            if isinstance(node, g.Input):
                quantised = g.Quantise(f"{node.name}/int8", (node.name,), _real(1 / self.step))
                self.add(node)
                self.add(quantised)
                self.signals[node.name] = _Signal(quantised.name, self.step, _LARGEST)
            elif isinstance(node, g.Neuron):
                unit, current = self.integrated(node)
                threshold = _whole(np.asarray(node.threshold, np.float64) / unit)
                self.add(replace(node, inputs=(current,), threshold=threshold))
                self.signals[node.name] = _Signal(node.name, 1.0, 1)
            elif isinstance(node, g.Output):
                unit, current = self.integrated(node)
                threshold = _whole(float(node.threshold) / unit)
                scale = _real(float(node.scale) * float(unit))
                self.add(replace(node, inputs=(current,), threshold=threshold, scale=scale))
        return g.SpikingGraph(tuple(self.nodes.values()))

    def add(self, node: g.Node) -> None:
        """A node, once: what a reader reads twice it asks for twice, with the same result."""
        self.nodes.setdefault(node.name, node)

    def integrated(self, node: g.Neuron | g.Output) -> tuple[np.ndarray, str]:
        """The unit of a neuron's potential, and the node of its current."""
        peak, by_channel = self.peak(node.inputs[0])
        direct, _ = self.peak(node.inputs[0], weights=False)
        peak = np.where(peak > 0, peak, direct)
        if isinstance(node, g.Output) or not by_channel:  # the potentials of classes are compared
            peak = np.max(peak)
        # A channel of vanishing weights would have a threshold beyond int32.
        unit = np.maximum(peak / _LARGEST, np.max(np.asarray(node.threshold)) / _LARGEST**3)
        return unit, self.current(node.inputs[0], unit, node.name)

    def signal(self, name: str) -> _Signal | None:
        """What is a multiple of spike counts; None where weights stand between."""
        if name not in self.signals:
            self.signals[name] = self._signal(self.by_name[name])
        return self.signals[name]

    def _signal(self, node: g.Node) -> _Signal | None:
        before = [self.signal(i) for i in node.inputs]
        if isinstance(node, g.Conv | g.Dense) or any(s is None for s in before):
            return None
        sources = [s for s in before if s is not None]
        source = sources[0]
        match node:
            case g.Scale():
                if np.size(node.scale) > 1 or np.any(np.asarray(node.shift)):
                    return None
                return source._replace(step=source.step * float(np.asarray(node.scale).item()))
            case g.Pool() | g.Sum():
                terms = self.terms(node)
                found = _Signal(node.name, source.step * float(node.factor), source.bound * terms)
                dtype = jnp.int8 if found.bound <= _LARGEST else jnp.int32
                node = replace(node, factor=jnp.ones((), dtype))
            case g.Concat():
                step = min(s.step for s in sources)
                sources = [self.multiplied(s, step, node.name) for s in sources]
                found = _Signal(node.name, step, max(s.bound for s in sources))
            case g.Add():
                if sources[0].step != sources[1].step:
                    return None
                bound = sources[0].bound + sources[1].bound
                if bound > _LARGEST:
                    return None
                found = _Signal(node.name, source.step, bound)
            case g.Reshape() | g.Transpose() | g.Pad() | g.Slice():
                found = source._replace(name=node.name)
            case _:
                raise g.unknown(node)
        self.add(replace(node, inputs=tuple(s.name for s in sources)))
        return found

    def terms(self, node: g.Pool | g.Sum) -> int:
        if isinstance(node, g.Pool):
            return math.prod(node.window)
        return math.prod(self.shapes[node.inputs[0]][a] for a in node.axes)

    def multiplied(self, signal: _Signal, step: float, reader: str) -> _Signal:
        ratio = round(signal.step / step)
        if ratio == 1:
            return signal
        if not math.isclose(signal.step / step, ratio, rel_tol=1e-6):
            raise InputError(
                f"{reader} joins counts of spikes in units of {signal.step:.6g} and {step:.6g}, "
                "which have no common whole number: simulate this network in floating point"
            )
        node = g.Scale(f"{signal.name}/for/{reader}", (signal.name,), _whole(ratio), _whole(0))
        self.add(node)
        return _Signal(node.name, step, signal.bound * ratio)

    def peak(self, name: str, *, weights: bool = True) -> tuple[np.ndarray, bool]:
        """The largest weight of every channel of a current, and whether it has channels.

        Shortcuts, whose weights have 32 bits, count where there are no others: without `weights`.
        """
        node = self.by_name[name]
        source = self.signal(name)
        if source is not None:
            return np.asarray(0.0 if weights else source.step), True
        match node:
            case g.Conv() | g.Dense():
                kernel = np.abs(np.asarray(node.kernel, np.float64))
                axes = tuple(range(kernel.ndim - 1))
                return np.max(kernel, axes) * self.source(node).step, True
            case g.Scale():
                scale = np.max(np.abs(np.asarray(node.scale, np.float64)))
                return np.asarray(0.0 if weights else scale * self.source(node).step), True
            case g.Add():
                found = [self.peak(i, weights=weights) for i in node.inputs]
                return np.maximum(found[0][0], found[1][0]), all(by for _, by in found)
            case g.Pool() | g.Sum():
                within, _ = self.peak(node.inputs[0], weights=weights)
                return np.max(within) * float(node.factor), False
            case g.Reshape() | g.Transpose() | g.Concat() | g.Pad() | g.Slice():
                found = [self.peak(i, weights=weights) for i in node.inputs]
                return np.max([np.max(peak) for peak, _ in found]), False
        raise g.unknown(node)

    def source(self, node: g.Node) -> _Signal:
        found = self.signal(node.inputs[0])
        if found is None:
            raise InputError(
                f"{node.name} weights what {node.inputs[0]} has weighted, with no neurons between "
                "them, which has no int8 form: fold the two into one, or simulate in floating point"
            )
        return found

    def current(self, name: str, unit: np.ndarray, reader: str) -> str:
        """Add the nodes of a current counted in `unit`, and return the last one's name."""
        node, source = self.by_name[name], self.signal(name)
        label = f"{name}/for/{reader}"
        added: g.Node
        if source is not None:
            scale = _whole(source.step / unit)
            added = g.Scale(label, (source.name,), scale, _whole(np.zeros_like(unit)))
            largest = source.bound * np.abs(scale)
        elif isinstance(node, g.Conv | g.Dense):
            source = self.source(node)
            kernel = np.asarray(node.kernel, np.float64) * source.step / unit
            kernel = np.rint(kernel).astype(np.int8)
            bias = None if node.bias is None else _whole(np.asarray(node.bias, np.float64) / unit)
            added = replace(
                node, name=label, inputs=(source.name,), kernel=jnp.asarray(kernel), bias=bias
            )
            sums = np.abs(kernel.astype(np.int64)).sum(tuple(range(kernel.ndim - 1)))
            largest = source.bound * sums + (0 if bias is None else np.abs(bias))
        elif isinstance(node, g.Scale):
            source = self.source(node)
            scale = _whole(np.asarray(node.scale, np.float64) * source.step / unit)
            shift = _whole(np.asarray(node.shift, np.float64) / unit)
            added = replace(node, name=label, inputs=(source.name,), scale=scale, shift=shift)
            largest = source.bound * np.abs(scale) + np.abs(shift)
        elif isinstance(node, _SUMMING):
            if isinstance(node, g.Pool | g.Sum):
                unit = unit / float(node.factor)
                node = replace(node, factor=jnp.ones((), jnp.int32))
            inputs = tuple(self.current(i, unit, reader) for i in node.inputs)
            added, largest = replace(node, name=label, inputs=inputs), np.asarray(0)
        else:
            raise g.unknown(node)
        if np.max(largest) >= _EXACT:
            raise InputError(
                f"a sum at {name} might reach {np.max(largest)}, beyond 2^24: it has too many "
                "inputs, or a bias too large for its weights; simulate it in floating point"
            )
        self.add(added)
        return label


def _whole(value: Any) -> Array:
    return jnp.asarray(np.rint(np.asarray(value, np.float64)).astype(np.int32))


def _real(value: float) -> Array:
    return jnp.asarray(value, jnp.float32)
