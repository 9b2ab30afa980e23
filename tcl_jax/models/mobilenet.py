"""MobileNet (Howard et al. 2017, its first version, full width) with clips after every ReLU."""

from functools import partial
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from tcl_jax.models.layers import Activation, ConvNorm, logits

# Channels and strides, by block.
_BLOCKS = (
    *((64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2)),
    *((512, 1),) * 5,
    *((1024, 2), (1024, 1)),
)


class SeparableBlock(nn.Module):
    """A depthwise 3×3 convolution and a 1×1 convolution, both with batch norm and ReLU.

    Where clips sit the paper leaves open; ours are after both ReLUs.
    """

    features: int
    strides: int
    tcl: bool
    lam: float
    dtype: Any

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"], *, train: bool) -> Float[Array, "b h2 w2 d"]:
        x = ConvNorm(x.shape[-1], 3, self.strides, self.dtype, depthwise=True, name="depthwise")(
            x, train=train
        )
        x = Activation(self.tcl, self.lam, name="act1")(x)
        x = ConvNorm(self.features, 1, 1, self.dtype, name="pointwise")(x, train=train)
        return Activation(self.tcl, self.lam, name="act2")(x)


class MobileNet(nn.Module):
    """Stem, thirteen separable blocks, global average pool.

    Attributes:
        stem_strides: strides of the stem; the blocks divide height and width by 16.
    """

    num_classes: int
    stem_strides: int
    tcl: bool = True
    lam: float = 4.0
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, x: Float[Array, "b h w c"], *, train: bool = False
    ) -> Float[Array, "b classes"]:
        x = ConvNorm(32, 3, self.stem_strides, self.dtype, name="stem")(x, train=train)
        x = Activation(self.tcl, self.lam, name="act0")(x)
        for block, (features, strides) in enumerate(_BLOCKS, start=1):
            x = SeparableBlock(
                features, strides, self.tcl, self.lam, self.dtype, name=f"block{block}"
            )(x, train=train)
        x = x.mean(axis=(1, 2))
        return logits(nn.Dense(self.num_classes, dtype=self.dtype, name="fc")(x))


mobilenet = partial(MobileNet, stem_strides=1)
"""The form for small images, which the paper does not describe; a stem without stride, as is common
for CIFAR, is our choice (3.2 M parameters with ten classes).  Images of 16×16 and more."""

mobilenet_imagenet = partial(MobileNet, stem_strides=2)
"""The form for photographs, 4.2 M parameters with a thousand classes.  Images of 32×32 and more."""
