"""Winograd's form of a 3×3 convolution: 16 products for four outputs, where the plain one has 36.

Lavin & Gray 2016, "Fast algorithms for convolutional neural networks", F(2×2, 3×3):

.. math:: Y = A^T \\bigl[ (G g G^T) \\odot (B^T d B) \\bigr] A

with the 3×3 kernel g, a 4×4 tile d of the input and the 2×2 tile Y of the output.  B and A hold 0,
1 and -1, so that tiles of spikes stay small whole numbers; G halves and quarters sums of weights.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import reduce
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Real

from tcl_jax import graph as g
from tcl_jax.graph.convolution import weigh
from tcl_jax.graph.ops.base import Op, Shape, wide
from tcl_jax.promotion import against
from tcl_jax.provenance import cores
from tcl_jax.pytrees import pytree
from tcl_jax.simulation.costs import COSTS

_OF_KERNEL = np.array([[1, 0, 0], [0.5, 0.5, 0.5], [0.5, -0.5, 0.5], [0, 0, 1]])  # G
_OF_INPUT = np.array([[1, 0, -1, 0], [0, 1, 1, 0], [0, -1, 1, 0], [0, 1, 0, -1]])  # Bᵀ
_OF_OUTPUT = np.array([[1, 1, 1, 0], [0, 1, -1, -1]])  # Aᵀ


@pytree("weights", "bias")
@dataclass(frozen=True)
class Winograd(Op):
    """A convolution with a 3×3 kernel in steps of one, of signals ``[height, width, channel]``.

    Attributes:
        weights: G g Gᵀ of the kernel from each channel to each.
        bias: by channel.
        padding: of height and width; none is negative.
    """

    weights: Real[Array, "4 4 i o"]
    bias: Real[Array, " o"] | None
    padding: tuple[tuple[int, int], ...]

    @classmethod
    def of(cls, conv: g.Conv) -> "Winograd":
        """The same convolution: `computes` tells whether it has this form."""
        weights = np.einsum("ai,bj,ijco->abco", _OF_KERNEL, _OF_KERNEL, wide(conv.kernel))
        return cls(jnp.asarray(weights, conv.kernel.dtype), conv.bias, conv.padding)

    @staticmethod
    def computes(conv: g.Conv) -> bool:
        """Whether a convolution has this form."""
        return (
            conv.kernel.shape[:-2] == (3, 3)
            and conv.strides == conv.dilation == (1, 1)
            and conv.groups == 1
            and min(min(p) for p in conv.padding) >= 0
            and conv.kernel.dtype in (jnp.float32, jnp.float64)  # G's sums would round others
        )

    @staticmethod
    def work(conv: g.Conv, after: Shape) -> tuple[int, int]:
        """Multiply-accumulates of one image, and numbers that are moved."""
        *sizes, outs = after
        tiles = math.prod((n + 1) // 2 for n in sizes)
        ins = conv.kernel.shape[-2]
        # On the way in, 4 numbers of a tile are read, and 16 written and read again; on the way out
        # 16 are written and read again, and 4 written.
        return 16 * tiles * ins * outs, 36 * tiles * (ins + outs)

    def apply(self, *values: Array) -> Array:
        (x,) = values
        # Sixteen numbers for every four of the signal, which are to be in the cache when read.
        return _tiled(self._apply, x, 4 * math.prod(x.shape[1:]) * x.dtype.itemsize)

    def _apply(self, x: Array) -> Array:
        sizes = [n + sum(p) - 2 for n, p in zip(x.shape[1:], self.padding, strict=False)]
        tiles = [(n + 1) // 2 for n in sizes]
        margins = [
            (low, 2 * t + 2 - n - low, 0)
            for (low, _), t, n in zip(self.padding, tiles, x.shape[1:], strict=False)
        ]
        x = lax.pad(x, jnp.zeros((), x.dtype), [(0, 0, 0), *margins, (0, 0, 0)])
        high, broad = tiles
        # Of all tiles, what lies in each of their places.
        places = [
            [x[:, i : i + 2 * high - 1 : 2, j : j + 2 * broad - 1 : 2] for j in range(4)]
            for i in range(4)
        ]
        seen = jnp.stack([jnp.stack(row) for row in _transformed(_OF_INPUT, places)])
        products = weigh(seen, self.weights, _product)
        made = _transformed(_OF_OUTPUT, [list(row) for row in products])
        # [b, tile, place, tile, place, channel]
        y = jnp.stack([jnp.stack(row, 3) for row in made], 2)
        y = y.reshape(len(x), 2 * high, 2 * broad, -1)[:, : sizes[0], : sizes[1]]
        return y if self.bias is None else y + against(self.bias, y)


def _transformed(by: np.ndarray, values: list[list[Array]]) -> list[list[Array]]:
    """``by · values · byᵀ``, with arrays in place of numbers."""
    columns = [_weighted(by, column) for column in zip(*values, strict=True)]
    return [_weighted(by, row) for row in zip(*columns, strict=True)]


def _weighted(by: np.ndarray, values: tuple[Array, ...]) -> list[Array]:
    def total(row: np.ndarray) -> Array:
        terms = [v if n > 0 else -v for n, v in zip(row, values, strict=True) if n]
        return reduce(jnp.add, terms)

    return [total(row) for row in by]


def _product(x: Array, weights: Array, **how: Any) -> Array:
    # [4, 4, b, h, w, i] · [4, 4, i, o]
    return lax.dot_general(x, weights, (((5,), (2,)), ((0, 1), (0, 1))), **how)


def _tiled(fn: Callable[[Array], Array], x: Array, size: int) -> Array:
    """``fn(x)`` of a function that takes every image by itself, some images at a time.

    Args:
        fn: of images.
        x: all of them.
        size: bytes that `fn` takes for one; those taken at a time fit the cache.
    """
    batch, devices, room = len(x), jax.local_device_count(), cores() * COSTS["cpu"].cache
    # Not images that lie side by side: devices have such, and each has a part in every tile.
    even = devices if batch % devices == 0 else 1
    tiles = next(
        (n for n in range(1, batch + 1) if batch % (n * even) == 0 and batch // n * size <= room),
        batch // even,
    )
    if tiles == 1:
        return fn(x)
    split = x.reshape(-1, tiles, *x.shape[1:])
    like = jax.eval_shape(fn, split[:, 0])
    made = jnp.zeros((len(split), tiles, *like.shape[1:]), like.dtype)

    def one(i: Array, made: Array) -> Array:
        tile = lax.dynamic_index_in_dim(split, i, 1, keepdims=False)
        with_it: Array = lax.dynamic_update_index_in_dim(made, fn(tile), i, 1)
        return with_it

    every: Array = lax.fori_loop(0, tiles, one, made)
    return every.reshape(batch, *like.shape[1:])
