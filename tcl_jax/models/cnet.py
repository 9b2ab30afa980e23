"""CNET, the paper's small network: four convolutions and two linear layers (Table II)."""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from tcl_jax.models.layers import Activation, ConvNorm, flatten, halve


class CNET(nn.Module):
    """conv 32-32, pool, conv 64-64, pool, linear 256, linear `num_classes`.

    The paper names only the numbers of layers: the widths and the batch norms are our choice.
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
        layer = 0
        for stage in ((32, 32), (64, 64)):
            for features in stage:
                layer += 1
                x = ConvNorm(features, dtype=self.dtype, name=f"conv{layer}")(x, train=train)
                x = Activation(self.tcl, self.lam, name=f"act{layer}")(x)
            x = halve(x)
        x = nn.Dense(256, dtype=self.dtype, name="fc1")(flatten(x))
        x = Activation(self.tcl, self.lam, name="act5")(x)
        return nn.Dense(self.num_classes, dtype=self.dtype, name="fc2")(x).astype(jnp.float32)
