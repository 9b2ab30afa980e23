"""Coding: what the images are to the first layer at every step."""

from dataclasses import dataclass, field
from functools import partial
from numbers import Integral
from typing import Literal, get_args

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int, Real, UInt32

from tcl_jax.errors import InputError

Kind = Literal["analog", "poisson", "rate"]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Coding:
    """How images are fed; the default is the paper's.

    A pytree of its seed, so that one compilation serves all.
    """

    coding: Kind = field(default="analog", metadata={"static": True})
    """A constant current, as in the paper, or spikes: Poisson, or at regular intervals (rate)."""
    seed: int = 0
    """Seed of the Poisson spikes."""

    def __post_init__(self):
        if self.coding not in get_args(Kind):
            raise InputError(f"--coding must be analog, poisson or rate, got {self.coding!r}")
        if isinstance(self.seed, Integral) and not 0 <= self.seed < 2**31:
            raise InputError(f"--seed must be from 0 to 2^31 - 1, got {self.seed}")

    @property
    def constant(self) -> bool:
        """Whether the input is the same at every step."""
        return self.coding == "analog"


ANALOG = Coding()
"""A constant current: the paper's input."""


def encode(
    coding: Coding, x: Real[Array, "b ..."], t: Int[Array, ""] | int
) -> Real[Array, "b ..."]:
    r"""The input at step t = 1, 2, ...

    Spikes of a value x are of size A, the largest |x| of its image, have the sign of x, and come at
    rate |x|/A: drawn independently (``poisson``; Bernoulli, in discrete time), or whenever
    ⌊t |x|/A⌋ rises (``rate``).  Their mean over time is x.

    What is drawn depends on the seed, the step and the image itself, not on its place in a batch:
    whatever the batches, the same image is fed the same spikes.

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
        now, before = jnp.asarray(t, rate.dtype), jnp.asarray(t - 1, rate.dtype)
        spikes = jnp.floor(now * rate) > jnp.floor(before * rate)
    else:
        # Named, for JAX's other generators draw by place in what is mapped over.
        key = jax.random.fold_in(jax.random.key(coding.seed, impl="threefry2x32"), t)
        keys = jax.vmap(partial(jax.random.fold_in, key))(_digest(x))
        draw = partial(jax.random.uniform, shape=x.shape[1:], dtype=x.dtype)
        spikes = jax.vmap(draw)(keys) < rate
    return jnp.where(spikes, jnp.sign(x) * size, 0)


def _digest(x: Real[Array, "b ..."]) -> UInt32[Array, " b"]:
    """32 bits of each image: those of its values, mixed with their places, in a sum that wraps.

    Mixed as by MurmurHash3's finaliser, so that images of few or like values differ.
    """
    positive = jnp.where(x == 0, 0, x).astype(jnp.float32)  # -0 is 0
    bits = jax.lax.bitcast_convert_type(positive, jnp.uint32).reshape(x.shape[0], -1)
    places = jnp.arange(1, bits.shape[1] + 1, dtype=jnp.uint32)[None]
    mixed = bits + places * jnp.uint32(0x9E3779B9)
    for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35)):
        mixed = (mixed ^ (mixed >> shift)) * jnp.uint32(factor)
    return jnp.sum(mixed ^ (mixed >> 16), 1, dtype=jnp.uint32)
