"""VGG-16 (Simonyan & Zisserman 2015) in two forms, and VGG-15, pooled by average."""

from functools import partial
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from tcl_jax.models.layers import Activation, ConvNorm, flatten, halve, logits

_STAGES = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))


class VGG(nn.Module):
    """Thirteen convolutions with batch norm in five pooled stages, then linear layers.

    The paper leaves the linear layers' widths and the batch norms open: both are our choice, and so
    is the absence of dropout.  Images of 32×32 and more.

    Attributes:
        hidden: widths of the linear layers before the last, which has `num_classes`; the first
            takes whatever height and width remain.
    """

    num_classes: int
    hidden: tuple[int, ...]
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
        for i, features in enumerate(self.hidden, start=1):
            x = nn.Dense(features, dtype=self.dtype, name=f"fc{i}")(x)
            x = Activation(self.tcl, self.lam, name=f"act{layer + i}")(x)
        last = f"fc{len(self.hidden) + 1}"
        return logits(nn.Dense(self.num_classes, dtype=self.dtype, name=last)(x))


vgg16 = partial(VGG, hidden=(512, 512))
"""The form for small images, 15.25 M parameters with ten classes and images of 32×32."""

vgg16_imagenet = partial(VGG, hidden=(4096, 4096))
"""The form for photographs, 138.4 M parameters with a thousand classes and images of 224×224."""

vgg15 = partial(VGG, hidden=(4096,))
"""VGG-16 with one hidden linear layer, as we read Lu & Sengupta 2020, whose text does not fix it
fully.  Their published code has these layers and widths; it has neither batch norm nor biases, but
dropout, and it pools before the ReLU.  Ours keeps this family's batch norms, biases and pools."""
