"""Operations with weights: convolutions, linear maps, scales, and the rounding of images."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal, Self

import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Real

from tcl_jax.graph.convolution import convolve, weigh
from tcl_jax.graph.ops.base import (
    Affine,
    Interval,
    Op,
    Scales,
    Shape,
    aligned,
    leaves,
    nearest,
    wide,
)
from tcl_jax.promotion import against, alike, wider


@dataclass(frozen=True)
class Weighted(Affine):
    """Sums over inputs, each times a weight ``kernel[..., in, out]``, and a bias by channel."""

    synapse: ClassVar[Literal["weight", "sum"] | None] = "weight"

    kernel: Array
    bias: Array | None

    def then(self, scale: Scales, shift: Scales) -> Self | None:
        found = [aligned(s, self._writes) for s in (scale, shift)]
        if found[0] is None or found[1] is None:
            return None
        scale, shift = found[0], found[1]
        bias = np.zeros(self._writes) if self.bias is None else wide(self.bias)
        added = None if self.bias is None and not shift.any() else wide(bias * scale + shift)
        kernel = wide(self.kernel) * np.expand_dims(scale, -2)
        return replace(self, kernel=wide(kernel), bias=added)

    def after(self, scales: Sequence[Scales]) -> Self | None:
        scale = aligned(scales[0], self._reads)
        if scale is None:
            return None
        return replace(self, kernel=wide(self._weighted(wide(self.kernel), scale)))

    @property
    def _reads(self) -> Shape:
        """Of what a number of its own belongs to weights: the channels that are read."""
        return self.kernel.shape[-2:-1]

    @property
    def _writes(self) -> Shape:
        """Of what a number of its own belongs to a bias: the channels of the value."""
        return self.kernel.shape[-1:]

    def _weighted(self, kernel: Scales, channels: Scales) -> Scales:
        """A kernel times a number for each channel that is read."""
        return kernel * np.expand_dims(channels, -1)

    def parts(self) -> tuple[Self, Self]:
        positive = replace(self, kernel=jnp.maximum(self.kernel, 0))
        return positive, replace(self, kernel=jnp.minimum(self.kernel, 0), bias=None)

    def whole(self) -> Self:
        bias = None if self.bias is None else nearest(self.bias)
        return replace(self, kernel=nearest(self.kernel, np.int8), bias=bias)

    def stored(self, dtype: Any) -> Self:
        return replace(self, kernel=self.kernel.astype(dtype))

    def strongest(self) -> Scales:
        found: Scales = np.abs(wide(self.kernel)).max(self._inputs)
        return found

    def reach(self, bound: int) -> Scales:
        constant = 0.0 if self.bias is None else np.abs(wide(self.bias))
        found: Scales = bound * np.abs(wide(self.kernel)).sum(self._inputs) + constant
        return found

    @property
    def _inputs(self) -> tuple[int, ...]:
        """The kernel's axes but the last."""
        return tuple(range(self.kernel.ndim - 1))

    def macs(self, shape: Shape) -> int:
        # Every output is a sum over the kernel's inputs.
        return math.prod(shape) * math.prod(self.kernel.shape[a] for a in self._inputs)

    def paths(self, *events: Array) -> Array:
        (x,) = events
        sums = jnp.sum(x, -1, keepdims=True)
        return jnp.broadcast_to(sums, (*x.shape[:-1], self.kernel.shape[-1]))

    def _with_bias(self, y: Array) -> Array:
        if self.bias is None:
            return y
        y, bias = alike(y, against(self.bias, y))
        return y + bias


