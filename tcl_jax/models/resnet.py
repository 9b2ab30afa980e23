"""ResNet-20 for small images (He et al. 2016, §4.2) with clips after both ReLUs of a block."""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from tcl_jax.models.layers import Activation, ConvNorm


class BasicBlock(nn.Module):
    """Two 3×3 convolutions and a shortcut: identity, or a 1×1 convolution where shapes change.

    Where clips sit in a block the paper leaves open; ours are after the first ReLU and after the
    ReLU that follows the addition, so that every value between two neurons is an affine map.
    """

    features: int
    strides: int
    tcl: bool
    lam: float
    dtype: Any

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"], *, train: bool) -> Float[Array, "b h2 w2 d"]:
        y = ConvNorm(self.features, 3, self.strides, self.dtype, name="conv1")(x, train=train)
        y = Activation(self.tcl, self.lam, name="act1")(y)
        y = ConvNorm(self.features, 3, 1, self.dtype, name="conv2")(y, train=train)
        if x.shape != y.shape:
            x = ConvNorm(self.features, 1, self.strides, self.dtype, name="shortcut")(
                x, train=train
            )
        return Activation(self.tcl, self.lam, name="act2")(x + y)


class ResNet20(nn.Module):
    """A 3×3 stem and three stages of three basic blocks, 16-32-64 channels, global average pool.

    This is the narrow network, 0.27 M parameters; a wide one of 11 M exists under the same name.
    Images of 4×4 and more.
    """

    num_classes: int
    tcl: bool = True
    lam: float = 4.0
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, x: Float[Array, "b h w c"], *, train: bool = False
    ) -> Float[Array, "b classes"]:
        x = ConvNorm(16, dtype=self.dtype, name="stem")(x, train=train)
        x = Activation(self.tcl, self.lam, name="act0")(x)
        for stage, features in enumerate((16, 32, 64), start=1):
            for block in range(1, 4):
                strides = 2 if stage > 1 and block == 1 else 1
                x = BasicBlock(
                    features,
                    strides,
                    self.tcl,
                    self.lam,
                    self.dtype,
                    name=f"stage{stage}_block{block}",
                )(x, train=train)
        x = x.mean(axis=(1, 2))
        return nn.Dense(self.num_classes, dtype=self.dtype, name="fc")(x).astype(jnp.float32)
