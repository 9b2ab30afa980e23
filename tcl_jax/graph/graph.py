"""The spiking graph: a network as plain nodes, whose neurons are clipped ReLUs or IF neurons.

One graph is read in two ways.  As an *analog* network every `Population` is ``clip(relu(x), λ)``,
as it was trained; as a *spiking* one it is integrate-and-fire neurons with threshold θ, whose
spikes have amplitude θ.  All that lies between populations is affine.
"""

import difflib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, TypeGuard, TypeVar

import jax
import numpy as np
from jaxtyping import Array

from tcl_jax.errors import InputError
from tcl_jax.graph.nodes import Input, Kind, Node, Output, Population
from tcl_jax.graph.ops.base import Op, Shape

_T = TypeVar("_T")
_K = TypeVar("_K", bound=Kind)


@jax.tree_util.register_pytree_with_keys_class
@dataclass(frozen=True)
class Graph:
    """Nodes in an order in which each comes after its inputs; the last is the output.

    A pytree: jit it, move it, shard it, stack it, differentiate through it.

    Raises:
        InputError: the nodes are no graph: a name is taken twice, a node reads what does not come
            before it, or cannot read it; there is not one input and, last, one output; a threshold,
            clip or unit does not broadcast against the neurons' value.

    >>> import jax.numpy as jnp
    >>> from tcl_jax.graph import Input, Node, Output, Graph
    >>> one = jnp.ones(())
    >>> Graph((Node(Input((3,)), (), "x"), Node(Output(one, one), (1,), "y")))
    Traceback (most recent call last):
    tcl_jax.errors.InputError: node 'y' reads node 1, which does not come before it
    """

    nodes: tuple[Node[Kind], ...]

    def __post_init__(self) -> None:
        _check_order(self.nodes)
        found = shapes(self)
        for node in self.spiking:
            _check_numbers(node, found[node.name])

    def tree_flatten_with_keys(self) -> tuple[Any, None]:
        return ((jax.tree_util.GetAttrKey("nodes"), self.nodes),), None

    @classmethod
    def tree_unflatten(cls, _: None, children: Any) -> "Graph":
        # Unchecked: in place of arrays there may be anything, as stacks of them.
        graph = object.__new__(cls)
        object.__setattr__(graph, "nodes", children[0])
        return graph

    @property
    def input(self) -> Node[Input]:
        return next(node for node in self.nodes if _is(node, Input))

    @property
    def output(self) -> Node[Output]:
        return next(node for node in self.nodes if _is(node, Output))

    @property
    def dtype(self) -> Any:
        """Of potentials: float32, float64 if traced on a float64 input, or int32 if quantised."""
        return self.output.op.threshold.dtype

    @property
    def neurons(self) -> tuple[Node[Population], ...]:
        return tuple(node for node in self.nodes if _is(node, Population))

    @property
    def spiking(self) -> tuple[Node[Population | Output], ...]:
        """All that fires: the neurons, and last the output's."""
        return (*self.neurons, self.output)

    def node(self, name: str) -> Node[Kind]:
        """The node of a name.

        Raises:
            InputError: there is none.
        """
        for node in self.nodes:
            if node.name == name:
                return node
        names = [n.name for n in self.nodes]
        close = difflib.get_close_matches(name, names, n=3, cutoff=0.0)
        raise InputError(f"the graph has no node {name!r}: the closest are {', '.join(close)}")

    def with_thresholds(self, thresholds: Mapping[str, Array]) -> "Graph":
        """The same graph with other thresholds, by name; those that are not named stay."""

        def changed(node: Node[Kind]) -> Node[Kind]:
            if isinstance(node.op, Population | Output) and node.name in thresholds:
                return replace(node, op=replace(node.op, threshold=thresholds[node.name]))
            return node

        return Graph(tuple(map(changed, self.nodes)))


SpikingGraph = Graph
"""What it was called; it is read as an analog network as often."""


def _is(node: Node[Kind], kind: type[_K]) -> TypeGuard[Node[_K]]:
    return isinstance(node.op, kind)


