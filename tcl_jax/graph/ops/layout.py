"""Operations that move values about: every number of theirs is one that they read, or zero."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array

from tcl_jax.graph.ops.base import Positive, Scales, Shape, compact, constant_along, leaves
from tcl_jax.promotion import alike


@leaves()
@dataclass(frozen=True)
class Reshape(Positive):
    """The same numbers in another shape."""

    shape: tuple[int, ...]

    def apply(self, *values: Array) -> Array:
        return values[0].reshape(values[0].shape[0], *self.shape)

    def carry(self, scales: Sequence[Scales], shapes: Sequence[Shape]) -> Scales | None:
        return _reshaped(scales[0], shapes[0], self.shape)

    def split(self, scale: Scales, shapes: Sequence[Shape]) -> tuple[Scales, ...] | None:
        return (_reshaped(scale, self.shape, shapes[0]),)


def _reshaped(scale: Scales, before: Shape, after: Shape) -> Scales:
    return compact(np.broadcast_to(scale, before).reshape(after))


@leaves()
@dataclass(frozen=True)
class Transpose(Positive):
    """Reorders axes; ``axes`` counts them without the batch."""

    axes: tuple[int, ...]

    def apply(self, *values: Array) -> Array:
        return values[0].transpose(0, *(a + 1 for a in self.axes))

    def carry(self, scales: Sequence[Scales], shapes: Sequence[Shape]) -> Scales | None:
        return compact(np.broadcast_to(scales[0], shapes[0]).transpose(self.axes))

    def split(self, scale: Scales, shapes: Sequence[Shape]) -> tuple[Scales, ...] | None:
        full = np.broadcast_to(scale, [shapes[0][a] for a in self.axes])
        return (compact(full.transpose(np.argsort(self.axes))),)


@leaves()
@dataclass(frozen=True)
class Concat(Positive):
    """Joins values along an axis, counted without the batch."""

    arity: ClassVar[int | None] = None

    axis: int

    def apply(self, *values: Array) -> Array:
        return jnp.concatenate(alike(*values), self.axis + 1)

    def carry(self, scales: Sequence[Scales], shapes: Sequence[Shape]) -> Scales | None:
        full = [np.broadcast_to(s, shape) for s, shape in zip(scales, shapes, strict=True)]
        return compact(np.concatenate(full, self.axis))

    def split(self, scale: Scales, shapes: Sequence[Shape]) -> tuple[Scales, ...] | None:
        edges = np.cumsum([0, *(shape[self.axis] for shape in shapes)])
        whole = list(shapes[0])
        whole[self.axis] = int(edges[-1])
        parts = np.split(np.broadcast_to(scale, whole), edges[1:-1], self.axis)
        return tuple(map(compact, parts))


@leaves()
@dataclass(frozen=True)
class Pad(Positive):
    """Puts zeros around a value: ``(before, after, between)`` for every axis but the batch's."""

    padding: tuple[tuple[int, int, int], ...]

    def apply(self, *values: Array) -> Array:
        (x,) = values
        return lax.pad(x, jnp.zeros((), x.dtype), ((0, 0, 0), *self.padding))

    # Zeros are zeros in any scale: along an axis that gains or loses places, that of the others.
    def carry(self, scales: Sequence[Scales], shapes: Sequence[Shape]) -> Scales | None:
        return compact(scales[0]) if self._passes(scales[0]) else None

    def split(self, scale: Scales, shapes: Sequence[Shape]) -> tuple[Scales, ...] | None:
        return (compact(scale),) if self._passes(scale) else None

    def _passes(self, scale: Scales) -> bool:
        return constant_along(scale, [any(p) for p in self.padding])


@leaves()
@dataclass(frozen=True)
class Slice(Positive):
    """Cuts a part out of a value: bounds and strides for every axis but the batch's."""

    start: tuple[int, ...]
    stop: tuple[int, ...]
    strides: tuple[int, ...]

    def apply(self, *values: Array) -> Array:
        (x,) = values
        start, stop = (0, *self.start), (x.shape[0], *self.stop)
        return lax.slice(x, start, stop, (1, *self.strides))

    def carry(self, scales: Sequence[Scales], shapes: Sequence[Shape]) -> Scales | None:
        return compact(np.broadcast_to(scales[0], shapes[0])[self._part()])

    def split(self, scale: Scales, shapes: Sequence[Shape]) -> tuple[Scales, ...] | None:
        # What is not read may have any scale: where all is one, that one.
        cuts = zip(self.start, self.stop, self.strides, shapes[0], strict=True)
        if constant_along(scale, [(a, b, s) != (0, n, 1) for a, b, s, n in cuts]):
            return (compact(scale),)
        full = np.ones(shapes[0])
        full[self._part()] = scale
        return (full,)

    def _part(self) -> tuple[slice, ...]:
        return tuple(map(slice, self.start, self.stop, self.strides))


@leaves()
@dataclass(frozen=True)
class Take(Positive):
    """Picks along an axis, counted without the batch: flips, repeats, indexing, enlarging.

    Attributes:
        index: of every place of the result, the one that is read, or -1, for which there is 0.
    """

    axis: int
    index: tuple[int, ...]

    def apply(self, *values: Array) -> Array:
        (x,) = values
        read = self._read()
        found = jnp.take(x, np.maximum(read, 0), self.axis + 1, mode="clip")
        if (read >= 0).all():
            return found
        there = self._along(read >= 0, found.ndim - 1)
        return jnp.where(there, found, jnp.zeros((), x.dtype))

    def carry(self, scales: Sequence[Scales], shapes: Sequence[Shape]) -> Scales | None:
        read = self._read()
        full = np.broadcast_to(scales[0], shapes[0]).take(np.maximum(read, 0), self.axis)
        # Zeros are zeros in any scale: that of what is read first.
        first = np.broadcast_to(scales[0], shapes[0]).take([max(read.max(), 0)], self.axis)
        return compact(np.where(self._along(read >= 0, full.ndim), full, first))

    def split(self, scale: Scales, shapes: Sequence[Shape]) -> tuple[Scales, ...] | None:
        if constant_along(scale, [axis == self.axis for axis in range(len(shapes[0]))]):
            return (compact(scale),)
        read, (shape,) = self._read(), shapes
        full = np.broadcast_to(scale, (*shape[: self.axis], len(read), *shape[self.axis + 1 :]))
        full = np.moveaxis(full, self.axis, 0)[read >= 0]
        # What nobody reads may have any scale, and what several read has one.
        found = np.ones((shape[self.axis], *full.shape[1:]))
        found[read[read >= 0]] = full
        if not np.array_equal(found[read[read >= 0]], full):
            return None
        return (compact(np.moveaxis(found, 0, self.axis)),)

    def _read(self) -> np.ndarray:
        return np.asarray(self.index, np.int32)

    def _along(self, values: np.ndarray, rank: int) -> np.ndarray:
        """What there is one of for every place along the axis, for values of so many axes."""
        return np.expand_dims(values, tuple(range(1, rank - self.axis)))
