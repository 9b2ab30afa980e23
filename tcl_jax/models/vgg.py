"""VGG-16 (Simonyan & Zisserman 2015) in its form for small images, pooled by average."""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from tcl_jax.models.layers import Activation, ConvNorm, flatten, halve

_STAGES = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))


class VGG16(nn.Module):
    """Thirteen convolutions with batch norm in five pooled stages, linear 512, 512, `num_classes`.

    The paper leaves the linear layers' widths and the batch norms open; 512 is our choice for
    images of 32×32 (15.25 M parameters with ten classes).  Images of 32×32 and more.
    """

    num_classes: int
    tcl: bool = True
    lam: float = 4.0
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, x: Float[Array, "b h w c"], *, train: bool = False
    ) -> Float[Array, "b classes"]:
        layer = 0
        for stage in _STAGES:
            for features in stage:
                layer += 1
                x = ConvNorm(features, dtype=self.dtype, name=f"conv{layer}")(x, train=train)
                x = Activation(self.tcl, self.lam, name=f"act{layer}")(x)
            x = halve(x)
        x = flatten(x)
        for i in (1, 2):
            x = nn.Dense(512, dtype=self.dtype, name=f"fc{i}")(x)
            x = Activation(self.tcl, self.lam, name=f"act{layer + i}")(x)
        return nn.Dense(self.num_classes, dtype=self.dtype, name="fc3")(x).astype(jnp.float32)
