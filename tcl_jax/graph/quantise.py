"""Integer networks: int8 weights, int32 membrane potentials, the same spikes on every machine."""

import math
from dataclasses import replace
from functools import reduce
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Real

from tcl_jax import graph as g
from tcl_jax.errors import InputError
from tcl_jax.graph.counts import largest
from tcl_jax.graph.ops.base import Affine, Scales, Shape, nearest, wide

# Of an int8, but for -128, which has no opposite.
_LARGEST = 127
# Sums below it are exact in float32 too, in which a CPU computes them.
_EXACT = 2**24


def quantise(graph: g.Graph, images: Real[Array, "b ..."]) -> g.Graph:
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


class _Signal(NamedTuple):
    """Whole numbers: which node makes them, what 1 stands for, and how large they can be."""

    number: int
    step: float
    bound: int


class _Quantiser:
    def __init__(self, graph: g.Graph, step: float):
        self.graph, self.step = graph, step
        self.shapes = list(g.shapes(graph).values())
        self.nodes: list[g.Node[g.Kind]] = []
        self.numbers: dict[str, int] = {}
        self.signals: dict[int, _Signal | None] = {}  # by the number of the graph's node

    def run(self) -> g.Graph:
        for number, node in enumerate(self.graph.nodes):
            match node.op:
                case g.Input():
                    images = self.add(node.op, (), node.name)
                    quantise = g.Quantise(_real(1 / self.step))
                    found = self.add(quantise, (images,), f"{node.name}/int8")
                    self.signals[number] = _Signal(found, self.step, _LARGEST)
                case g.Population(threshold=threshold):
                    unit, current = self.integrated(node, node.op)
                    op = replace(node.op, threshold=nearest(wide(threshold) / unit))
                    self.signals[number] = _Signal(self.add(op, (current,), node.name), 1.0, 1)
                case g.Output(threshold=threshold, unit=logit):
                    unit, current = self.integrated(node, node.op)
                    in_units = nearest(wide(threshold) / unit), _real(float(logit) * float(unit))
                    self.add(g.Output(*in_units), (current,), node.name)
        return g.Graph(tuple(self.nodes))

    def add(self, op: g.Kind, inputs: tuple[int, ...], name: str) -> int:
        """A node, once: what a reader reads twice it asks for twice, with the same result."""
        if name not in self.numbers:
            self.numbers[name] = len(self.nodes)
            self.nodes.append(g.Node(op, inputs, name))
        return self.numbers[name]

    def reads(self, number: int) -> tuple[g.Op, tuple[int, ...], list[Shape]]:
        """A node's operation, and the numbers and shapes of what that reads."""
        op, inputs = self.graph.nodes[number].op, self.graph.nodes[number].inputs
        assert isinstance(op, g.Op)
        return op, inputs, [self.shapes[i] for i in inputs]

    def integrated(self, node: g.Node[g.Kind], op: g.Population | g.Output) -> tuple[Scales, int]:
        """The unit of a neuron's potential, and the node of its current."""
        (current,) = node.inputs
        peak, direct = self.peak(current), self.peak(current, weights=False)
        # A channel of vanishing weights would have a threshold beyond int32.
        least = np.max(wide(op.threshold)) / _LARGEST**3
        unit = np.maximum(np.where(peak > 0, peak, direct) / _LARGEST, least)
        if isinstance(op, g.Output) or not self.divides(current, unit):
            unit = np.max(unit)  # as potentials of classes, which are compared
        return unit, self.current(current, unit, node.name)

    def signal(self, number: int) -> _Signal | None:
        """What is a multiple of spike counts; None where weights stand between."""
        if number not in self.signals:
            self.signals[number] = self._signal(number)
        return self.signals[number]

    def _signal(self, number: int) -> _Signal | None:
        op, inputs, shapes = self.reads(number)
        name = self.graph.nodes[number].name
        sources = [s for s in map(self.signal, inputs) if s is not None]
        if len(sources) < len(inputs):
            return None
        if op.scaling is not None:
            scale, shift = op.scaling
            if scale.size > 1 or shift.any():
                return None
            return sources[0]._replace(step=sources[0].step * scale.item())
        whole = op.counted(jnp.int32)
        if whole is None or op.carry([wide(s.step) for s in sources], shapes) is None:
            return None
        step = min(s.step for s in sources)
        sources = [self.multiplied(s, step, name) for s in sources]
        bound = largest(whole[0], [s.bound for s in sources], shapes)
        counting, factor = (op.counted(jnp.int8) if bound <= _LARGEST else None) or whole
        if factor is None and bound > max(_LARGEST, *(s.bound for s in sources)):
            return None
        made = self.add(counting, tuple(s.number for s in sources), name)
        return _Signal(made, step * (1.0 if factor is None else factor), bound)

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
        number = self.add(g.Scale(nearest(ratio), nearest(0)), (signal.number,), name)
        return _Signal(number, step, signal.bound * ratio)

    def peak(self, number: int, *, weights: bool = True) -> Scales:
        """The size of a current's largest weight, by channel where it has channels.

        Shortcuts, whose weights have 32 bits, count where there are no others: without `weights`.
        """
        if (signal := self.signal(number)) is not None:
            return np.float64(0.0 if weights else abs(signal.step))
        op, inputs, shapes = self.reads(number)
        if isinstance(op, Affine):
            counts = op.scaling is None or not weights
            return op.strongest() * abs(self.source(number).step) * counts
        _, factor = _counting(op)
        peaks = [self.peak(i, weights=weights) for i in inputs]
        found = op.carry(peaks, shapes)
        if found is None:  # a sum's largest, or else one for all
            alike = len({p.shape for p in peaks if p.size > 1}) < 2
            largest = reduce(np.maximum, peaks) if alike else np.max([p.max() for p in peaks])
            found = op.carry([wide(largest)] * len(inputs), shapes)
        if found is None:
            found = wide(np.max([p.max() for p in peaks]))
        return found * abs(factor)

    def divides(self, number: int, unit: Scales) -> bool:
        """Whether a unit, which may differ by channel, is one that a current can be counted in."""
        if self.signal(number) is not None:
            return True
        op, inputs, shapes = self.reads(number)
        if isinstance(op, Affine):
            return op.then(1 / unit, wide(0.0)) is not None
        units = op.split(unit, shapes)
        return units is not None and all(map(self.divides, inputs, units))

    def source(self, number: int) -> _Signal:
        """What an operation with weights reads."""
        (before,) = self.graph.nodes[number].inputs
        if (found := self.signal(before)) is None:
            raise InputError(
                f"{self.graph.nodes[number].name} weights what {self.graph.nodes[before].name} has "
                "weighted, with no neurons between them, which has no int8 form: fold the two into "
                "one, or simulate in floating point"
            )
        return found

    def current(self, number: int, unit: Scales, reader: str) -> int:
        """Add the nodes of a current counted in `unit`, and return the last one's number."""
        name = f"{self.graph.nodes[number].name}/for/{reader}"
        if (signal := self.signal(number)) is not None:
            weighting: Affine = g.Scale(nearest(signal.step / unit), nearest(np.zeros_like(unit)))
            return self.add(self.checked(weighting, signal, name), (signal.number,), name)
        op, inputs, shapes = self.reads(number)
        if isinstance(op, Affine):
            signal = self.source(number)
            in_units = op.after([wide(signal.step)])
            in_units = in_units and in_units.then(1 / unit, wide(0.0))
            assert in_units is not None, "as `divides` said"
            return self.add(self.checked(in_units.whole(), signal, name), (signal.number,), name)
        whole, factor = _counting(op)
        units = op.split(unit / factor, shapes)
        assert units is not None, "as `divides` said"
        currents = [self.current(i, u, reader) for i, u in zip(inputs, units, strict=True)]
        return self.add(whole, tuple(currents), name)

    def checked(self, op: Affine, signal: _Signal, name: str) -> Affine:
        if (largest := op.reach(signal.bound).max()) >= _EXACT:
            raise InputError(
                f"a sum at {name} might reach {largest:.0f}, beyond 2^24: it has too many inputs, "
                "or a bias too large for its weights; simulate it in floating point"
            )
        return op


def _counting(op: g.Op) -> tuple[g.Op, float]:
    """An operation that weights nothing, for sums of 32 bits, and the factor that it leaves."""
    found = op.counted(jnp.int32)
    assert found is not None
    return found[0], 1.0 if found[1] is None else found[1]


def _real(value: float) -> Array:
    return jnp.asarray(value, jnp.float32)
