"""The spiking graph: a network as plain nodes, whose neurons are clipped ReLUs or IF neurons.

One graph is read in two ways.  As an *analog* network every `Neuron` is ``clip(relu(x), θ)``; as a
*spiking* network it is a population of integrate-and-fire neurons with threshold θ whose spikes
have amplitude θ.  All that lies between neurons is affine.  Shapes in nodes leave out the batch.
"""

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any, TypeVar, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

from tcl_jax.conversion.convolution import convolve, weigh
from tcl_jax.errors import InputError

Observer = Callable[[str, Array], None]
_T = TypeVar("_T", bound=type)


def _leaves(*arrays: str) -> Callable[[_T], _T]:
    """Make a dataclass a pytree: the named fields are leaves, the others structure."""

    def register(cls: _T) -> _T:
        meta = [f.name for f in fields(cls) if f.name not in arrays]
        return jax.tree_util.register_dataclass(cls, data_fields=list(arrays), meta_fields=meta)

    return register


@_leaves()
@dataclass(frozen=True)
class Input:
    """The images; an analog current, constant over time."""

    name: str
    inputs: tuple[str, ...]
    shape: tuple[int, ...]


@_leaves("rate")
@dataclass(frozen=True)
class Quantise:
    """``round(rate · x)`` as int8, between -127 and 127: the images of an integer network."""

    name: str
    inputs: tuple[str, ...]
    rate: Float[Array, ""]


@_leaves("kernel", "bias")
@dataclass(frozen=True)
class Conv:
    """Convolution: channels last, kernel ``[*window, in / groups, out]``."""

    name: str
    inputs: tuple[str, ...]
    kernel: Float[Array, "*window i o"]
    bias: Float[Array, " o"] | None
    strides: tuple[int, ...]
    padding: tuple[tuple[int, int], ...]
    dilation: tuple[int, ...]
    groups: int


@_leaves("kernel", "bias")
@dataclass(frozen=True)
class Dense:
    """Linear map of the last axis."""

    name: str
    inputs: tuple[str, ...]
    kernel: Float[Array, "i o"]
    bias: Float[Array, " o"] | None


@_leaves("scale", "shift")
@dataclass(frozen=True)
class Scale:
    """``scale · x + shift``, each broadcasting against the signal (batch norm, an amplitude)."""

    name: str
    inputs: tuple[str, ...]
    scale: Float[Array, "..."]
    shift: Float[Array, "..."]


@_leaves("factor")
@dataclass(frozen=True)
class Pool:
    """Sums over windows, times a factor: average pooling where that is one over the window."""

    name: str
    inputs: tuple[str, ...]
    window: tuple[int, ...]
    strides: tuple[int, ...]
    padding: tuple[tuple[int, int], ...]
    factor: Float[Array, ""]


@_leaves("factor")
@dataclass(frozen=True)
class Sum:
    """Sums over whole axes, times a factor: global average pooling."""

    name: str
    inputs: tuple[str, ...]
    axes: tuple[int, ...]
    factor: Float[Array, ""]


@_leaves()
@dataclass(frozen=True)
class Reshape:
    name: str
    inputs: tuple[str, ...]
    shape: tuple[int, ...]


@_leaves()
@dataclass(frozen=True)
class Transpose:
    """Reorders axes; ``axes`` counts them without the batch."""

    name: str
    inputs: tuple[str, ...]
    axes: tuple[int, ...]


@_leaves()
@dataclass(frozen=True)
class Add:
    name: str
    inputs: tuple[str, ...]


@_leaves()
@dataclass(frozen=True)
class Concat:
    """Joins values along an axis, counted without the batch."""

    name: str
    inputs: tuple[str, ...]
    axis: int


@_leaves()
@dataclass(frozen=True)
class Pad:
    """Puts zeros around a value: ``(before, after, between)`` for every axis but the batch's."""

    name: str
    inputs: tuple[str, ...]
    padding: tuple[tuple[int, int, int], ...]


@_leaves()
@dataclass(frozen=True)
class Slice:
    """Cuts a part out of a value: bounds and strides for every axis but the batch's."""

    name: str
    inputs: tuple[str, ...]
    start: tuple[int, ...]
    stop: tuple[int, ...]
    strides: tuple[int, ...]


@_leaves("threshold")
@dataclass(frozen=True)
class Neuron:
    """``clip(relu(x), θ)``, or IF neurons of threshold θ; θ = ∞ where no clip follows the ReLU."""

    name: str
    inputs: tuple[str, ...]
    threshold: Float[Array, "..."]


@_leaves("threshold", "scale")
@dataclass(frozen=True)
class Output:
    """The logits are ``scale`` times what arrives here; output neurons fire at ``threshold``."""

    name: str
    inputs: tuple[str, ...]
    threshold: Float[Array, ""]
    scale: Float[Array, ""]


