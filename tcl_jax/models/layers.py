"""What every network here is built of: convolution with batch norm, activation, pooling."""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from tcl_jax.clipping import TCL
from tcl_jax.promotion import implicit, wider

# He et al. 2015, by fan-out as in the residual networks' reference code.
_kernel_init = nn.initializers.variance_scaling(2.0, "fan_out", "truncated_normal")
# Fan-out counts every channel of a kernel, but a depthwise one feeds each value to one channel.
_depthwise_init = nn.initializers.variance_scaling(2.0, "fan_in", "truncated_normal")


class Activation(nn.Module):
    """TCL, or a plain ReLU for the baselines: the place where neurons will stand."""

    tcl: bool
    lam: float

    @nn.compact
    def __call__(self, x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
        return TCL(self.lam, name="tcl")(x) if self.tcl else nn.relu(x)


class ConvNorm(nn.Module):
    """Convolution without bias, then batch normalisation (Eq. 6).

    Attributes:
        kernel: height and width, or the side of a square.
        padded: with zeros, so that the strides alone change height and width.
        depthwise: one kernel a channel; `features` is then the number of channels that come in.
        epsilon: what batch normalisation adds to variances.
    """

    features: int
    kernel: int | tuple[int, int] = 3
    strides: int = 1
    dtype: Any = jnp.float32
    padded: bool = True
    depthwise: bool = False
    epsilon: float = 1e-5

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"], *, train: bool) -> Float[Array, "b h2 w2 d"]:
        kernel = (self.kernel, self.kernel) if isinstance(self.kernel, int) else self.kernel
        x = nn.Conv(
            self.features,
            kernel,
            strides=self.strides,
            # Explicit and symmetric: SAME pads a strided convolution on one side only.
            padding=[(side // 2, side // 2) if self.padded else (0, 0) for side in kernel],
            feature_group_count=self.features if self.depthwise else 1,
            use_bias=False,
            kernel_init=_depthwise_init if self.depthwise else _kernel_init,
            dtype=self.dtype,
            name="conv",
        )(x)
        # Momentum 0.9 is what PyTorch calls 0.1.  Statistics stay float32 whatever the dtype.
        norm = nn.BatchNorm(
            use_running_average=not train,
            momentum=0.9,
            epsilon=self.epsilon,
            dtype=self.dtype,
            name="norm",
        )
        with implicit():
            return jnp.asarray(norm(x))


def average(
    x: Float[Array, "b h w c"], window: int, strides: int, padding: int = 0
) -> Float[Array, "b h2 w2 c"]:
    """Average pooling; zeros around the image count."""
    with implicit():
        found: Array = nn.avg_pool(x, (window,) * 2, (strides,) * 2, [(padding, padding)] * 2)
        return found


def halve(x: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 c"]:
    """2×2 average pooling, which stands wherever the original network pools by maximum."""
    return average(x, 2, strides=2)


def flatten(x: Float[Array, "b ..."]) -> Float[Array, "b n"]:
    return x.reshape(x.shape[0], -1)


def logits(x: Float[Array, "b classes"]) -> Float[Array, "b classes"]:
    """What a network gives: float32 at least, for a loss is small differences of large numbers."""
    return x.astype(wider(x.dtype, jnp.float32))
