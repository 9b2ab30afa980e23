"""Inception-V3 (Szegedy et al. 2016) in torchvision's form, with clips after every ReLU."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from tcl_jax.models.layers import Activation, ConvNorm, average, logits


@dataclass(frozen=True)
class Conv:
    """A convolution with batch norm and ReLU."""

    features: int
    kernel: int | tuple[int, int] = 1
    strides: int = 1
    padded: bool = True


def smooth(x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
    """3×3 average pooling without stride; zeros around the image count, as in torchvision."""
    return average(x, 3, strides=1, padding=1)


def shrink(x: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 c"]:
    """3×3 average pooling with stride 2, which stands wherever the original pools by maximum."""
    return average(x, 3, strides=2)


# A convolution, a pool, or convolutions side by side, whose channels are joined.
Step = Conv | Callable[[Array], Array] | tuple[Conv, ...]
Branches = tuple[tuple[Step, ...], ...]

_STEM: tuple[Step, ...] = (
    Conv(32, 3, 2, padded=False),
    Conv(32, 3, padded=False),
    Conv(64, 3),
    shrink,
    Conv(80),
    Conv(192, 3, padded=False),
    shrink,
)


def _a(pooled: int) -> Branches:
    return (
        (Conv(64),),
        (Conv(48), Conv(64, 5)),
        (Conv(64), Conv(96, 3), Conv(96, 3)),
        (smooth, Conv(pooled)),
    )


def _c(width: int) -> Branches:
    row, column = Conv(width, (1, 7)), Conv(width, (7, 1))
    return (
        (Conv(192),),
        (Conv(width), row, Conv(192, (7, 1))),
        (Conv(width), column, row, column, Conv(192, (1, 7))),
        (smooth, Conv(192)),
    )


_B: Branches = (
    (Conv(384, 3, 2, padded=False),),
    (Conv(64), Conv(96, 3), Conv(96, 3, 2, padded=False)),
    (shrink,),
)
_D: Branches = (
    (Conv(192), Conv(320, 3, 2, padded=False)),
    (Conv(192), Conv(192, (1, 7)), Conv(192, (7, 1)), Conv(192, 3, 2, padded=False)),
    (shrink,),
)
_CROSS = (Conv(384, (1, 3)), Conv(384, (3, 1)))
_E: Branches = (
    (Conv(320),),
    (Conv(384), _CROSS),
    (Conv(448), Conv(384, 3), _CROSS),
    (smooth, Conv(192)),
)
_BLOCKS: dict[str, Branches] = {
    "mixed5b": _a(32),
    "mixed5c": _a(64),
    "mixed5d": _a(64),
    "mixed6a": _B,
    "mixed6b": _c(128),
    "mixed6c": _c(160),
    "mixed6d": _c(160),
    "mixed6e": _c(192),
    "mixed7a": _D,
    "mixed7b": _E,
    "mixed7c": _E,
}


class Mixed(nn.Module):
    """Branches over the same image, whose channels are joined."""

    branches: Branches
    tcl: bool
    lam: float
    dtype: Any

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"], *, train: bool) -> Float[Array, "b h2 w2 d"]:
        def apply(step: Step, y: Array, name: str) -> Array:
            if isinstance(step, Conv):
                y = ConvNorm(
                    step.features,
                    step.kernel,
                    step.strides,
                    self.dtype,
                    padded=step.padded,
                    epsilon=1e-3,
                    name=f"conv{name}",
                )(y, train=train)
                return Activation(self.tcl, self.lam, name=f"act{name}")(y)
            if isinstance(step, tuple):
                sides = [apply(conv, y, f"{name}_{i}") for i, conv in enumerate(step, start=1)]
                return jnp.concatenate(sides, axis=-1)
            return step(y)

        joined = []
        for i, branch in enumerate(self.branches, start=1):
            y = x
            for j, step in enumerate(branch, start=1):
                y = apply(step, y, f"{i}_{j}")
            joined.append(y)
        return jnp.concatenate(joined, axis=-1)


class InceptionV3(nn.Module):
    """Stem, eleven blocks of branches, global average pool; 23.8 M parameters, a thousand classes.

    Of the paper's comparison (Rueckauer et al. 2017).  Average pools for max-pools and a clip after
    every ReLU are our choice, as is the absence of the auxiliary head and of dropout.  Images of
    75×75 and more; the original's are of 299×299.
    """

    num_classes: int
    tcl: bool = True
    lam: float = 4.0
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, x: Float[Array, "b h w c"], *, train: bool = False
    ) -> Float[Array, "b classes"]:
        for name, branches in {"stem": (_STEM,), **_BLOCKS}.items():
            x = Mixed(branches, self.tcl, self.lam, self.dtype, name=name)(x, train=train)
        x = x.mean(axis=(1, 2))
        return logits(nn.Dense(self.num_classes, dtype=self.dtype, name="fc")(x))
