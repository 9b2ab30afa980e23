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
    >>> [str(node.op.kernel.dtype) for node in graph.nodes if hasattr(node.op, "kernel")]
    ['int8', 'int8']
    >>> simulation.simulate(graph, x, timesteps=8).output.counts.tolist()
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

    number: int
    step: float
    bound: int


class _Quantiser:
    def __init__(self, graph: g.SpikingGraph, step: float):
        self.graph, self.step = graph, step
        self.shapes = list(g.shapes(graph).values())
        self.nodes: list[g.Node[g.Kind]] = []
        self.numbers: dict[str, int] = {}
        self.signals: dict[int, _Signal | None] = {}  # by the number of the graph's node

    def run(self) -> g.SpikingGraph:
        for number, node in enumerate(self.graph.nodes):
            match node.op:
                case g.Input():
                    images = self.add(node.op, (), node.name)
                    quantise = g.Quantise(_real(1 / self.step))
                    found = self.add(quantise, (images,), f"{node.name}/int8")
                    self.signals[number] = _Signal(found, self.step, _LARGEST)
                case g.Population(threshold=threshold):
                    unit, current = self.integrated(node)
                    op = replace(
                        node.op, threshold=_whole(np.asarray(threshold, np.float64) / unit)
                    )
                    self.signals[number] = _Signal(self.add(op, (current,), node.name), 1.0, 1)
                case g.Output(threshold=threshold, unit=logit):
                    unit, current = self.integrated(node)
                    in_units = _whole(float(threshold) / unit), _real(float(logit) * float(unit))
                    self.add(g.Output(*in_units), (current,), node.name)
        return g.SpikingGraph(tuple(self.nodes))

    def add(self, op: g.Kind, inputs: tuple[int, ...], name: str) -> int:
        """A node, once: what a reader reads twice it asks for twice, with the same result."""
        if name not in self.numbers:
            self.numbers[name] = len(self.nodes)
            self.nodes.append(g.Node(op, inputs, name))
        return self.numbers[name]

    def integrated(self, node: g.Node[g.Kind]) -> tuple[np.ndarray, int]:
        """The unit of a neuron's potential, and the node of its current."""
        op, (current,) = node.op, node.inputs
        assert isinstance(op, g.Population | g.Output)
        peak, by_channel = self.peak(current)
        direct, _ = self.peak(current, weights=False)
        peak = np.where(peak > 0, peak, direct)
        if isinstance(op, g.Output) or not by_channel:  # the potentials of classes are compared
            peak = np.max(peak)
        # A channel of vanishing weights would have a threshold beyond int32.
        unit = np.maximum(peak / _LARGEST, np.max(np.asarray(op.threshold)) / _LARGEST**3)
        return unit, self.current(current, unit, node.name)

    def signal(self, number: int) -> _Signal | None:
        """What is a multiple of spike counts; None where weights stand between."""
        if number not in self.signals:
            self.signals[number] = self._signal(number)
        return self.signals[number]

    def _signal(self, number: int) -> _Signal | None:
        node = self.graph.nodes[number]
        op = node.op
        before = [self.signal(i) for i in node.inputs]
        if isinstance(op, g.Conv | g.Dense) or any(s is None for s in before):
            return None
        sources = [s for s in before if s is not None]
        source = sources[0]
        step, bound = source.step, source.bound
        match op:
            case g.Scale():
                if np.size(op.scale) > 1 or np.any(np.asarray(op.shift)):
                    return None
                return source._replace(step=step * float(np.asarray(op.scale).item()))
            case g.Pool() | g.Sum():
                bound *= self.terms(number)
                step *= float(op.factor)
                dtype = jnp.int8 if bound <= _LARGEST else jnp.int32
                op = replace(op, factor=jnp.ones((), dtype))
            case g.Concat():
                step = min(s.step for s in sources)
                sources = [self.multiplied(s, step, node.name) for s in sources]
                bound = max(s.bound for s in sources)
            case g.Add():
                bound = sum(s.bound for s in sources)
                if sources[0].step != sources[1].step or bound > _LARGEST:
                    return None
            case g.Reshape() | g.Transpose() | g.Pad() | g.Slice():
                pass
            case _:
                raise g.unknown(op)
        return _Signal(self.add(op, tuple(s.number for s in sources), node.name), step, bound)

    def terms(self, number: int) -> int:
        """How many numbers a pool or sum adds up, at most."""
        node = self.graph.nodes[number]
        if isinstance(node.op, g.Pool):
            return math.prod(node.op.window)
        return math.prod(self.shapes[node.inputs[0]]) // math.prod(self.shapes[number])

    def multiplied(self, signal: _Signal, step: float, reader: str) -> _Signal:
        ratio = round(signal.step / step)
        if ratio == 1:
            return signal
        if not math.isclose(signal.step / step, ratio, rel_tol=1e-6):
            raise InputError(
                f"{reader} joins counts of spikes in units of {signal.step:.6g} and {step:.6g}, "
                "which have no common whole number: simulate this network in floating point"
            )
        name = f"{self.nodes[signal.number].name}/for/{reader}"
        number = self.add(g.Scale(_whole(ratio), _whole(0)), (signal.number,), name)
        return _Signal(number, step, signal.bound * ratio)

    def peak(self, number: int, *, weights: bool = True) -> tuple[np.ndarray, bool]:
        """The largest weight of every channel of a current, and whether it has channels.

        Shortcuts, whose weights have 32 bits, count where there are no others: without `weights`.
        """
        node = self.graph.nodes[number]
        source = self.signal(number)
        if source is not None:
            return np.asarray(0.0 if weights else source.step), True
        match node.op:
            case g.Conv() | g.Dense():
                kernel = np.abs(np.asarray(node.op.kernel, np.float64))
                axes = tuple(range(kernel.ndim - 1))
                return np.max(kernel, axes) * self.source(node).step, True
            case g.Scale():
                scale = np.max(np.abs(np.asarray(node.op.scale, np.float64)))
                return np.asarray(0.0 if weights else scale * self.source(node).step), True
            case g.Add():
                found = [self.peak(i, weights=weights) for i in node.inputs]
                return np.maximum(found[0][0], found[1][0]), all(by for _, by in found)
            case g.Pool() | g.Sum():
                within, _ = self.peak(node.inputs[0], weights=weights)
                return np.max(within) * float(node.op.factor), False
            case g.Reshape() | g.Transpose() | g.Concat() | g.Pad() | g.Slice():
                found = [self.peak(i, weights=weights) for i in node.inputs]
                return np.max([np.max(peak) for peak, _ in found]), False
        raise g.unknown(node.op)

    def source(self, node: g.Node[g.Kind]) -> _Signal:
        found = self.signal(node.inputs[0])
        if found is None:
            before = self.graph.nodes[node.inputs[0]].name
            raise InputError(
                f"{node.name} weights what {before} has weighted, with no neurons between "
                "them, which has no int8 form: fold the two into one, or simulate in floating point"
            )
        return found

    def current(self, number: int, unit: np.ndarray, reader: str) -> int:
        """Add the nodes of a current counted in `unit`, and return the last one's number."""
        node, source = self.graph.nodes[number], self.signal(number)
        op: g.Kind = node.op
        if source is not None:
            scale = _whole(source.step / unit)
            op = g.Scale(scale, _whole(np.zeros_like(unit)))
            inputs: tuple[int, ...] = (source.number,)
            largest = source.bound * np.abs(scale)
        elif isinstance(op, g.Conv | g.Dense):
            source = self.source(node)
            inputs = (source.number,)
            kernel = np.asarray(op.kernel, np.float64) * source.step / unit
            kernel = np.rint(kernel).astype(np.int8)
            bias = None if op.bias is None else _whole(np.asarray(op.bias, np.float64) / unit)
            op = replace(op, kernel=jnp.asarray(kernel), bias=bias)
            sums = np.abs(kernel.astype(np.int64)).sum(tuple(range(kernel.ndim - 1)))
            largest = source.bound * sums + (0 if bias is None else np.abs(bias))
        elif isinstance(op, g.Scale):
            source = self.source(node)
            inputs = (source.number,)
            scale = _whole(np.asarray(op.scale, np.float64) * source.step / unit)
            shift = _whole(np.asarray(op.shift, np.float64) / unit)
            op = g.Scale(scale, shift)
            largest = source.bound * np.abs(scale) + np.abs(shift)
        elif isinstance(op, _SUMMING):
            if isinstance(op, g.Pool | g.Sum):
                unit = unit / float(op.factor)
                op = replace(op, factor=jnp.ones((), jnp.int32))
            inputs = tuple(self.current(i, unit, reader) for i in node.inputs)
            largest = np.asarray(0)
        else:
            raise g.unknown(op)
        if np.max(largest) >= _EXACT:
            raise InputError(
                f"a sum at {node.name} might reach {np.max(largest)}, beyond 2^24: it has too many "
                "inputs, or a bias too large for its weights; simulate it in floating point"
            )
        return self.add(op, inputs, f"{node.name}/for/{reader}")


def _whole(value: Any) -> Array:
    return jnp.asarray(np.rint(np.asarray(value, np.float64)).astype(np.int32))


def _real(value: float) -> Array:
    return jnp.asarray(value, jnp.float32)
