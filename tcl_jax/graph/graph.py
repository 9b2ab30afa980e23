"""The spiking graph: a network as plain nodes, whose neurons are clipped ReLUs or IF neurons.

One graph is read in two ways.  As an *analog* network every `Neuron` is ``clip(relu(x), θ)``; as a
*spiking* network it is a population of integrate-and-fire neurons with threshold θ whose spikes
have amplitude θ.  All that lies between neurons is affine.
"""

import difflib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import jax
import numpy as np
from jaxtyping import Array

from tcl_jax.errors import InputError
from tcl_jax.graph.nodes import Input, Neuron, Node, Output
from tcl_jax.graph.ops.base import Op

_T = TypeVar("_T")


@jax.tree_util.register_pytree_with_keys_class
@dataclass(frozen=True)
class SpikingGraph:
    """Nodes in an order in which each comes after its inputs; the last is the output.

    A pytree: jit it, move it, shard it, stack it, differentiate through it.

    Raises:
        InputError: the nodes are no graph: a name is taken twice, a node reads what does not come
            before it, or cannot read it; there is not one input and, last, one output; a threshold
            does not broadcast against the neurons' value.

    >>> import jax.numpy as jnp
    >>> from tcl_jax.graph.graph import Input, Output, SpikingGraph
    >>> one = jnp.ones(())
    >>> SpikingGraph((Input("x", (), (3,)), Output("y", ("z",), one, one)))
    Traceback (most recent call last):
    tcl_jax.errors.InputError: node 'y' reads 'z', which does not come before it
    """

    nodes: tuple[Node, ...]

    def __post_init__(self) -> None:
        _check_order(self.nodes)
        found = shapes(self)
        for node in self.spiking:
            _check_threshold(node, found[node.name])

    def tree_flatten_with_keys(self) -> tuple[Any, None]:
        return ((jax.tree_util.GetAttrKey("nodes"), self.nodes),), None

    @classmethod
    def tree_unflatten(cls, _: None, children: Any) -> "SpikingGraph":
        # Unchecked: in place of arrays there may be anything, as stacks of them.
        graph = object.__new__(cls)
        object.__setattr__(graph, "nodes", children[0])
        return graph

    @property
    def input(self) -> Input:
        return next(n for n in self.nodes if isinstance(n, Input))

    @property
    def output(self) -> Output:
        return next(n for n in self.nodes if isinstance(n, Output))

    @property
    def dtype(self) -> Any:
        """Of potentials: float32, float64 if traced on a float64 input, or int32 if quantised."""
        return self.output.threshold.dtype

    @property
    def neurons(self) -> tuple[Neuron, ...]:
        return tuple(n for n in self.nodes if isinstance(n, Neuron))

    @property
    def spiking(self) -> tuple[Neuron | Output, ...]:
        """All that fires: the neurons, and last the output's."""
        return (*self.neurons, self.output)

    def node(self, name: str) -> Node:
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


def walk(
    graph: SpikingGraph,
    known: Mapping[str, _T],
    linear: Callable[..., _T],
    population: Callable[[Neuron | Output, _T], _T],
) -> dict[str, _T]:
    """Go through the graph once, each node after what it reads: what every reading of it is.

    Args:
        graph: any.
        known: values that are there already by their node's name, the input's among them.
        linear: from an operation and the values that it reads to its own.
        population: from neurons, or the output, and what arrives there to their value.

    Returns:
        The value of every node, by name.

    >>> import jax, jax.numpy as jnp
    >>> from tcl_jax.conversion import trace
    >>> from tcl_jax.graph import walk
    >>> graph = trace(lambda x: jax.nn.relu(x @ jnp.eye(2)) + x, jnp.zeros((1, 2)))
    >>> depths = walk(graph, {"input": 0}, lambda op, *above: max(above), lambda node, z: z + 1)
    >>> list(depths.values())
    [0, 0, 1, 1, 2]
    """
    values = dict(known)
    for node in graph.nodes:
        if node.name in values:
            continue
        read = [values[name] for name in node.inputs]
        if isinstance(node, Neuron | Output):
            values[node.name] = population(node, *read)
        else:
            values[node.name] = linear(node, *read)
    return values


def shapes(graph: SpikingGraph) -> dict[str, tuple[int, ...]]:
    """Shape of every node's value, without the batch.

    Raises:
        InputError: a node cannot read what it is given.
    """

    def carried_out(op: Op, *values: Array) -> Array:
        try:
            return op.apply(*values)
        except (TypeError, ValueError) as error:
            line = next(iter(str(error).splitlines()), "")
            sizes = " and ".join(str(tuple(v.shape[1:])) for v in values)
            raise InputError(f"node {op.name!r} cannot read {sizes}: {line}") from error

    batch = jax.ShapeDtypeStruct((1, *graph.input.shape), graph.dtype)
    found = jax.eval_shape(
        lambda x: walk(graph, {graph.input.name: x}, carried_out, lambda node, z: z), batch
    )
    return {name: tuple(value.shape[1:]) for name, value in found.items()}


def _check_order(nodes: tuple[Node, ...]) -> None:
    names: set[str] = set()
    for node in nodes:
        if not isinstance(node, Node):
            raise InputError(f"a {type(node).__name__} is no node of a spiking graph")
        if node.name in names:
            raise InputError(f"two nodes are named {node.name!r}: names must differ")
        for name in node.inputs:
            if name not in names:
                raise InputError(
                    f"node {node.name!r} reads {name!r}, which does not come before it"
                )
        read = len(node.inputs)
        expected = max(read, 1) if node.arity is None else node.arity
        if read != expected:
            raise InputError(f"node {node.name!r} reads {read} values, and must read {expected}")
        names.add(node.name)
    for kind in (Input, Output):
        found = [n.name for n in nodes if isinstance(n, kind)]
        if len(found) != 1:
            what = kind.__name__.lower()
            raise InputError(f"a spiking graph has one {what}, got {len(found)}: {found}")
    if not isinstance(nodes[-1], Output):
        raise InputError(f"the output must be the last node, got {nodes[-1].name!r}")


def _check_threshold(node: Neuron | Output, shape: tuple[int, ...]) -> None:
    threshold = np.shape(node.threshold)
    try:
        fits = np.broadcast_shapes(threshold, shape) == shape
    except ValueError:
        fits = False
    if not fits:
        raise InputError(
            f"the threshold of {node.name!r} has shape {threshold}, which does not broadcast "
            f"against its neurons' {shape}"
        )