Node = (
    Input
    | Quantise
    | Conv
    | Dense
    | Scale
    | Pool
    | Sum
    | Reshape
    | Transpose
    | Add
    | Concat
    | Pad
    | Slice
    | Neuron
    | Output
)
KINDS: dict[str, type[Node]] = {kind.__name__: kind for kind in get_args(Node)}


@_leaves("nodes")
@dataclass(frozen=True)
class SpikingGraph:
    """Nodes in an order in which each comes after its inputs; the last is the output.

    A pytree: jit it, move it, shard it, differentiate through it.
    """

    nodes: tuple[Node, ...]

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


def affine(node: Node, *inputs: Float[Array, "b ..."]) -> Float[Array, "b ..."]:
    """What a node that is neither neuron nor input does to its batched inputs."""
    x = inputs[0]
    match node:
        case Quantise():
            # A product is rounded alike everywhere, which a quotient is not.
            return jnp.clip(jnp.round(x * node.rate), -127, 127).astype(jnp.int8)
        case Conv():
            y = convolve(x, node.kernel, node.strides, node.padding, node.dilation, node.groups)
            return y if node.bias is None else y + _channels(node.bias, y)
        case Dense():
            y = weigh(x, node.kernel, _dense)
            return y if node.bias is None else y + _channels(node.bias, y)
        case Scale():
            return x * _against(node.scale, x) + _against(node.shift, x)
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
            return inputs[0] + inputs[1]
        case Concat():
            return jnp.concatenate(inputs, node.axis + 1)
        case Pad():
            return lax.pad(x, jnp.zeros((), x.dtype), ((0, 0, 0), *node.padding))
        case Slice():
            start, stop = (0, *node.start), (x.shape[0], *node.stop)
            return lax.slice(x, start, stop, (1, *node.strides))
        case Output():
            return x
    raise TypeError(f"{type(node).__name__} is not affine")


def _wide(x: Array) -> Array:
    """Counts of spikes with room for their sums."""
    return x.astype(jnp.int32) if jnp.issubdtype(x.dtype, jnp.integer) else x


def _dense(x: Array, kernel: Array, dtype: Any) -> Array:
    contract = (((x.ndim - 1,), (0,)), ((), ()))
    return lax.dot_general(x, kernel, contract, preferred_element_type=dtype)


def _channels(vector: Float[Array, " c"], like: Array) -> Float[Array, "..."]:
    return vector.reshape((1,) * (like.ndim - 1) + vector.shape)


def _against(value: Float[Array, "..."], like: Array) -> Float[Array, "..."]:
    """Ranks made equal, so that nothing rests on implicit promotion."""
    return value.reshape((1,) * (like.ndim - value.ndim) + value.shape)


def evaluate(
    graph: SpikingGraph, x: Float[Array, "b ..."], observe: Observer | None = None
) -> Float[Array, "b classes"]:
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
    check_input(graph, x)
    values: dict[str, Any] = {}
    for node in graph.nodes:
        if isinstance(node, Input):
            values[node.name] = x
        elif isinstance(node, Neuron):
            (z,) = (values[i] for i in node.inputs)
            values[node.name] = jnp.minimum(jnp.maximum(z, 0), _against(node.threshold, z))
        else:
            values[node.name] = affine(node, *(values[i] for i in node.inputs))
        if observe is not None and isinstance(node, Neuron):
            observe(node.name, values[node.name])
    logits = values[graph.output.name] * graph.output.scale
    if observe is not None:
        observe(graph.output.name, logits)
    return logits


def check_input(graph: SpikingGraph, x: Float[Array, "b ..."]) -> None:
    """Raises InputError where a batch does not have the shape that the graph takes."""
    if tuple(x.shape[1:]) != graph.input.shape:
        raise InputError(
            f"the network takes images of shape {graph.input.shape}, got {tuple(x.shape[1:])} "
            f"(a batch of shape {tuple(x.shape)})"
        )


def shapes(graph: SpikingGraph) -> dict[str, tuple[int, ...]]:
    """Shape of every node's value, without the batch."""
    found: dict[str, tuple[int, ...]] = {}

    def run(x: Array) -> None:
        values: dict[str, Any] = {}
        for node in graph.nodes:
            ins = [values[i] for i in node.inputs]
            if isinstance(node, Input):
                values[node.name] = x
            else:
                values[node.name] = ins[0] if isinstance(node, Neuron) else affine(node, *ins)
            found[node.name] = tuple(values[node.name].shape[1:])

    jax.eval_shape(run, jax.ShapeDtypeStruct((1, *graph.input.shape), graph.dtype))
    return found
