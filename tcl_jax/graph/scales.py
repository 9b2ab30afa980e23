"""How scales move: by the laws of operations (`Op`), into weights, or past what lies between."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from tcl_jax.graph.graph import Graph, reached
from tcl_jax.graph.nodes import Kind, Node, free
from tcl_jax.graph.ops.base import Op, Scales, Shape, compact, equal, fits, rounded, wide
from tcl_jax.graph.ops.weights import Scale

_ONE = np.ones(())
_NOTHING = np.zeros(())
_TINY = 1e-12
"""A scale that is 0, or whose inverse weights of 32 bits might have no room for."""

_Changes = dict[int, Op]
"""Other operations for some nodes, by number, made all at once or not at all."""


def settle(nodes: Sequence[Node[Kind]], shapes: Mapping[str, Shape], dtype: Any) -> Graph:
    """The graph of the same function whose scales are where they cost nothing, if they can be.

    Backwards first, into what makes a value, or past it into all that this reads: batch norm, and
    the 1/λ of neurons.  Then, where there is no shift, forwards, into what reads the value, or past
    it: the λ that a spike stands for.  What is stuck there tries to go back again.

    Numbers are float64 (`wide`) all the way, and rounded once, at its end.

    Args:
        nodes: of a graph; their numbers may be `wide`.
        shapes: of every node's value, by name.
        dtype: that the graph's numbers are to have.
    """
    settled = _Wiring(nodes, shapes).backwards().forwards().backwards()
    return Graph(rounded(tuple(settled.nodes), dtype))


def scaled(number: int, scale: Scales, name: str) -> Node[Kind]:
    """A node that multiplies the value of the node of a number."""
    return Node(Scale(wide(scale), wide(_NOTHING)), (number,), name)


class _Value(NamedTuple):
    """A value: ``scale`` times that of a node; and its ``name``, if it was scaled right there."""

    number: int
    scale: Scales = _ONE
    name: str | None = None


class _Wiring:
    """Nodes, the shapes of their values by name, and who reads whom."""

    def __init__(self, nodes: Sequence[Node[Kind]], shapes: Mapping[str, Shape]) -> None:
        self.nodes, self.shapes = list(nodes), dict(shapes)

    def readers(self, number: int) -> list[int]:
        return [reader for reader, node in enumerate(self.nodes) if number in node.inputs]

    def read(self, number: int) -> list[Shape]:
        """The shapes of the values that a node reads."""
        return [self.shapes[self.nodes[i].name] for i in self.nodes[number].inputs]

    def scaling(self, number: int) -> tuple[Scales, Scales] | None:
        """By what a node multiplies a value and what it adds, where that is all that it does."""
        op, read = self.nodes[number].op, self.read(number)
        if not isinstance(op, Op) or op.scaling is None or not read:
            return None
        # A graph that was written by hand may have one that makes the value larger.
        return op.scaling if all(fits(s, read[0]) for s in op.scaling) else None

    # --- Backwards --------------------------------------------------------------------------

    def backwards(self) -> "_Wiring":
        """Without those scales, from the first on, that what they read can take up."""
        for number, node in enumerate(self.nodes):
            scaling = self.scaling(number)
            if scaling is None:
                continue
            (source,) = node.inputs
            changes = self.taken(source, *scaling, number)
            if changes is None or number in changes:
                continue
            for other, op in changes.items():
                self.nodes[other] = replace(self.nodes[other], op=op)
            for reader in self.readers(number):
                inputs = (source if i == number else i for i in self.nodes[reader].inputs)
                self.nodes[reader] = replace(self.nodes[reader], inputs=tuple(inputs))
            self.nodes[number] = replace(node, inputs=())  # and is no reader any more
        return _Wiring(reached(self.nodes), self.shapes)

    def taken(self, number: int, scale: Scales, shift: Scales, reader: int) -> _Changes | None:
        """What makes a node's value ``scale · value + shift``, for one reader of it.

        What else reads it has to undo the scale.
        """
        op, inputs = self.nodes[number].op, self.nodes[number].inputs
        others = [other for other in self.readers(number) if other != reader]
        if not isinstance(op, Op) or (others and (shift.any() or np.abs(scale).min() < _TINY)):
            return None
        undone = [self.undone(number, 1 / scale, other) for other in others]
        if None in undone:
            return None
        if (merged := op.then(scale, shift)) is not None:
            return _joined({number: merged}, *undone)
        factors = op.split(scale, self.read(number))
        if shift.any() or factors is None or not all(map(fits, factors, self.read(number))):
            return None
        by_input = dict(zip(inputs, factors, strict=True))
        if not all(equal(by_input[i], factor) for i, factor in zip(inputs, factors, strict=True)):
            return None
        taken = [self.taken(i, factor, _NOTHING, number) for i, factor in by_input.items()]
        return _joined(*taken, *undone)

    def undone(self, number: int, factor: Scales, reader: int) -> _Changes | None:
        """What makes of a node's value, at a reader, that of ``factor`` times the value."""
        op = self.nodes[reader].op
        if not isinstance(op, Op):
            return None
        factors = [factor if i == number else _ONE for i in self.nodes[reader].inputs]
        if (taken := op.after(factors)) is not None:
            return {reader: taken}
        carried = op.carry(factors, self.read(reader))
        if carried is None:
            return None
        if equal(carried, _ONE):
            return {}
        return _joined(*(self.undone(reader, carried, other) for other in self.readers(reader)))

    # --- Forwards ---------------------------------------------------------------------------

    def forwards(self) -> "_Wiring":
        """With scales that have no shift in what reads them, or past it, as far as they go."""
        passing: dict[int, Scales] = {}
        for number in range(len(self.nodes)):
            scaling = self.scaling(number)
            if scaling and not scaling[1].any():
                passing[number] = scaling[0]
        moved = _Moved({n.name for number, n in enumerate(self.nodes) if number not in passing})
        values: list[_Value] = []
        for number, node in enumerate(self.nodes):
            read = [values[i] for i in node.inputs]
            if number in passing:
                (value,) = read
                values.append(_Value(value.number, value.scale * passing[number], node.name))
                continue
            fires = any(not isinstance(self.nodes[i].op, Op) for i in self.readers(number))
            op, own, left = _past(node.op, [v.scale for v in read], self.read(number), fires)
            inputs = [moved.scaled(v, s, node.name) for v, s in zip(read, left, strict=True)]
            new = Node(op, tuple(inputs), node.name)
            values.append(_Value(moved.add(new, self.shapes[node.name]), own))
        return _Wiring(moved.nodes, moved.shapes)


