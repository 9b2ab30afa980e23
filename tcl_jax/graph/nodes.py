"""The nodes of a spiking graph: operations, populations, and where values enter and leave.

What a node does knows nothing of who feeds it.  Shapes leave out the batch.
"""

from collections.abc import Container
from dataclasses import dataclass
from itertools import chain, count
from typing import ClassVar, Generic, Self, TypeVar

import jax.numpy as jnp
from jaxtyping import Array, Real

from tcl_jax.graph.ops.base import Op, Scales, leaves, wide
from tcl_jax.pytrees import pytree


@leaves()
@dataclass(frozen=True)
class Input:
    """The images; an analog current, constant over time."""

    arity: ClassVar[int] = 0

    shape: tuple[int, ...]


@leaves("threshold", "clip", "unit")
@dataclass(frozen=True)
class Population:
    """What follows a weighted sum: ``clip(relu(x), λ)`` if read as analog, IF neurons if spiking.

    Attributes:
        threshold: θ at which the neurons fire, spikes of size θ; in the graph's units.
        clip: the analog network's own bound, in the same units; ∞ where no clip follows the ReLU.
        unit: what a value of 1 stands for in the analog network: 1 as traced, λ once thresholds
            are 1.
    """

    arity: ClassVar[int] = 1

    threshold: Real[Array, "..."]
    clip: Real[Array, "..."]
    unit: Real[Array, "..."]

    @classmethod
    def clipped(cls, bound: Real[Array, "..."]) -> Self:
        """``clip(relu(x), bound)`` as it is traced: its neurons fire where it clips.

        >>> import jax.numpy as jnp
        >>> from tcl_jax.graph import Population
        >>> Population.clipped(jnp.asarray(4.0)).unit.item()
        1.0
        """
        return cls(bound, bound, jnp.ones((), bound.dtype))

    def in_units_of(self, lam: Scales) -> Self:
        """The same population where all that arrives is divided by λ; its numbers are `wide`.

        >>> import jax.numpy as jnp, numpy as np
        >>> from tcl_jax.graph import Population
        >>> Population.clipped(jnp.asarray(4.0)).in_units_of(np.float64(2.0))
        Population(threshold=array(2.), clip=array(2.), unit=array(2.))
        """
        in_units = (wide(self.threshold) / lam, wide(self.clip) / lam, wide(self.unit) * lam)
        return type(self)(*map(wide, in_units))


@leaves("threshold", "unit")
@dataclass(frozen=True)
class Output:
    """The logits are ``unit`` times what arrives here; output neurons fire at ``threshold``."""

    arity: ClassVar[int] = 1

    threshold: Real[Array, "..."]
    unit: Real[Array, ""]

    def in_units_of(self, lam: Scales) -> Self:
        """The same output where all that arrives is divided by λ; its numbers are `wide`."""
        return type(self)(wide(wide(self.threshold) / lam), wide(wide(self.unit) * lam))


Kind = Op | Input | Population | Output
K = TypeVar("K", bound=Kind, covariant=True)


@pytree("op")
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
