"""Coding: what the images are to the first layer at every step."""

from dataclasses import dataclass
from typing import Literal, get_args

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from tcl_jax.errors import InputError

Kind = Literal["analog", "poisson", "rate"]


@dataclass(frozen=True)
class Coding:
    """How images are fed; the default is the paper's."""

    coding: Kind = "analog"
    """A constant current, as in the paper, or spikes: Poisson, or at regular intervals (rate)."""
    seed: int = 0
    """Seed of the Poisson spikes."""

    def __post_init__(self):
        if self.coding not in get_args(Kind):
            raise InputError(f"--coding must be analog, poisson or rate, got {self.coding!r}")
        if self.seed < 0:
            raise InputError(f"--seed must not be negative, got {self.seed}")

    @property
    def constant(self) -> bool:
        """Whether the input is the same at every step."""
        return self.coding == "analog"


ANALOG = Coding()
"""A constant current: the paper's input."""


def encode(
    coding: Coding, x: Float[Array, "b ..."], t: Int[Array, ""] | int
) -> Float[Array, "b ..."]:
    r"""The input at step t = 1, 2, ...

    Spikes of a value x are of size A, the largest |x| of its image, have the sign of x, and come at
    rate |x|/A: drawn independently (``poisson``; Bernoulli, in discrete time), or whenever
    ⌊t |x|/A⌋ rises (``rate``).  Their mean over time is x.

    Args:
        coding: which.
        x: images.
        t: the step.

    >>> import jax.numpy as jnp
    >>> from tcl_jax.simulation import Coding, encode
    >>> x = jnp.array([[2.0, -1.0, 0.5]])
    >>> [encode(Coding("rate"), x, t).tolist()[0] for t in (1, 2, 3, 4)]
    [[2.0, 0.0, 0.0], [2.0, -2.0, 0.0], [2.0, 0.0, 0.0], [2.0, -2.0, 2.0]]
    """
    if coding.constant:
        return x
    size = jnp.max(jnp.abs(x), axis=tuple(range(1, x.ndim)), keepdims=True)
    rate = jnp.abs(x) / jnp.where(size > 0, size, 1)
    if coding.coding == "rate":
        spikes = jnp.floor(t * rate) > jnp.floor((t - 1) * rate)
    else:
        key = jax.random.fold_in(jax.random.key(coding.seed), t)
        spikes = jax.random.uniform(key, x.shape, x.dtype) < rate
    return jnp.where(spikes, jnp.sign(x) * size, 0)
