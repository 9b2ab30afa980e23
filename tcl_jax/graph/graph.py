"""The spiking graph: a network as plain nodes, whose neurons are clipped ReLUs or IF neurons.

One graph is read in two ways.  As an *analog* network every `Neuron` is ``clip(relu(x), θ)``; as a
*spiking* network it is a population of integrate-and-fire neurons with threshold θ whose spikes
have amplitude θ.  All that lies between neurons is affine.
"""

import difflib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Real

from tcl_jax.errors import InputError
from tcl_jax.graph.convolution import PRECISION, convolve, weigh
from tcl_jax.graph.nodes import (
    KINDS,
    Add,
    Concat,
    Conv,
    Dense,
    Input,
    Neuron,
    Node,
    Output,
    Pad,
    Pool,
    Quantise,
    Reshape,
    Scale,
    Slice,
    Sum,
    Transpose,
    unknown,
)
from tcl_jax.promotion import against, alike, wider

Observer = Callable[[str, Array], None]


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


def affine(node: Node, *inputs: Real[Array, "b ..."]) -> Real[Array, "b ..."]:
    """What a node that is neither neuron nor input does to its batched inputs."""
    x = inputs[0]
    match node:
        case Quantise():
            # A product is rounded alike everywhere, which a quotient is not.
            dtype = wider(x.dtype, node.rate.dtype)
            scaled = x.astype(dtype) * node.rate.astype(dtype)
            return jnp.clip(jnp.round(scaled), -127, 127).astype(jnp.int8)
        case Conv():
            y = convolve(x, node.kernel, node.strides, node.padding, node.dilation, node.groups)
            return _with(node.bias, y)
        case Dense():
            y = weigh(x, node.kernel, _dense)
            return _with(node.bias, y)
        case Scale():
            x = x.astype(wider(x.dtype, node.scale.dtype))
            return x * against(node.scale, x) + against(node.shift, x)
        case Pool():
            wide = _wide(x)
            summed = lax.reduce_window(
                wide,
                np.zeros((), wide.dtype),  # concrete under jit, or it has no derivative
                lax.add,
                (1, *node.window),
                (1, *node.strides),
                ((0, 0), *node.padding),
            )
            return summed.astype(node.factor.dtype) * node.factor
        case Sum():
            summed = jnp.sum(_wide(x), tuple(a + 1 for a in node.axes))
            return summed.astype(node.factor.dtype) * node.factor
        case Reshape():
            return x.reshape(x.shape[0], *node.shape)
        case Transpose():
            return x.transpose(0, *(a + 1 for a in node.axes))
        case Add():
            a, b = alike(*inputs)
            return a + b
        case Concat():
            return jnp.concatenate(alike(*inputs), node.axis + 1)
        case Pad():
            return lax.pad(x, jnp.zeros((), x.dtype), ((0, 0, 0), *node.padding))
        case Slice():
            start, stop = (0, *node.start), (x.shape[0], *node.stop)
            return lax.slice(x, start, stop, (1, *node.strides))
        case Output():
            return x
    raise unknown(node)


def _with(bias: Array | None, y: Array) -> Array:
    if bias is None:
        return y
    y, bias = alike(y, against(bias, y))
    return y + bias


def _wide(x: Array) -> Array:
    """Counts of spikes with room for their sums."""
    return x.astype(jnp.int32) if jnp.issubdtype(x.dtype, jnp.integer) else x


def _dense(x: Array, kernel: Array, **how: Any) -> Array:
    return lax.dot_general(x, kernel, (((x.ndim - 1,), (0,)), ((), ())), **how)


def evaluate(
    graph: SpikingGraph, x: Real[Array, "b ..."], observe: Observer | None = None
) -> Float[Array, "b ..."]:
    """The graph as an analog network: its logits.

    Args:
        graph: folded or not, normalised or not.
        x: a batch of inputs.
        observe: called with every neuron's name and activation, and the output's with the logits.

    Returns:
        The logits.

    Raises:
        InputError: the images have another shape than the graph takes.

    >>> import jax, jax.numpy as jnp
    >>> from tcl_jax import clip
    >>> from tcl_jax.conversion import evaluate, trace
    >>> graph = trace(lambda x: clip(jax.nn.relu(x), 2.0) * 10.0, jnp.zeros((1, 3)))
    >>> evaluate(graph, jnp.array([[-1.0, 1.0, 5.0]])).tolist()
    [[0.0, 10.0, 20.0]]
    """
    x = images(graph, x)
    return _logits(graph, x) if observe is None else _walk(graph, x, observe)


