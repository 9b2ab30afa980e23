"""From output neurons to values and classes, at any t."""

import math
from typing import Literal, get_args

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int, Real

from tcl_jax.errors import InputError
from tcl_jax.graph import SpikingGraph
from tcl_jax.promotion import implicit
from tcl_jax.simulation.simulator import State

Readout = Literal["spikes", "membrane"]


def charge(graph: SpikingGraph, state: State) -> Real[Array, "b ..."]:
    r"""All current that has arrived at the output neurons: held, or given away as spikes.

    .. math:: q = V + n V_{thr}
    """
    return state.membrane[graph.output.name] + state.counts * graph.output.op.threshold


def logits(
    graph: SpikingGraph, state: State, t: Int[Array, ""] | int, delay: int = 0
) -> Real[Array, "b ..."]:
    r"""The function's values, as the network has them by step t.

    .. math:: y(t) = \frac{\lambda}{t - d} (V + n V_{thr})

    with the output's norm-factor λ and the delay d: the mean current into the output neurons, in
    the units of the function that was converted.  It converges to the function's value as 1/t,
    positive or negative, of any shape.

    Args:
        graph: the network.
        state: after t steps.
        t: their number.
        delay: what the state was simulated with.

    >>> import jax, jax.numpy as jnp
    >>> from tcl_jax import clip, convert, simulation
    >>> def network(w, x):
    ...     return clip(jax.nn.relu(x), 1.0) @ w - 1.0
    >>> x = jnp.array([[0.25, 0.75]])
    >>> graph = convert(network, 2 * jnp.eye(2), [x])
    >>> simulation.logits(graph, simulation.simulate(graph, x, timesteps=8), 8).tolist()
    [[-0.5, 0.5]]
    """
    return charge(graph, state) * graph.output.op.unit / jnp.maximum(t - delay, 1)


def classify(graph: SpikingGraph, state: State, readout: Readout) -> Int[Array, "b ..."]:
    """The class that the output neurons point to.

    Classes are the last axis of the output; where others lie between it and the batch, as those of
    an image's pixels, each place has a class of its own.  One logit alone, of shape ``[b]`` or
    ``[..., 1]``, is told from a second that is always 0: class 1 above 0, else class 0.

    Args:
        graph: the network.
        state: at the time of reading.
        readout: ``spikes`` takes the neuron that fired most often, as the paper does; of several
            with as many spikes, where the paper is silent, the one of the highest membrane
            potential, which is the nearest to its next.  A neuron whose current so far adds up to
            less than 0 comes after all others, by that sum and whatever it fired at first: so the
            class is right in the end although every logit is negative.  ``membrane`` takes the
            largest sum of current, as if the output neurons had no threshold.

    Returns:
        Class numbers.

    Raises:
        InputError: there is no such readout.
    """
    if readout not in get_args(Readout):
        raise InputError(f"unknown readout {readout!r}: choose spikes or membrane")
    charges = by_class(charge(graph, state))
    if readout == "membrane":
        return jnp.argmax(charges, -1)
    potential = by_class(state.membrane[graph.output.name])
    negative = charges < 0
    counts = jnp.where(negative, -1, by_class(state.counts))
    most = counts == jnp.max(counts, -1, keepdims=True)
    whole = jnp.issubdtype(potential.dtype, jnp.integer)
    least = jnp.iinfo(potential.dtype).min if whole else -jnp.inf
    return jnp.argmax(jnp.where(most, jnp.where(negative, charges, potential), least), -1)


def by_class(values: Real[Array, "b ..."]) -> Real[Array, "b ... c"]:
    """Values of output neurons, classes last: one logit alone stands behind a class of 0."""
    one = values[:, None] if values.ndim == 1 else values
    return one if one.shape[-1] > 1 else jnp.concatenate([jnp.zeros_like(one), one], -1)


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


def correct(
    graph: SpikingGraph,
    state: State,
    labels: Int[Array, "b ..."] | Bool[Array, "b ..."],
    mask: Bool[Array, " b"],
    readout: Readout,
) -> Int[Array, ""]:
    """How many classes of a batch are right, those of padding left out.

    Raises:
        InputError: there are not as many labels as classes.
    """
    classes = classify(graph, state, readout)
    check_labels(classes.shape, labels.shape, mask.shape)
    images = mask.astype(bool).reshape(-1, *(1,) * (classes.ndim - 1))
    with implicit():  # labels are of any type of whole numbers
        return jnp.sum((classes == labels) & images)


def classes_in(labels: Int[Array, "b ..."] | Bool[Array, "b ..."], mask: Bool[Array, " b"]) -> int:
    """How many classes there are to tell in a batch: one an image, or one a place of an image."""
    return int(np.sum(mask)) * math.prod(labels.shape[1:])
