"""From output neurons to a class, at any t."""

from typing import Literal, get_args

import jax.numpy as jnp
from jaxtyping import Array, Int

from tcl_jax.conversion.graph import SpikingGraph
from tcl_jax.errors import InputError
from tcl_jax.simulation.simulator import State

Readout = Literal["spikes", "membrane"]


def classify(graph: SpikingGraph, state: State, readout: Readout) -> Int[Array, " b"]:
    """The class that the output neurons point to.

    Args:
        graph: the network.
        state: at the time of reading.
        readout: ``spikes`` takes the neuron that fired most often, as the paper does; of several
            with as many spikes, where the paper is silent, the one of the highest membrane
            potential, which is the nearest to its next.  ``membrane`` takes the largest
            accumulated current, as if the output neurons had no threshold.

    Returns:
        Class numbers.

    Raises:
        InputError: there is no such readout.
    """
    if readout not in get_args(Readout):
        raise InputError(f"unknown readout {readout!r}: choose spikes or membrane")
    potential = state.membrane[graph.output.name]
    if readout == "membrane":
        return jnp.argmax(potential + state.counts * graph.output.threshold, -1)
    most = state.counts == jnp.max(state.counts, -1, keepdims=True)
    whole = jnp.issubdtype(potential.dtype, jnp.integer)
    least = jnp.iinfo(potential.dtype).min if whole else -jnp.inf
    return jnp.argmax(jnp.where(most, potential, least), -1)