def _walk(graph: SpikingGraph, x: Array, observe: Observer) -> Array:
    values: dict[str, Any] = {}
    for node in graph.nodes:
        if isinstance(node, Input):
            values[node.name] = x
        elif isinstance(node, Neuron):
            (z,) = (values[i] for i in node.inputs)
            values[node.name] = jnp.minimum(*alike(jnp.maximum(z, 0), against(node.threshold, z)))
        else:
            values[node.name] = affine(node, *(values[i] for i in node.inputs))
        if isinstance(node, Neuron):
            observe(node.name, values[node.name])
    total, scale = alike(values[graph.output.name], graph.output.scale)
    logits = total * scale
    observe(graph.output.name, logits)
    return logits


@jax.jit
def _logits(graph: SpikingGraph, x: Array) -> Array:
    return _walk(graph, x, lambda name, activation: None)


def precision(graph: SpikingGraph) -> dict[str, str]:
    """What its products are computed in, to be written beside figures.

    >>> import jax.numpy as jnp
    >>> from tcl_jax.conversion import trace
    >>> from tcl_jax.graph import precision
    >>> precision(trace(lambda x: x @ jnp.eye(2), jnp.zeros((1, 2))))
    {'dtype': 'float32', 'matmul_precision': 'highest'}
    """
    return {"dtype": str(graph.dtype), "matmul_precision": PRECISION}


def images(graph: SpikingGraph, x: Real[Array | np.ndarray, "b ..."]) -> Real[Array, "b ..."]:
    """A batch in the type that the graph computes in.

    Raises:
        InputError: it is no array, or does not have the shape that the graph takes.
    """
    check_batch(x)
    if tuple(x.shape[1:]) != graph.input.shape:
        raise InputError(
            f"the network takes images of shape {graph.input.shape}, got {tuple(x.shape[1:])} "
            f"(a batch of shape {tuple(x.shape)})"
        )
    # A graph of whole numbers rounds the images itself.
    return jnp.asarray(x, wider(graph.dtype, jnp.float32))


def check_batch(x: Any) -> None:
    """Raises InputError where something is no array of images."""
    if not hasattr(x, "shape") or not hasattr(x, "dtype"):
        advice = {
            "tuple": "give the images alone, without labels",
            "dict": 'give the images alone, as batch["image"]',
            "list": "give one array, as jnp.stack(images)",
        }.get(type(x).__name__, "give a NumPy or JAX array")
        raise InputError(f"a batch must be an array of images, got a {type(x).__name__}: {advice}")
    if not len(x.shape):
        raise InputError("a batch must be an array of images, got a single number")
    if not (jnp.issubdtype(x.dtype, jnp.integer) or jnp.issubdtype(x.dtype, jnp.floating)):
        raise InputError(f"images must be numbers, got an array of {x.dtype}")


def shapes(graph: SpikingGraph) -> dict[str, tuple[int, ...]]:
    """Shape of every node's value, without the batch.

    Raises:
        InputError: a node cannot read what it is given.
    """
    found: dict[str, tuple[int, ...]] = {}

    def run(x: Array) -> None:
        values: dict[str, Any] = {}
        for node in graph.nodes:
            ins = [values[i] for i in node.inputs]
            try:
                value = x if isinstance(node, Input) else ins[0]
                if not isinstance(node, Input | Neuron):
                    value = affine(node, *ins)
            except (TypeError, ValueError) as error:
                line = next(iter(str(error).splitlines()), "")
                sizes = " and ".join(str(tuple(v.shape[1:])) for v in ins)
                raise InputError(f"node {node.name!r} cannot read {sizes}: {line}") from error
            values[node.name] = value
            found[node.name] = tuple(value.shape[1:])

    jax.eval_shape(run, jax.ShapeDtypeStruct((1, *graph.input.shape), graph.dtype))
    return found


def _check_order(nodes: tuple[Node, ...]) -> None:
    names: set[str] = set()
    for node in nodes:
        if type(node).__name__ not in KINDS:
            raise InputError(f"a {type(node).__name__} is no node of a spiking graph")
        if node.name in names:
            raise InputError(f"two nodes are named {node.name!r}: names must differ")
        for name in node.inputs:
            if name not in names:
                raise InputError(
                    f"node {node.name!r} reads {name!r}, which does not come before it"
                )
        read = len(node.inputs)
        expected = {Input: 0, Add: 2, Concat: max(read, 1)}.get(type(node), 1)
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