@leaves("kernel", "bias")
@dataclass(frozen=True)
class Conv(Weighted):
    """Convolution: channels last, kernel ``[*window, in / groups, out]``."""

    kernel: Real[Array, "*window i o"]
    bias: Real[Array, " o"] | None
    strides: tuple[int, ...]
    padding: tuple[tuple[int, int], ...]
    dilation: tuple[int, ...]
    groups: int

    def apply(self, *values: Array) -> Array:
        (x,) = values
        geometry = self.strides, self.padding, self.dilation, self.groups
        return self._with_bias(convolve(x, self.kernel, *geometry))

    @property
    def _reads(self) -> Shape:
        return (self.kernel.shape[-2] * self.groups,)

    def _weighted(self, kernel: Scales, channels: Scales) -> Scales:
        # Kernels of group k read the k-th part of the input's channels.
        by_group = channels.reshape(self.groups, 1, -1).transpose(2, 0, 1)
        parts: Scales = kernel.reshape(*kernel.shape[:-1], self.groups, -1) * by_group
        return parts.reshape(kernel.shape)

    def paths(self, *events: Array) -> Array:
        # The outputs of a group all see the same: one for each group is enough.
        (x,) = events
        ones = jnp.ones((*self.kernel.shape[:-1], self.groups), x.dtype)
        seen = replace(self, kernel=ones, bias=None).apply(x)
        return jnp.repeat(seen, self.kernel.shape[-1] // self.groups, -1)


@leaves("kernel", "bias")
@dataclass(frozen=True)
class Dense(Weighted):
    """Linear map of the last axis."""

    kernel: Real[Array, "i o"]
    bias: Real[Array, " o"] | None

    def apply(self, *values: Array) -> Array:
        (x,) = values
        return self._with_bias(weigh(x, self.kernel, _product))


@leaves("kernel", "bias")
@dataclass(frozen=True)
class Sparse(Dense):
    """Linear map of the last axis by a matrix that is mostly 0, where there are no synapses."""

    def macs(self, shape: Shape) -> int:
        return math.prod(shape[:-1]) * int(np.count_nonzero(self.kernel))

    def paths(self, *events: Array) -> Array:
        (x,) = events
        return _product(x, (self.kernel != 0).astype(x.dtype), precision=lax.Precision.HIGHEST)


def _product(x: Array, kernel: Array, **how: Any) -> Array:
    return lax.dot_general(x, kernel, (((x.ndim - 1,), (0,)), ((), ())), **how)


@leaves("kernel", "bias")
@dataclass(frozen=True)
class Linear(Weighted):
    """Linear map of the last axis, with weights of its own at every place of the axes before."""

    kernel: Real[Array, "*places i o"]
    bias: Real[Array, "*places o"] | None

    def apply(self, *values: Array) -> Array:
        (x,) = values
        return self._with_bias(weigh(x, self.kernel, _product_by_place))

    @property
    def _reads(self) -> Shape:
        return self.kernel.shape[:-1]

    @property
    def _writes(self) -> Shape:
        return (*self.kernel.shape[:-2], self.kernel.shape[-1])

    @property
    def _inputs(self) -> tuple[int, ...]:
        return (self.kernel.ndim - 2,)


def _product_by_place(x: Array, kernel: Array, **how: Any) -> Array:
    places = kernel.ndim - 2
    own = tuple(range(x.ndim - 1 - places, x.ndim - 1))
    alike = own, tuple(range(places))
    found = lax.dot_general(x, kernel, (((x.ndim - 1,), (places,)), alike), **how)
    return jnp.moveaxis(found, tuple(range(places)), own)


@leaves("scale", "shift")
@dataclass(frozen=True)
class Scale(Affine):
    """``scale · x + shift``, each broadcasting against the signal (batch norm, an amplitude)."""

    scale: Real[Array, "..."]
    shift: Real[Array, "..."]

    def apply(self, *values: Array) -> Array:
        (x,) = values
        x = x.astype(wider(x.dtype, self.scale.dtype))
        return x * against(self.scale, x) + against(self.shift, x)

    @property
    def scaling(self) -> tuple[Scales, Scales] | None:
        return wide(self.scale), wide(self.shift)

    def then(self, scale: Scales, shift: Scales) -> Self | None:
        added = wide(wide(self.shift) * scale + shift)
        return replace(self, scale=wide(wide(self.scale) * scale), shift=added)

    def after(self, scales: Sequence[Scales]) -> Self | None:
        return replace(self, scale=wide(wide(self.scale) * scales[0]))

    def parts(self) -> tuple[Self, Self]:
        nothing = jnp.zeros_like(self.shift)
        positive = replace(self, scale=jnp.maximum(self.scale, 0))
        return positive, replace(self, scale=jnp.minimum(self.scale, 0), shift=nothing)

    def whole(self) -> Self:
        return type(self)(nearest(self.scale), nearest(self.shift))

    def strongest(self) -> Scales:
        found: Scales = np.abs(wide(self.scale)).max()
        return found

    def reach(self, bound: int) -> Scales:
        found: Scales = bound * np.abs(wide(self.scale)) + np.abs(wide(self.shift))
        return found

    def paths(self, *events: Array) -> Array:
        (x,) = events
        there, nothing = (self.scale != 0).astype(x.dtype), jnp.zeros_like(self.shift, x.dtype)
        return replace(self, scale=there, shift=nothing).apply(x)


@leaves("rate")
@dataclass(frozen=True)
class Quantise(Op):
    """``round(rate · x)`` as int8, between -127 and 127: the images of an integer network."""

    rate: Real[Array, ""]

    def apply(self, *values: Array) -> Array:
        # A product is rounded alike everywhere, which a quotient is not.
        (x,) = values
        dtype = wider(x.dtype, self.rate.dtype)
        scaled = x.astype(dtype) * self.rate.astype(dtype)
        return jnp.clip(jnp.round(scaled), -127, 127).astype(jnp.int8)

    # It is linear up to rounding alone, so that no scale passes.
    def carry(self, scales: Sequence[Scales], shapes: Sequence[Shape]) -> Scales | None:
        return None

    def split(self, scale: Scales, shapes: Sequence[Shape]) -> tuple[Scales, ...] | None:
        return None

    def bounds(self, *intervals: Interval) -> Interval:
        ((low, high),) = intervals
        return self.apply(low), self.apply(high)

    def paths(self, *events: Array) -> Array:
        return events[0]
