"""Pixels to network input, on the device: images travel as bytes, a quarter of the size."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, UInt8

from tcl_jax.data.dataset import DataInfo


def standardize(image: UInt8[Array, "*b h w c"], info: DataInfo) -> Float[Array, "*b h w c"]:
    """Scale pixels to mean 0 and variance 1 per channel: (x / 255 - mean) / std.

    Args:
        image: Images, or one image.
        info: Description of the data set, for its mean and standard deviation.

    Returns:
        The same images as float32.

    >>> import jax.numpy as jnp
    >>> from tcl_jax.data import DataInfo, standardize
    >>> info = DataInfo("grey", (1, 1, 1), 2, 1, 1, mean=(0.5,), std=(0.25,))
    >>> standardize(jnp.full((1, 1, 1), 255, jnp.uint8), info).item()
    2.0
    """
    # Explicit shape, so that it also works where rank promotion is an error.
    shape = (1,) * (image.ndim - 1) + (len(info.mean),)
    mean = jnp.asarray(info.mean, jnp.float32).reshape(shape)
    std = jnp.asarray(info.std, jnp.float32).reshape(shape)
    return (jax.lax.convert_element_type(image, jnp.float32) / 255.0 - mean) / std
