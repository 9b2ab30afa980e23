"""The nodes of a spiking graph: operations, populations, and where values enter and leave.

What a node does knows nothing of who feeds it.  Shapes leave out the batch.
"""

from collections.abc import Container
from dataclasses import dataclass
from itertools import chain, count
from typing import ClassVar, Generic, TypeVar

from jaxtyping import Array, Real

from tcl_jax.graph.ops.base import Op, leaves
from tcl_jax.graph.ops.layout import Concat, Pad, Reshape, Slice, Transpose
from tcl_jax.graph.ops.sums import Add, Pool, Sum
from tcl_jax.graph.ops.weights import Conv, Dense, Quantise, Scale


@leaves()
@dataclass(frozen=True)
class Input:
    """The images; an analog current, constant over time."""

    arity: ClassVar[int] = 0

    shape: tuple[int, ...]


@leaves("threshold")
@dataclass(frozen=True)
class Neuron:
    """``clip(relu(x), θ)``, or IF neurons of threshold θ; θ = ∞ where no clip follows the ReLU."""

    arity: ClassVar[int] = 1

    threshold: Real[Array, "..."]


@leaves("threshold", "scale")
@dataclass(frozen=True)
class Output:
    """The logits are ``scale`` times what arrives here; output neurons fire at ``threshold``."""

    arity: ClassVar[int] = 1

    threshold: Real[Array, "..."]
    scale: Real[Array, ""]


Kind = Op | Input | Neuron | Output
K = TypeVar("K", bound=Kind, covariant=True)


@leaves("op")
@dataclass(frozen=True)
class Node(Generic[K]):
    """Something that a graph does with values, and where those come from.

    Attributes:
        op: what is done.
        inputs: numbers of the nodes that are read, all before this one.
        name: for people, and what is reported goes by it: no two nodes of a graph share it.
    """

    op: K
    inputs: tuple[int, ...]
    name: str


def free(name: str, taken: Container[str]) -> str:
    """The name, or where it is taken the first of ``name_2``, ``name_3``, ... that is not.

    >>> free("conv", {"conv", "conv_2"})
    'conv_3'
    """
    numbered = (f"{name}_{number}" for number in count(2))
    return next(n for n in chain([name], numbered) if n not in taken)


def unknown(op: object) -> TypeError:
    """For the end of a choice over kinds of nodes: a new kind must be thought of in each."""
    return TypeError(f"{type(op).__name__} is a kind of node that is not provided for here")


KINDS: dict[str, type[Kind]] = {
    kind.__name__: kind
    for kind in (
        *(Input, Quantise, Conv, Dense, Scale, Pool, Sum),
        *(Reshape, Transpose, Add, Concat, Pad, Slice, Neuron, Output),
    )
}
"""By the name that an artifact on disk has for it."""
