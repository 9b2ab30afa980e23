"""ResNet-20, -34 and -50 (He et al. 2016) with clips after every ReLU of a block."""

from functools import partial
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from tcl_jax.models.layers import Activation, ConvNorm, average, logits


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


class Bottleneck(nn.Module):
    """1×1, 3×3 and 1×1 convolutions, the last four times as wide, and a shortcut.

    The stride is that of the 3×3 convolution, as in torchvision, not of the first 1×1 as in the
    article.  Where clips sit is our choice as in `BasicBlock`: after each ReLU, of which the last
    follows the addition.
    """

    features: int
    strides: int
    tcl: bool
    lam: float
    dtype: Any

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"], *, train: bool) -> Float[Array, "b h2 w2 d"]:
        wide = 4 * self.features
        y = ConvNorm(self.features, 1, 1, self.dtype, name="conv1")(x, train=train)
        y = Activation(self.tcl, self.lam, name="act1")(y)
        y = ConvNorm(self.features, 3, self.strides, self.dtype, name="conv2")(y, train=train)
        y = Activation(self.tcl, self.lam, name="act2")(y)
        y = ConvNorm(wide, 1, 1, self.dtype, name="conv3")(y, train=train)
        if x.shape != y.shape:
            x = ConvNorm(wide, 1, self.strides, self.dtype, name="shortcut")(x, train=train)
        return Activation(self.tcl, self.lam, name="act3")(x + y)


class ResNet(nn.Module):
    """Stem, stages of blocks whose first strides (but in stage 1), global average pool.

    Attributes:
        blocks: number of blocks by stage.
        width: channels of the first stage; every next has twice as many.
        large: the stem for photographs, 7×7 with stride 2 and a pool, instead of 3×3.
        block: what the stages consist of.
    """

    num_classes: int
    blocks: tuple[int, ...]
    width: int
    large: bool = False
    block: type[BasicBlock] | type[Bottleneck] = BasicBlock
    tcl: bool = True
    lam: float = 4.0
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, x: Float[Array, "b h w c"], *, train: bool = False
    ) -> Float[Array, "b classes"]:
        kernel, strides = (7, 2) if self.large else (3, 1)
        x = ConvNorm(self.width, kernel, strides, self.dtype, name="stem")(x, train=train)
        x = Activation(self.tcl, self.lam, name="act0")(x)
        if self.large:
            x = average(x, 3, strides=2, padding=1)
        for stage, blocks in enumerate(self.blocks):
            for block in range(blocks):
                x = self.block(
                    self.width * 2**stage,
                    2 if stage and not block else 1,
                    self.tcl,
                    self.lam,
                    self.dtype,
                    name=f"stage{stage + 1}_block{block + 1}",
                )(x, train=train)
        x = x.mean(axis=(1, 2))
        return logits(nn.Dense(self.num_classes, dtype=self.dtype, name="fc")(x))


resnet20 = partial(ResNet, blocks=(3, 3, 3), width=16)
"""The narrow network for small images, 0.27 M parameters with ten classes; a wide one of 11 M
exists under the same name.  Images of 4×4 and more."""

resnet34 = partial(ResNet, blocks=(3, 4, 6, 3), width=64, large=True)
"""The network for photographs, 21.8 M parameters with a thousand classes, its max-pool an average
pool.  Images of 32×32 and more."""

resnet50 = partial(ResNet, blocks=(3, 4, 6, 3), width=64, large=True, block=Bottleneck)
"""The same with bottlenecks, 25.6 M parameters with a thousand classes.  Images of 32×32 and
more."""
