"""Integrate-and-fire simulation of a spiking graph, one time step at a time (Eqs. 1-3)."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from tcl_jax.conversion.graph import (
    Input,
    Neuron,
    Output,
    SpikingGraph,
    affine,
    check_input,
    shapes,
)
from tcl_jax.errors import InputError


class State(NamedTuple):
    """What the neurons remember.

    Attributes:
        membrane: membrane potentials V by neuron name, the output neurons' among them.
        counts: spikes of the output neurons so far.
    """

    membrane: dict[str, Float[Array, "b ..."]]
    counts: Float[Array, "b classes"]


Drive = dict[str, Float[Array, "b ..."]]
"""Values of the nodes that no neuron precedes: constant over time, computed once."""


def _spike(
    membrane: Float[Array, "b ..."], current: Float[Array, "b ..."], threshold: Float[Array, "..."]
) -> tuple[Float[Array, "b ..."], Float[Array, "b ..."]]:
    r"""Integrate, fire, reset by subtraction (Eqs. 2 and 3).

    .. math:: V \leftarrow V + z, \quad s = [V \ge \theta], \quad V \leftarrow V - \theta s

    Returns:
        The new membrane potential and the spikes, of amplitude θ.
    """
    membrane = membrane + current
    amplitude = threshold.reshape((1,) * (membrane.ndim - threshold.ndim) + threshold.shape)
    spikes = jnp.where(membrane >= amplitude, amplitude, jnp.zeros_like(membrane))
    return membrane - spikes, spikes


def init_state(graph: SpikingGraph, batch: int, v0: float = 0.0) -> State:
    """Neurons before the first step.

    Args:
        graph: thresholds finite.
        batch: number of images.
        v0: membrane potential at the start, as a fraction of the threshold.  The output neurons
            start at 0 whatever it is.

    Returns:
        The state at t = 0.
    """
    shape = shapes(graph)
    membrane = {
        n.name: jnp.zeros((batch, *shape[n.name]), graph.dtype) + v0 * n.threshold
        for n in graph.neurons
    }
    logits = jnp.zeros((batch, *shape[graph.output.name]), graph.dtype)
    return State(membrane | {graph.output.name: logits}, logits)


def drive(graph: SpikingGraph, x: Float[Array, "b ..."]) -> Drive:
    """The part of a step that is the same at every t: from the images to the first neurons.

    Args:
        graph: a spiking graph.
        x: images, fed as analog currents.

    Raises:
        InputError: the images have another shape than the graph takes.
    """
    check_input(graph, x)
    values: Drive = {}
    for node in graph.nodes:
        if isinstance(node, Input):
            values[node.name] = x
        elif not isinstance(node, Neuron) and all(i in values for i in node.inputs):
            values[node.name] = affine(node, *(values[i] for i in node.inputs))
    return values


def step(graph: SpikingGraph, state: State, driven: Drive) -> tuple[State, dict[str, Array]]:
    r"""One time step: every layer integrates the spikes that the layer before fires in this step.

    .. math:: z^l(t) = \sum_j W^l_j \theta^{l-1}_j(t) + b^l, \qquad
              V^l(t) = V^l(t-1) + z^l(t) - V_{thr} \theta^l(t) \qquad (1, 3)

    Args:
        graph: the network.
        state: at t − 1.
        driven: from `drive`.

    Returns:
        The state at t, and the spikes of every neuron by name.

    >>> import jax, jax.numpy as jnp
    >>> from tcl_jax import clip, convert, simulation
    >>> graph = convert(lambda w, x: clip(jax.nn.relu(x), 1.0) @ w, jnp.eye(1), [jnp.ones((1, 1))])
    >>> state = simulation.init_state(graph, batch=1)
    >>> driven = simulation.drive(graph, jnp.full((1, 1), 0.5))
    >>> for t in range(4):
    ...     state, spikes = simulation.step(graph, state, driven)
    >>> state.counts.item()
    2.0
    """
    values: dict[str, Any] = dict(driven)
    membrane: dict[str, Array] = {}
    spikes: dict[str, Array] = {}
    counts = state.counts
    for node in graph.nodes:
        if isinstance(node, Neuron | Output):
            current = values[node.inputs[0]]
            membrane[node.name], fired = _spike(state.membrane[node.name], current, node.threshold)
            spikes[node.name] = values[node.name] = fired
            if isinstance(node, Output):
                counts = counts + fired / node.threshold
        elif node.name not in values:
            values[node.name] = affine(node, *(values[i] for i in node.inputs))
    return State(membrane, counts), spikes


def simulate(
    graph: SpikingGraph, x: Float[Array, "b ..."], timesteps: int, v0: float = 0.0
) -> State:
    """The state after `timesteps` steps; memory does not grow with them.

    Args:
        graph: the network.
        x: images.
        timesteps: number of steps T.
        v0: membrane potential at the start, as a fraction of the threshold.

    Raises:
        InputError: `timesteps` is not above 0, or the images do not fit the graph.

    >>> import jax, jax.numpy as jnp
    >>> from tcl_jax import clip, convert, simulation
    >>> def network(w, x):
    ...     return clip(jax.nn.relu(x), 1.0) @ w
    >>> graph = convert(network, jnp.eye(2), [jnp.ones((1, 2))])
    >>> simulation.simulate(graph, jnp.array([[0.25, 0.75]]), timesteps=8).counts.tolist()
    [[2.0, 6.0]]
    """
    check_timesteps(timesteps)
    driven = drive(graph, x)

    def body(state: State, _: None) -> tuple[State, None]:
        return step(graph, state, driven)[0], None

    return jax.lax.scan(body, init_state(graph, x.shape[0], v0), length=timesteps)[0]


def spike_trains(
    graph: SpikingGraph, x: Float[Array, "b ..."], timesteps: int, v0: float = 0.0
) -> dict[str, Float[Array, "t b ..."]]:
    """Every spike of every neuron, by name, the output's too: for small networks and inputs.

    Memory is T times that of all layers together.  Spikes have the amplitude of their neurons'
    threshold, which in a normalised graph is 1.

    Args:
        graph: the network.
        x: images.
        timesteps: number of steps T.
        v0: membrane potential at the start, as a fraction of the threshold.

    Raises:
        InputError: `timesteps` is not above 0, or the images do not fit the graph.

    >>> import jax, jax.numpy as jnp
    >>> from tcl_jax import clip, convert, simulation
    >>> def network(w, x):
    ...     return clip(jax.nn.relu(x), 1.0) @ w
    >>> graph = convert(network, jnp.eye(1), [jnp.ones((1, 1))])
    >>> trains = simulation.spike_trains(graph, jnp.array([[0.5]]), timesteps=6)
    >>> trains[graph.neurons[0].name].ravel().tolist()
    [0.0, 1.0, 0.0, 1.0, 0.0, 1.0]
    """
    check_timesteps(timesteps)
    driven = drive(graph, x)

    def body(state: State, _: None) -> tuple[State, dict[str, Array]]:
        return step(graph, state, driven)

    return jax.lax.scan(body, init_state(graph, x.shape[0], v0), length=timesteps)[1]


def check_timesteps(timesteps: int) -> None:
    """Raises InputError unless there is at least one time step."""
    if timesteps < 1:
        raise InputError(f"the number of time steps T must be at least 1, got {timesteps}")
