"""Pixels to network input, on the device: images travel as bytes, a quarter of the size."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, UInt8


def standardize(
    image: UInt8[Array | np.ndarray, "*b h w c"], mean: Sequence[float], std: Sequence[float]
) -> Float[Array, "*b h w c"]:
    """Scale pixels to mean 0 and variance 1 per channel: (x / 255 - mean) / std.

    Args:
        image: Images, or one image.
        mean: Per channel, of pixels scaled to [0, 1].
        std: Likewise the standard deviation.

    Returns:
        The same images as float32.

    >>> import jax.numpy as jnp
    >>> from tcl_jax.pixels import standardize
    >>> standardize(jnp.full((1, 1, 1), 255, jnp.uint8), mean=(0.5,), std=(0.25,)).item()
    2.0
    """
    # Explicit shape, so that it also works where rank promotion is an error.
    shape = (1,) * (image.ndim - 1) + (len(mean),)
    centre = jnp.asarray(mean, jnp.float32).reshape(shape)
    scale = jnp.asarray(std, jnp.float32).reshape(shape)
    return (jax.lax.convert_element_type(image, jnp.float32) / 255.0 - centre) / scale
