"""Readouts: from the current into the output neurons to values and classes, at any t."""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int, Real

from tcl_jax.errors import InputError
from tcl_jax.graph import Output
from tcl_jax.promotion import against
from tcl_jax.registry import Choice, Choices


@dataclass(frozen=True)
class Readout(Choice, ABC):
    """What the output's neurons make of their current, and how a class is read from them.

    A readout is a dataclass of its numbers, registered in `READOUTS`, whose state is any pytree of
    arrays ``[b, ...]``, what its neurons hold first.

    Classes are the last axis of the output; where others lie between it and the batch, as those of
    an image's pixels, each place has a class of its own.  One logit alone, of shape ``[b]`` or
    ``[..., 1]``, is told from a second that is always 0: class 1 above 0, else class 0.
    """

    @abstractmethod
    def init(self, nothing: Real[Array, "b ..."]) -> Any:
        """The state before the first step; from a current of zeros."""

    @abstractmethod
    def update(
        self, state: Any, current: Real[Array, "b ..."], output: Output
    ) -> tuple[Any, Bool[Array, "b ..."]]:
        """The state after a step in which so much current arrives, and which neurons fire."""

    @abstractmethod
    def charge(self, state: Any, output: Output) -> Real[Array, "b ..."]:
        """All current that has arrived: held, or given away as spikes."""

    def potential(self, state: Any) -> Real[Array, "b ..."]:
        """What output neurons hold: the first array of a state, unless a readout says otherwise."""
        first: Array = jax.tree.leaves(state)[0]
        return first

    def keys(self, state: Any, output: Output) -> tuple[Real[Array, "b ... c"], ...]:
        """What classes are ranked by, the largest first: where it is the same of two, by the next.

        The charge, unless a readout says otherwise.  Of classes that are the same in all, the first
        comes first.
        """
        return (by_class(self.charge(state, output)),)

    def classify(self, state: Any, output: Output) -> Int[Array, "b ..."]:
        """The class that the output neurons point to: the first of all."""
        *others, last = self.keys(state, output)
        first = jnp.ones(last.shape, bool)
        for key in others:
            first &= key == jnp.max(jnp.where(first, key, _least(key)), -1, keepdims=True)
        return jnp.argmax(jnp.where(first, last, _least(last)), -1)

    def rank(self, state: Any, output: Output, labels: Int[Array, "b ..."]) -> Int[Array, "b ..."]:
        """How many classes come before each of these; of what is no class, how many there are."""
        return rank(self.keys(state, output), labels)


READOUTS: Choices[Readout] = Choices("readout")
"""All readouts, by name."""


class Counted(NamedTuple):
    """Output neurons that fire.

    Attributes:
        membrane: membrane potentials V.
        counts: spikes n so far.
    """

    membrane: Real[Array, "b ..."]
    counts: Real[Array, "b ..."]


@READOUTS.register("spikes")
@dataclass(frozen=True)
class Spikes(Readout):
    """The neuron that fired most often, as the paper reads a class.

    Output neurons integrate and fire from 0, and are reset by subtraction, whatever the hidden ones
    are.  Of several with as many spikes, where the paper is silent, the one of the highest membrane
    potential, which is the nearest to its next.  A neuron whose current so far adds up to less than
    0 comes after all others, by that sum and whatever it fired at first: so the class is right in
    the end although every logit is negative.
    """

    reference: ClassVar[str] = "Ho & Chang 2021"

    def init(self, nothing: Real[Array, "b ..."]) -> Counted:
        return Counted(nothing, nothing)

    def update(
        self, state: Counted, current: Real[Array, "b ..."], output: Output
    ) -> tuple[Counted, Bool[Array, "b ..."]]:
        potential = state.membrane + current
        theta = against(output.threshold, potential)
        fires = potential >= theta
        potential = jnp.where(fires, potential - theta, potential)
        return Counted(potential, state.counts + fires.astype(state.counts.dtype)), fires

    def charge(self, state: Counted, output: Output) -> Real[Array, "b ..."]:
        r""".. math:: q = V + n V_{thr}"""
        return state.membrane + state.counts * output.threshold

    def keys(self, state: Counted, output: Output) -> tuple[Real[Array, "b ... c"], ...]:
        charges = by_class(self.charge(state, output))
        negative = charges < 0
        counts = jnp.where(negative, -1, by_class(state.counts))
        return counts, jnp.where(negative, charges, by_class(state.membrane))


@READOUTS.register("membrane")
@dataclass(frozen=True)
class Membrane(Readout):
    """The largest sum of current, as if the output neurons had no threshold."""

    reference: ClassVar[str] = "Rueckauer et al. 2017"

    def init(self, nothing: Real[Array, "b ..."]) -> Array:
        return nothing

    def update(
        self, state: Array, current: Real[Array, "b ..."], output: Output
    ) -> tuple[Array, Bool[Array, "b ..."]]:
        return state + current, jnp.zeros(current.shape, bool)

    def charge(self, state: Array, output: Output) -> Real[Array, "b ..."]:
        return state


def rank(
    keys: tuple[Real[Array, "b ... c"], ...], labels: Int[Array, "b ..."]
) -> Int[Array, "b ..."]:
    """How many classes come before each of these by `Readout.keys`, or by logits alone.

    Args:
        keys: what classes are ranked by, the largest first; what is no number comes before all.
        labels: classes; before what is none come all.

    >>> import jax.numpy as jnp
    >>> from tcl_jax.simulation.readout import rank
    >>> rank((jnp.array([[0.5, 2.0, 1.0]]),), jnp.array([2])).item()
    1
    """
    classes = jnp.arange(keys[0].shape[-1])
    labels = labels.astype(classes.dtype)[..., None]
    same, before = jnp.ones(keys[0].shape, bool), jnp.zeros(keys[0].shape, bool)
    for key in keys:
        own = jnp.take_along_axis(key, jnp.clip(labels, 0, classes.size - 1), -1)
        before |= same & ~(key <= own)
        same &= key == own
    before |= same & (against(classes, same) < labels)
    there = (labels >= 0) & (labels < classes.size)
    return jnp.sum(before | ~there, -1)


def by_class(values: Real[Array, "b ..."]) -> Real[Array, "b ... c"]:
    """Values of output neurons, classes last: one logit alone stands behind a class of 0."""
    one = values[:, None] if values.ndim == 1 else values
    return one if one.shape[-1] > 1 else jnp.concatenate([jnp.zeros_like(one), one], -1)


def _least(values: Real[Array, "..."]) -> float:
    whole = jnp.issubdtype(values.dtype, jnp.integer)
    return jnp.iinfo(values.dtype).min if whole else -jnp.inf


def check_labels(classes: tuple[int, ...], labels: tuple[int, ...], mask: tuple[int, ...]) -> None:
    """Raises InputError unless each class ``[b, ...]`` has a label, and each image a mask."""
    places = "×".join(map(str, classes[1:]))
    each = f"each of {places} places of an image" if places else "each image"
    for name, shape, right, what in (
        ("labels", labels, classes, f"the network gives a class to {each}"),
        ("masks", mask, classes[:1], "are of images"),
    ):
        if shape != right:
            raise InputError(
                f"the {name} of a batch of {classes[0]} images have shape {shape}, but {what}: "
                f"give shape {right}"
            )


def classes_in(labels: Int[Array, "b ..."] | Bool[Array, "b ..."], mask: Bool[Array, " b"]) -> int:
    """How many classes there are to tell in a batch: one an image, or one a place of an image."""
    return int(np.sum(mask)) * math.prod(labels.shape[1:])
