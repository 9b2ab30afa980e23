"""Operations that add up what they read: pools, sums over axes, and the sum of two branches."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal, Self

import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Real

from tcl_jax.graph.ops.base import (
    Interval,
    Op,
    Positive,
    Scales,
    Shape,
    compact,
    constant_along,
    equal,
    leaves,
    wide,
)
from tcl_jax.promotion import alike


@dataclass(frozen=True)
class Summing(Op):
    """A sum of neighbours, times one factor for all."""

    synapse: ClassVar[Literal["weight", "sum"] | None] = "sum"

    factor: Array

    def then(self, scale: Scales, shift: Scales) -> Self | None:
        if scale.size != 1 or shift.any():
            return None
        return replace(self, factor=wide(wide(self.factor) * scale.reshape(())))

    def bounds(self, *intervals: Interval) -> Interval:
        low, high = (self.apply(end) for end in intervals[0])
        return jnp.minimum(low, high), jnp.maximum(low, high)  # the factor may be negative

    def paths(self, *events: Array) -> Array:
        (x,) = events
        return replace(self, factor=jnp.ones((), x.dtype)).apply(x)

    def counted(self, dtype: Any) -> tuple[Self, float | None]:
        return replace(self, factor=jnp.ones((), dtype)), float(self.factor)

    def _times_factor(self, total: Array) -> Array:
        return total.astype(self.factor.dtype) * self.factor


@leaves("factor")
@dataclass(frozen=True)
class Pool(Summing):
    """Sums over windows, times a factor: average pooling where that is one over the window."""

    window: tuple[int, ...]
    strides: tuple[int, ...]
    padding: tuple[tuple[int, int], ...]
    factor: Real[Array, ""]

    def apply(self, *values: Array) -> Array:
        x = _with_room(values[0])
        total = lax.reduce_window(
            x,
            np.zeros((), x.dtype),  # concrete under jit, or it has no derivative
            lax.add,
            (1, *self.window),
            (1, *self.strides),
            ((0, 0), *self.padding),
        )
        return self._times_factor(total)

    # Windows know nothing of places: along them a scale must not either.
    def carry(self, scales: Sequence[Scales], shapes: Sequence[Shape]) -> Scales | None:
        return compact(scales[0]) if constant_along(scales[0], self._touched()) else None

    def split(self, scale: Scales, shapes: Sequence[Shape]) -> tuple[Scales, ...] | None:
        return (compact(scale),) if constant_along(scale, self._touched()) else None

    def _touched(self) -> list[bool]:
        sides = zip(self.window, self.strides, self.padding, strict=True)
        return [w > 1 or s > 1 or any(p) for w, s, p in sides]


@leaves("factor")
@dataclass(frozen=True)
class Sum(Summing):
    """Sums over whole axes, times a factor: global average pooling."""

    axes: tuple[int, ...]
    factor: Real[Array, ""]

    def apply(self, *values: Array) -> Array:
        return self._times_factor(jnp.sum(_with_room(values[0]), tuple(a + 1 for a in self.axes)))

    def carry(self, scales: Sequence[Scales], shapes: Sequence[Shape]) -> Scales | None:
        marked = [axis in self.axes for axis in range(len(shapes[0]))]
        if not constant_along(scales[0], marked):
            return None
        full = np.broadcast_to(scales[0], shapes[0])
        return compact(full[tuple(0 if m else slice(None) for m in marked)])

    def split(self, scale: Scales, shapes: Sequence[Shape]) -> tuple[Scales, ...] | None:
        kept = [size for axis, size in enumerate(shapes[0]) if axis not in self.axes]
        return (compact(np.expand_dims(np.broadcast_to(scale, kept), self.axes)),)


def _with_room(x: Array) -> Array:
    """Counts of spikes with room for their sums."""
    return x.astype(jnp.int32) if jnp.issubdtype(x.dtype, jnp.integer) else x


@leaves()
@dataclass(frozen=True)
class Add(Positive):
    """The sum of two values, of the same shape or broadcasting."""

    arity: ClassVar[int | None] = 2

    def apply(self, *values: Array) -> Array:
        a, b = alike(*values)
        return a + b

    def carry(self, scales: Sequence[Scales], shapes: Sequence[Shape]) -> Scales | None:
        return compact(scales[0]) if equal(*scales) else None

    def split(self, scale: Scales, shapes: Sequence[Shape]) -> tuple[Scales, ...] | None:
        return compact(scale), compact(scale)
