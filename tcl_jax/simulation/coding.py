"""Codings: what the images are to the first layer at every step."""

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from functools import partial
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int, Key, Real, UInt32

from tcl_jax.errors import InputError
from tcl_jax.graph import Graph, check_batch, images
from tcl_jax.registry import Choice, Choices


@dataclass(frozen=True)
class Coding(Choice, ABC):
    """How images are fed: a dataclass of its numbers, registered in `CODINGS`."""

    constant: ClassVar[bool] = False
    """Whether the input is the same at every step."""
    random: ClassVar[bool] = False
    """Whether it is drawn, so that another seed gives another."""
    still: ClassVar[bool] = True
    """Whether all steps are of one image, to whose analog values the network comes."""

    def checked(
        self, graph: Graph, x: Real[Array | np.ndarray, "b ..."], timesteps: int
    ) -> Real[Array, "b ..."]:
        """Images in the type that the graph computes in, as `encode` takes them.

        Args:
            graph: the network.
            x: a batch.
            timesteps: for so many steps.

        Raises:
            InputError: it is no array, or does not have the shape that the coding wants.
        """
        return images(graph, x)

    def analog_inputs(self, t: Int[np.ndarray, " t"]) -> Int[np.ndarray, " t"]:
        """How many analog inputs, each multiplied by the first weights, there were by step t.

        None, where not said otherwise: what is fed are spikes.
        """
        return np.zeros_like(t)

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

    def analog_inputs(self, t: Int[np.ndarray, " t"]) -> Int[np.ndarray, " t"]:
        return np.ones_like(t)

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


@CODINGS.register("frames")
@dataclass(frozen=True)
class Frames(Coding):
    """Frames ``[b, f, ...]``, one after another: a current that changes, as a film's or events'.

    The network is that of one frame, calibrated on single ones; its values are means over time.

    >>> import jax, jax.numpy as jnp
    >>> from tcl_jax.simulation import Frames
    >>> film, key = jnp.array([[[1.0], [2.0]]]), jax.random.key(0)
    >>> [Frames(hold=2).encode(film, t, key).item() for t in (1, 2, 3, 4)]
    [1.0, 1.0, 2.0, 2.0]
    """

    still: ClassVar[bool] = False

    hold: int = field(default=1, metadata={"static": True})
    """For how many steps each frame is fed."""

    def __post_init__(self) -> None:
        if self.hold < 1:
            raise InputError(f"hold must be at least 1, got {self.hold}")

    def checked(
        self, graph: Graph, x: Real[Array | np.ndarray, "b ..."], timesteps: int
    ) -> Real[Array, "b ..."]:
        check_batch(x)
        shape, of_one = tuple(x.shape), graph.input.op.shape
        if shape[2:] != of_one or len(shape) < 2:
            raise InputError(
                f"the network takes frames of shape {of_one}, so that a batch of films has shape "
                f"(films, frames{''.join(f', {n}' for n in of_one)}), got {shape}"
            )
        if timesteps > shape[1] * self.hold:
            lasting, enough = shape[1] * self.hold, -(-timesteps // max(1, shape[1]))
            raise InputError(
                f"is {timesteps}, but {shape[1]} frames with hold={self.hold} last for {lasting} "
                f"steps: give fewer steps, more frames, or Frames(hold={enough})",
                "timesteps",
            )
        frames = images(graph, x.reshape(-1, *of_one))
        return frames.reshape(shape)

    def analog_inputs(self, t: Int[np.ndarray, " t"]) -> Int[np.ndarray, " t"]:
        return 1 + (t - 1) // self.hold

    def encode(
        self, x: Real[Array, "b ..."], t: Int[Array, ""] | int, key: Key[Array, ""]
    ) -> Real[Array, "b ..."]:
        at: Array = jax.lax.dynamic_index_in_dim(x, (t - 1) // self.hold, 1, keepdims=False)
        return at


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
