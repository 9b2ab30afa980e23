"""The nodes of a spiking graph: operations, each with its weights and the names of what it reads.

Shapes leave out the batch.
"""

from collections.abc import Callable, Container
from dataclasses import dataclass, fields
from itertools import chain, count
from typing import TypeVar, get_args

import jax
from jaxtyping import Array, Real

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
    rate: Real[Array, ""]


@_leaves("kernel", "bias")
@dataclass(frozen=True)
class Conv:
    """Convolution: channels last, kernel ``[*window, in / groups, out]``."""

    name: str
    inputs: tuple[str, ...]
    kernel: Real[Array, "*window i o"]
    bias: Real[Array, " o"] | None
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
    kernel: Real[Array, "i o"]
    bias: Real[Array, " o"] | None


@_leaves("scale", "shift")
@dataclass(frozen=True)
class Scale:
    """``scale · x + shift``, each broadcasting against the signal (batch norm, an amplitude)."""

    name: str
    inputs: tuple[str, ...]
    scale: Real[Array, "..."]
    shift: Real[Array, "..."]


@_leaves("factor")
@dataclass(frozen=True)
class Pool:
    """Sums over windows, times a factor: average pooling where that is one over the window."""

    name: str
    inputs: tuple[str, ...]
    window: tuple[int, ...]
    strides: tuple[int, ...]
    padding: tuple[tuple[int, int], ...]
    factor: Real[Array, ""]


@_leaves("factor")
@dataclass(frozen=True)
class Sum:
    """Sums over whole axes, times a factor: global average pooling."""

    name: str
    inputs: tuple[str, ...]
    axes: tuple[int, ...]
    factor: Real[Array, ""]


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
    threshold: Real[Array, "..."]


@_leaves("threshold", "scale")
@dataclass(frozen=True)
class Output:
    """The logits are ``scale`` times what arrives here; output neurons fire at ``threshold``."""

    name: str
    inputs: tuple[str, ...]
    threshold: Real[Array, "..."]
    scale: Real[Array, ""]


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


def free(name: str, taken: Container[str]) -> str:
    """The name, or where it is taken the first of ``name_2``, ``name_3``, ... that is not.

    >>> free("conv", {"conv", "conv_2"})
    'conv_3'
    """
    numbered = (f"{name}_{number}" for number in count(2))
    return next(n for n in chain([name], numbered) if n not in taken)


def unknown(node: object) -> TypeError:
    """For the end of every choice over kinds of nodes: a new kind must be thought of in each."""
    return TypeError(f"{type(node).__name__} is a kind of node that is not provided for here")


KINDS: dict[str, type[Node]] = {kind.__name__: kind for kind in get_args(Node)}