def _joined(*changes: _Changes | None) -> _Changes | None:
    """All in one, if all can be made and none is of what another changes too."""
    joined: _Changes = {}
    for change in changes:
        if change is None or not joined.keys().isdisjoint(change):
            return None
        joined |= change
    return joined


class _Moved:
    """The nodes behind which scales have moved, and those of scales that are stuck."""

    def __init__(self, names: set[str]) -> None:
        self.nodes: list[Node[Kind]] = []
        self.shapes: dict[str, Shape] = {}
        self.names = names
        self.stuck: dict[tuple[int, str], int] = {}

    def add(self, node: Node[Kind], shape: Shape) -> int:
        self.nodes.append(node)
        self.shapes[node.name] = shape
        return len(self.nodes) - 1

    def scaled(self, value: _Value, scale: Scales, reader: str) -> int:
        """The node whose value is that of the value's own node, scaled: one for all its readers."""
        if equal(scale, _ONE):
            return value.number
        scale = compact(scale)
        key = value.number, str(scale.tolist())
        if key not in self.stuck:
            source = self.nodes[value.number].name
            kept = value.name if equal(scale, value.scale) else None
            name = free(kept or f"{source}->{reader}", self.names)
            self.names.add(name)
            self.stuck[key] = self.add(scaled(value.number, scale, name), self.shapes[source])
        return self.stuck[key]


def _past(
    op: Kind, scales: Sequence[Scales], shapes: Sequence[Shape], fires: bool
) -> tuple[Kind, Scales, Sequence[Scales]]:
    """An operation that has taken scales up, by what it is scaled, and what is left before it."""
    ones = [_ONE] * len(scales)
    if not isinstance(op, Op) or all(equal(s, _ONE) for s in scales):
        return op, _ONE, scales
    if (taken := op.after(scales)) is not None:
        return taken, _ONE, ones
    if (carried := op.carry(scales, shapes)) is not None:
        return op, carried, ones
    # Where all come in scales of their own, one can be that of the result.  Before neurons the same
    # number would be left, and a spike had better be weighted than a sum.
    first, fit = scales[0], all(fits(scales[0], shape) for shape in shapes)
    if fit and not fires and all(s.all() and not equal(s, _ONE) for s in scales):
        carried = op.carry([first] * len(scales), shapes)
        if carried is not None:
            return op, carried, [_ONE, *(s / first for s in scales[1:])]
    return op, _ONE, scales