def reached(nodes: Sequence[Node[Kind]]) -> tuple[Node[Kind], ...]:
    """Those nodes that the last one depends on, and the first, the input; numbered anew."""
    needed = {0, len(nodes) - 1}
    for number in reversed(range(len(nodes))):
        if number in needed:
            needed.update(nodes[number].inputs)
    kept = sorted(needed)
    now = {number: index for index, number in enumerate(kept)}
    return tuple(replace(nodes[k], inputs=tuple(now[i] for i in nodes[k].inputs)) for k in kept)


def walk(
    graph: Graph,
    known: Mapping[str, _T],
    linear: Callable[..., _T],
    population: Callable[[Node[Population | Output], _T], _T],
) -> dict[str, _T]:
    """Go through the graph once, each node after what it reads: what every reading of it is.

    Args:
        graph: any.
        known: values that are there already by their node's name, the input's among them.
        linear: from the node of an operation, and the values that it reads, to its own.
        population: from neurons, or the output, and what arrives there to their value.

    Returns:
        The value of every node, by name.

    >>> import jax, jax.numpy as jnp
    >>> from tcl_jax.conversion import trace
    >>> from tcl_jax.graph import walk
    >>> graph = trace(lambda x: jax.nn.relu(x @ jnp.eye(2)) + x, jnp.zeros((1, 2)))
    >>> depths = walk(graph, {"input": 0}, lambda node, *above: max(above), lambda node, z: z + 1)
    >>> list(depths.values())
    [0, 0, 1, 1, 2]
    """
    values: list[_T] = []
    for node in graph.nodes:
        read = [values[number] for number in node.inputs]
        if node.name in known:
            value = known[node.name]
        elif isinstance(node.op, Op):
            value = linear(node, *read)
        else:
            value = population(node, *read)  # type: ignore[arg-type]
        values.append(value)
    return {node.name: value for node, value in zip(graph.nodes, values, strict=True)}


def apply(node: Node[Op], *values: Array) -> Array:
    """What a node's operation does to batched values: for a `walk`."""
    return node.op.apply(*values)


def shapes(graph: Graph) -> dict[str, Shape]:
    """Shape of every node's value, without the batch, by name and in order.

    Raises:
        InputError: a node cannot read what it is given.
    """

    def checked(node: Node[Op], *values: Array) -> Array:
        try:
            return node.op.apply(*values)
        except (TypeError, ValueError) as error:
            line = next(iter(str(error).splitlines()), "")
            sizes = " and ".join(str(tuple(v.shape[1:])) for v in values)
            raise InputError(f"node {node.name!r} cannot read {sizes}: {line}") from error

    batch = jax.ShapeDtypeStruct((1, *graph.input.op.shape), graph.dtype)
    found = jax.eval_shape(
        lambda x: walk(graph, {graph.input.name: x}, checked, lambda node, z: z), batch
    )
    return {node.name: tuple(found[node.name].shape[1:]) for node in graph.nodes}


def _check_order(nodes: Iterable[Node[Kind]]) -> None:
    names: list[str] = []
    for node in nodes:
        if not isinstance(node.op, Kind):
            raise InputError(f"a {type(node.op).__name__} is no node of a spiking graph")
        if node.name in names:
            raise InputError(f"two nodes are named {node.name!r}: names must differ")
        for number in node.inputs:
            if not 0 <= number < len(names):
                raise InputError(
                    f"node {node.name!r} reads node {number}, which does not come before it"
                )
        read = len(node.inputs)
        expected = max(read, 1) if node.op.arity is None else node.op.arity
        if read != expected:
            raise InputError(f"node {node.name!r} reads {read} values, and must read {expected}")
        names.append(node.name)
    kinds = [type(node.op) for node in nodes]
    for kind in (Input, Output):
        if kinds.count(kind) != 1:
            found = [name for name, of in zip(names, kinds, strict=True) if of is kind]
            what = kind.__name__.lower()
            raise InputError(f"a spiking graph has one {what}, got {len(found)}: {found}")
    if kinds[-1] is not Output:
        raise InputError(f"the output must be the last node, got {names[-1]!r}")


def _check_numbers(node: Node[Population | Output], shape: Shape) -> None:
    for field in fields(node.op):
        own = np.shape(getattr(node.op, field.name))
        try:
            fits = np.broadcast_shapes(own, shape) == shape
        except ValueError:
            fits = False
        if not fits:
            raise InputError(
                f"the {field.name} of {node.name!r} has shape {own}, which does not broadcast "
                f"against its neurons' {shape}"
            )
