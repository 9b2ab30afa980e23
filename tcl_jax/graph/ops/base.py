"""What an operation can say of itself, and the answers that are true of every linear map.

Scales are float64 arrays that broadcast against a value without its batch, as λ does: one number,
or one for each channel, or place.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Any, ClassVar, Literal, Self, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Real

from tcl_jax.pytrees import pytree
from tcl_jax.registry import Registry

Scales = Float[np.ndarray, "..."] | np.float64
"""What a scale is; NumPy makes numbers of arrays without axes."""
Interval = tuple[Real[Array, "1 ..."], Real[Array, "1 ..."]]
"""The smallest and the largest that every number of a value can be."""
Shape = tuple[int, ...]

_T = TypeVar("_T", bound=type)
_Tree = TypeVar("_Tree")


KINDS: Registry[type[Any]] = Registry("kind of node")
"""Kinds of nodes by the name of their class, which an artifact on disk has for them."""


def leaves(*arrays: str) -> Callable[[_T], _T]:
    """Make a dataclass a kind of node, and a pytree: the named fields are leaves, others structure.

    So it can be compiled, saved and loaded.
    """

    def register(cls: _T) -> _T:
        KINDS.register(cls.__name__)(cls)
        return pytree(*arrays)(cls)

    return register


@dataclass(frozen=True)
class Op(ABC):
    """A linear map of batched values; `Affine` ones add a constant.

    A kind of operation is a dataclass of its numbers and shape, with `apply`.  The four laws by
    which scales move, `then`, `after`, `carry` and `split`, hold for any linear map as they stand,
    and answer None for what only a kind itself can know; what has taken a scale up holds `wide`
    numbers.  Readings that nothing general is true of
    raise until a kind answers: no kind is taken for another.
    """

    arity: ClassVar[int | None] = 1
    """How many values it reads; None for any number but none."""
    synapse: ClassVar[Literal["weight", "sum"] | None] = None
    """What an event meets there: a weight, a window that it lies in, or nothing that is counted."""

    @abstractmethod
    def apply(self, *values: Real[Array, "b ..."]) -> Real[Array, "b ..."]:
        """What it does to batched values."""

    def then(self, scale: Scales, shift: Scales) -> Self | None:
        """The operation ``scale · op(x) + shift``, where that is one of this kind."""
        return None

    def after(self, scales: Sequence[Scales]) -> Self | None:
        """The operation ``op(scale · x, …)``, where that is one of this kind."""
        return None

    def carry(self, scales: Sequence[Scales], shapes: Sequence[Shape]) -> Scales | None:
        """The s with ``op(scale · x, …) = s · op(x, …)``, where there is one.

        Args:
            scales: of each value that is read.
            shapes: their shapes, without the batch.
        """
        numbers = {s.item() if s.size == 1 else None for s in map(compact, scales)}
        return compact(scales[0]) if len(numbers) == 1 and None not in numbers else None

    def split(self, scale: Scales, shapes: Sequence[Shape]) -> tuple[Scales, ...] | None:
        """Those s with ``scale · op(x, …) = op(s · x, …)``, where there are such."""
        scale = compact(scale)
        return (scale,) * len(shapes) if scale.size == 1 else None

    def bounds(self, *intervals: Interval) -> Interval:
        """Between what its value lies, given that of each value that it reads."""
        raise self._silent("between what its value lies")

    def paths(self, *events: Float[Array, "1 ..."]) -> Float[Array, "1 ..."]:
        """How many of the events at its inputs reach each site: itself with every weight one."""
        raise self._silent("which ways lead through it")

    def counted(self, dtype: Any) -> tuple[Self, float | None] | None:
        """The same for whole numbers, whose value is to be multiplied by what is left.

        None where it weights what it reads, which is for `Affine.whole`.

        Args:
            dtype: integers with room for its value.  Where None is left, it has only the room that
                what it reads has.
        """
        raise self._silent("what it makes of whole numbers")

    @property
    def scaling(self) -> tuple[Scales, Scales] | None:
        """By what it multiplies and what it adds, where that is all that it does."""
        return None

    @property
    def parameters(self) -> int:
        """How many numbers it holds that were trained, or made of such."""
        return 0

    def macs(self, shape: Shape) -> int:
        """Multiply-accumulates of one image, where its value has this shape without the batch.

        As networks are usually measured: convolutions and linear maps alone count, and what falls
        on a convolution's padding counts too.
        """
        return 0

    def _silent(self, question: str) -> NotImplementedError:
        return NotImplementedError(f"{type(self).__name__} does not say {question}")


class Affine(Op):
    """A linear map and a constant.  It takes scales up or lets none by: its constant would not."""

    def carry(self, scales: Sequence[Scales], shapes: Sequence[Shape]) -> Scales | None:
        return None

    def split(self, scale: Scales, shapes: Sequence[Shape]) -> tuple[Scales, ...] | None:
        return None

    @abstractmethod
    def parts(self) -> tuple[Self, Self]:
        """With what is positive of its weights, and the constant; and with what is negative."""

    def bounds(self, *intervals: Interval) -> Interval:
        ((low, high),) = intervals
        positive, negative = self.parts()
        return (
            positive.apply(low) + negative.apply(high),
            positive.apply(high) + negative.apply(low),
        )

    def counted(self, dtype: Any) -> tuple[Self, float | None] | None:
        return None

    def whole(self) -> Self:
        """With whole numbers, the nearest: weights of 8 bits, and a constant of 32."""
        raise self._silent("what it is in whole numbers")

    def stored(self, dtype: Any) -> Self:
        """With weights of this type, the nearest; what there is one of for a channel stays."""
        return self

    def strongest(self) -> Scales:
        """The size of its largest weight, by channel of its value or for all of them."""
        raise self._silent("how large its weights are")

    def reach(self, bound: int) -> Scales:
        """The largest size of a value made of values up to this size, likewise."""
        raise self._silent("how large its value can be")

    @property
    def parameters(self) -> int:
        values = (getattr(self, f.name) for f in fields(self))
        return sum(v.size for v in values if isinstance(v, jax.Array | np.ndarray))


class Positive(Op):
    """A linear map whose every weight is one or zero: lower bounds make the lower bound."""

    def bounds(self, *intervals: Interval) -> Interval:
        lows, highs = zip(*intervals, strict=True)
        return self.apply(*lows), self.apply(*highs)

    def counted(self, dtype: Any) -> tuple[Self, float | None]:
        return self, None

    def paths(self, *events: Float[Array, "1 ..."]) -> Float[Array, "1 ..."]:
        return self.apply(*events)


def compact(scale: Scales) -> Scales:
    """The same scale with axes over which it is constant reduced to one.

    >>> compact(np.array([[1.0, 2.0], [1.0, 2.0]])), compact(np.ones((2, 2)))
    (array([[1., 2.]]), array(1.))
    """
    for axis in range(scale.ndim):
        first = scale.take([0], axis)
        if (scale == first).all():
            scale = first
    return scale.reshape(()) if scale.size == 1 else scale


def equal(a: Scales, b: Scales) -> bool:
    """Whether two scales are the same everywhere.

    >>> equal(np.ones(()), np.ones((2, 2)))
    True
    """
    return bool(np.all(np.equal(*np.broadcast_arrays(compact(a), compact(b)))))


def fits(scale: Scales, shape: Shape) -> bool:
    """Whether a scale broadcasts against a value of a shape, and leaves it that shape.

    >>> fits(np.ones(3), (2, 3)), fits(np.ones(3), (2, 1))
    (True, False)
    """
    try:
        return np.broadcast_shapes(scale.shape, shape) == shape
    except ValueError:
        return False


def aligned(scale: Scales, shape: Shape) -> Scales | None:
    """A scale as large as the last axes of a value, where it differs along no others.

    >>> aligned(np.array([[[2.0], [3.0]]]), (2, 2)).tolist()
    [[2.0, 2.0], [3.0, 3.0]]
    >>> aligned(np.ones(3), (2,)), aligned(np.array([[2.0], [3.0]]), (2,))
    (array([1., 1.]), None)
    """
    scale = compact(scale)
    surplus = max(scale.ndim - len(shape), 0)
    if any(size > 1 for size in scale.shape[:surplus]):
        return None
    scale = scale.reshape(scale.shape[surplus:])
    return np.broadcast_to(scale, shape) if fits(scale, shape) else None


def constant_along(scale: Scales, axes: Sequence[bool]) -> bool:
    """Whether a scale is the same all along those axes of a value that are marked."""
    sizes = compact(scale).shape[::-1]  # aligned at the last axis, as in broadcasting
    return all(s == 1 for s, marked in zip(sizes, axes[::-1], strict=False) if marked)


def wide(value: Any) -> Any:
    """Numbers in NumPy's float64, where products of several are not rounded in between.

    So an operation holds what it has taken up, in place of JAX's arrays, until it is `rounded`.
    """
    return np.asarray(value, np.float64)


def nearest(value: Any, dtype: Any = jnp.int32) -> Array:
    """The whole numbers nearest to some."""
    return jnp.asarray(np.rint(wide(value)).astype(dtype))


def rounded(tree: _Tree, dtype: Any) -> _Tree:
    """Operations with `wide` numbers as JAX has them, each rounded once."""

    def stored(value: Any) -> Any:
        is_wide = isinstance(value, np.ndarray) and value.dtype == np.float64
        return jnp.asarray(value, dtype) if is_wide else value

    found: _Tree = jax.tree.map(stored, tree)
    return found
