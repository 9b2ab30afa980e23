"""CNN-3, three convolutions and two linear layers, none with a bias (Cao et al. 2015)."""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from tcl_jax.models.layers import Activation, flatten, halve, logits

# Without batch norm, activations have the scale that the first kernels give them: by fan-in, which
# keeps it from layer to layer.
_kernel_init = nn.initializers.he_normal()


class CNN3(nn.Module):
    """conv 32, pool, conv 32, pool, conv 64, pool, linear 64, linear `num_classes`; 5×5 kernels.

    Theirs are the numbers of layers, the average pools and the absence of biases, which their
    neurons do not carry, and so of batch norms.  The widths and kernels are our choice: those of
    Caffe's `cifar10_quick`, a network of the same layers and years (0.145 M parameters with ten
    classes).  Images of 8×8 and more.
    """

    num_classes: int
    tcl: bool = True
    lam: float = 4.0
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, x: Float[Array, "b h w c"], *, train: bool = False
    ) -> Float[Array, "b classes"]:
        for layer, features in enumerate((32, 32, 64), start=1):
            x = nn.Conv(
                features,
                (5, 5),
                use_bias=False,
                kernel_init=_kernel_init,
                dtype=self.dtype,
                name=f"conv{layer}",
            )(x)
            x = Activation(self.tcl, self.lam, name=f"act{layer}")(x)
            x = halve(x)
        x = flatten(x)
        x = nn.Dense(64, use_bias=False, kernel_init=_kernel_init, dtype=self.dtype, name="fc1")(x)
        x = Activation(self.tcl, self.lam, name="act4")(x)
        x = nn.Dense(self.num_classes, use_bias=False, dtype=self.dtype, name="fc2")(x)
        return logits(x)
