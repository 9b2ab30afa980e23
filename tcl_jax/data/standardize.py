"""Pixels of a data set to network input."""

import numpy as np
from jaxtyping import Array, Float, UInt8

from tcl_jax import pixels
from tcl_jax.data.dataset import DataInfo


def standardize(
    image: UInt8[Array | np.ndarray, "*b h w c"], info: DataInfo
) -> Float[Array, "*b h w c"]:
    """Scale a data set's pixels to mean 0 and variance 1 per channel.

    Args:
        image: Images, or one image.
        info: Description of the data set, for its mean and standard deviation.

    Returns:
        The same images as float32; see `tcl_jax.pixels.standardize`.

    >>> import jax.numpy as jnp
    >>> from tcl_jax.data import DataInfo, standardize
    >>> info = DataInfo("grey", (1, 1, 1), 2, 1, 1, mean=(0.5,), std=(0.25,))
    >>> standardize(jnp.full((1, 1, 1), 255, jnp.uint8), info).item()
    2.0
    """
    return pixels.standardize(image, info.mean, info.std)
