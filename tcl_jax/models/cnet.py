"""CNET and CNN-4, two small networks of four convolutions and two linear layers (Table II)."""

from functools import partial
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from tcl_jax.models.layers import Activation, ConvNorm, flatten, halve, logits


class CNET(nn.Module):
    """conv 32-32, pool, conv 64-64, pool, linear `hidden`, linear `num_classes`.

    The paper names only the numbers of layers: the widths and the batch norms are our choice.
    Images of 4×4 and more.
    """

    num_classes: int
    hidden: int = 256
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
        x = nn.Dense(self.hidden, dtype=self.dtype, name="fc1")(flatten(x))
        x = Activation(self.tcl, self.lam, name="act5")(x)
        return logits(nn.Dense(self.num_classes, dtype=self.dtype, name="fc2")(x))


cnn4 = partial(CNET, hidden=512)
"""The network of Rueckauer et al. 2017 for CIFAR-10.  Theirs are the widths, the 3×3 kernels, batch
norm and where it pools.  Ours are average pools for their max-pools, zeros around every convolution
and the linear layers without batch norm or dropout.  Images of 4×4 and more."""
