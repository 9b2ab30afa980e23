"""Codings: what the images are to the first layer at every step."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int, Key, Real, UInt32

from tcl_jax.registry import Choice, Choices


@dataclass(frozen=True)
class Coding(Choice, ABC):
    """How images are fed: a dataclass of its numbers, registered in `CODINGS`."""

    constant: ClassVar[bool] = False
    """Whether the input is the same at every step."""
    random: ClassVar[bool] = False
    """Whether it is drawn, so that another seed gives another."""

    @abstractmethod
    def encode(
        self, x: Real[Array, "b ..."], t: Int[Array, ""] | int, key: Key[Array, ""]
    ) -> Real[Array, "b ..."]:
        """The input at a step.

        Args:
            x: images.
            t: the step, from 1.
            key: for what is drawn: of the simulation's seed, the same at every step.
        """


CODINGS: Choices[Coding] = Choices("coding")
"""All codings, by name."""


@CODINGS.register("analog")
@dataclass(frozen=True)
class Analog(Coding):
    """A constant current, as in the paper."""

    reference: ClassVar[str] = "Ho & Chang 2021"
    constant: ClassVar[bool] = True

    def encode(
        self, x: Real[Array, "b ..."], t: Int[Array, ""] | int, key: Key[Array, ""]
    ) -> Real[Array, "b ..."]:
        return x


@CODINGS.register("rate")
@dataclass(frozen=True)
class Rate(Coding):
    """Spikes at regular intervals: whenever ⌊t |x|/A⌋ rises.

    They are of size A, the largest |x| of an image, with x's sign: their mean over time is x.

    >>> import jax, jax.numpy as jnp
    >>> from tcl_jax.simulation import Rate
    >>> x, key = jnp.array([[2.0, -1.0, 0.5]]), jax.random.key(0)
    >>> [Rate().encode(x, t, key).tolist()[0] for t in (1, 2, 3, 4)]
    [[2.0, 0.0, 0.0], [2.0, -2.0, 0.0], [2.0, 0.0, 0.0], [2.0, -2.0, 2.0]]
    """

    def encode(
        self, x: Real[Array, "b ..."], t: Int[Array, ""] | int, key: Key[Array, ""]
    ) -> Real[Array, "b ..."]:
        size, rate = _sizes_and_rates(x)
        now, before = jnp.asarray(t, rate.dtype), jnp.asarray(t - 1, rate.dtype)
        spikes = jnp.floor(now * rate) > jnp.floor(before * rate)
        return jnp.where(spikes, jnp.sign(x) * size, 0)


@CODINGS.register("poisson")
@dataclass(frozen=True)
class Poisson(Coding):
    """Spikes like those of `Rate`, drawn independently: Bernoulli, in discrete time.

    What is drawn depends on the seed, the step and the image itself, not on its place in a batch:
    whatever the batches, the same image is fed the same spikes.
    """

    random: ClassVar[bool] = True

    def encode(
        self, x: Real[Array, "b ..."], t: Int[Array, ""] | int, key: Key[Array, ""]
    ) -> Real[Array, "b ..."]:
        size, rate = _sizes_and_rates(x)
        keys = jax.vmap(partial(jax.random.fold_in, jax.random.fold_in(key, t)))(_digest(x))
        draw = partial(jax.random.uniform, shape=x.shape[1:], dtype=x.dtype)
        return jnp.where(jax.vmap(draw)(keys) < rate, jnp.sign(x) * size, 0)


def key_of(seed: Int[Array, ""] | int) -> Key[Array, ""]:
    """The key of a simulation's seed."""
    # Named, for JAX's other generators draw by place in what is mapped over.
    return jax.random.key(seed, impl="threefry2x32")


def _sizes_and_rates(x: Real[Array, "b ..."]) -> tuple[Array, Array]:
    """A of each image, and |x|/A."""
    size = jnp.max(jnp.abs(x), axis=tuple(range(1, x.ndim)), keepdims=True)
    return size, jnp.abs(x) / jnp.where(size > 0, size, 1)


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
