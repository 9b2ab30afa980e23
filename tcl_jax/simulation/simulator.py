"""Integrate-and-fire simulation of a spiking graph, one time step at a time (Eqs. 1-3)."""

from collections.abc import Callable
from functools import partial
from numbers import Integral
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int, Real

from tcl_jax.errors import InputError
from tcl_jax.graph import (
    Node,
    Output,
    Population,
    SpikingGraph,
    apply,
    constant_values,
    images,
    shapes,
    walk,
)
from tcl_jax.simulation.coding import ANALOG, Coding, encode
from tcl_jax.simulation.compiled import compiled_once
from tcl_jax.simulation.neurons import IF, Neurons, fire, fraction


class State(NamedTuple):
    """What the neurons remember.

    Attributes:
        membrane: membrane potentials V by neuron name, the output neurons' among them.
        counts: spikes of the output neurons so far, a delay left out.
        resting: by neuron name, steps of rest that are left; empty where neurons never rest.
    """

    membrane: dict[str, Real[Array, "b ..."]]
    counts: Real[Array, "b ..."]
    resting: dict[str, Int[Array, "b ..."]]


def init_state(graph: SpikingGraph, batch: int, neurons: Neurons = IF) -> State:
    """Neurons before the first step.

    Args:
        graph: thresholds finite.
        batch: number of images.
        neurons: what they are.

    Returns:
        The state at t = 0.
    """
    shape = shapes(graph)
    membrane = {
        n.name: jnp.broadcast_to(fraction(neurons.v0, n.op.threshold), (batch, *shape[n.name]))
        for n in graph.neurons
    }
    rested = {n.name: jnp.zeros((batch, *shape[n.name]), jnp.int32) for n in graph.neurons}
    logits = jnp.zeros((batch, *shape[graph.output.name]), graph.dtype)
    return State(
        membrane | {graph.output.name: logits}, logits, rested if neurons.refractory else {}
    )


def step(
    graph: SpikingGraph,
    state: State,
    constant: dict[str, Real[Array, "b ..."]],
    neurons: Neurons = IF,
) -> tuple[State, dict[str, Array]]:
    r"""One time step: every layer integrates the spikes that the layer before fires in this step.

    .. math:: z^l(t) = \sum_j W^l_j \theta^{l-1}_j(t) + b^l, \qquad
              V^l(t) = V^l(t-1) + z^l(t) - V_{thr} \theta^l(t) \qquad (1, 3)

    Args:
        graph: the network.
        state: at t − 1.
        constant: from `constant_values`: what is the same at every t.
        neurons: what they are.

    Returns:
        The state at t, and the spikes of every neuron by name.

    >>> import jax, jax.numpy as jnp
    >>> from tcl_jax import clip, convert, simulation
    >>> graph = convert(lambda w, x: clip(jax.nn.relu(x), 1.0) @ w, jnp.eye(1), [jnp.ones((1, 1))])
    >>> state = simulation.init_state(graph, batch=1)
    >>> constant = simulation.constant_values(graph, jnp.full((1, 1), 0.5))
    >>> for t in range(4):
    ...     state, spikes = simulation.step(graph, state, constant)
    >>> state.counts.item()
    2.0
    """
    membrane: dict[str, Array] = {}
    resting: dict[str, Array] = {}
    spikes: dict[str, Array] = {}

    def integrate_and_fire(node: Node[Population | Output], current: Array) -> Array:
        name, before = node.name, state.membrane[node.name]
        model, rest = neurons, state.resting.get(name)
        if isinstance(node.op, Output):
            model, rest = IF, None
        membrane[name], spikes[name], rest = fire(model, before, current, node.op.threshold, rest)
        if rest is not None:
            resting[name] = rest
        return spikes[name]

    walk(graph, constant, apply, integrate_and_fire)
    fired = (spikes[graph.output.name] > 0).astype(state.counts.dtype)
    return State(membrane, state.counts + fired, resting), spikes


def run(
    graph: SpikingGraph,
    x: Real[Array, "b ..."],
    timesteps: int,
    observe: Callable[[State, dict[str, Array]], Any],
    *,
    neurons: Neurons = IF,
    coding: Coding = ANALOG,
    delay: int = 0,
) -> tuple[State, Any]:
    """All steps, in one `jax.lax.scan`.

    Compiled for each new program: a second call with arguments of the same shapes, and with an
    `observe` that does the same, compiles nothing.

    Args:
        graph: the network.
        x: images.
        timesteps: number of steps T.
        observe: from state and spikes at t to what is kept of them; keep little.  Where the images
            are fed as spikes, these are among them, by the input's name.
        neurons: what they are.
        coding: how images are fed.
        delay: what arrives at the output neurons in so many first steps, in which deep networks
            only fill up, is left out: they start after it.

    Returns:
        The state after T steps, and what was kept, with time as the first axis.

    Raises:
        InputError: `timesteps` is not above 0, `delay` is negative, or the images do not fit the
            graph.

    >>> import jax, jax.numpy as jnp
    >>> from tcl_jax import clip, convert, simulation
    >>> graph = convert(lambda w, x: clip(jax.nn.relu(x), 1.0) @ w, jnp.eye(1), [jnp.ones((1, 1))])
    >>> x = jnp.full((1, 1), 0.5)
    >>> simulation.run(graph, x, 4, lambda state, spikes: state.counts)[1].ravel().tolist()
    [0.0, 1.0, 1.0, 2.0]
    >>> simulation.run(graph, x, 4, lambda s, _: s.counts, delay=3)[1].ravel().tolist()
    [0.0, 0.0, 0.0, 1.0]
    """
    check_times(timesteps, delay)

    def all_steps(graph: SpikingGraph, x: Array, *how: Any) -> tuple[State, Any]:
        return scan(graph, x, timesteps, observe, *how)

    return compiled_once(all_steps, graph, x, neurons, coding, delay)


def scan(
    graph: SpikingGraph,
    x: Real[Array, "b ..."],
    timesteps: int,
    observe: Callable[[State, dict[str, Array]], Any],
    neurons: Neurons,
    coding: Coding,
    delay: Int[Array, ""] | int,
) -> tuple[State, Any]:
    """What every simulation here is made of, to be compiled with what is around it: see `run`."""
    x = images(graph, x)
    fixed = constant_values(graph, x)

    def body(state: State, t: Array) -> tuple[State, Any]:
        constant = fixed if coding.constant else constant_values(graph, encode(coding, x, t))
        state, spikes = step(graph, state, constant, neurons)
        state = read_from(graph, state, t > delay)
        if not coding.constant:
            spikes = {graph.input.name: constant[graph.input.name], **spikes}
        return state, observe(state, spikes)

    return jax.lax.scan(body, init_state(graph, x.shape[0], neurons), jnp.arange(1, timesteps + 1))


def read_from(graph: SpikingGraph, state: State, begun: Bool[Array, "..."]) -> State:
    """The state with output neurons as before their first step, except where reading has begun.

    Args:
        graph: the network.
        state: at t.
        begun: for all images, or each ``[b]``.
    """

    def kept(values: Array) -> Array:
        return jnp.where(begun.reshape(*begun.shape, *(1,) * (values.ndim - begun.ndim)), values, 0)

    name = graph.output.name
    membrane = state.membrane | {name: kept(state.membrane[name])}
    return state._replace(membrane=membrane, counts=kept(state.counts))


def simulate(
    graph: SpikingGraph,
    x: Real[Array, "b ..."],
    timesteps: int,
    *,
    neurons: Neurons = IF,
    coding: Coding = ANALOG,
    delay: int = 0,
) -> State:
    """The state after `timesteps` steps; memory does not grow with them.  Arguments as `run` has.

    >>> import jax, jax.numpy as jnp
    >>> from tcl_jax import clip, convert, simulation
    >>> def network(w, x):
    ...     return clip(jax.nn.relu(x), 1.0) @ w
    >>> graph = convert(network, jnp.eye(2), [jnp.ones((1, 2))])
    >>> simulation.simulate(graph, jnp.array([[0.25, 0.75]]), timesteps=8).counts.tolist()
    [[2.0, 6.0]]
    """
    check_times(timesteps, delay)
    return _simulate(graph, x, timesteps, neurons, coding, delay)


@partial(jax.jit, static_argnames="timesteps")
def _simulate(graph: SpikingGraph, x: Array, timesteps: int, *how: Any) -> State:
    return scan(graph, x, timesteps, lambda state, spikes: None, *how)[0]


def spike_trains(
    graph: SpikingGraph,
    x: Real[Array, "b ..."],
    timesteps: int,
    *,
    neurons: Neurons = IF,
    coding: Coding = ANALOG,
) -> dict[str, Real[Array, "t b ..."]]:
    """Every spike of every neuron, by name, the output's too: for small networks and inputs.

    Memory is T times that of all layers together.  Spikes have the amplitude of their neurons'
    threshold, which in a normalised graph is 1.  Arguments as `run` has.

    >>> import jax, jax.numpy as jnp
    >>> from tcl_jax import clip, convert, simulation
    >>> def network(w, x):
    ...     return clip(jax.nn.relu(x), 1.0) @ w
    >>> graph = convert(network, jnp.eye(1), [jnp.ones((1, 1))])
    >>> trains = simulation.spike_trains(graph, jnp.array([[0.5]]), timesteps=6)
    >>> trains[graph.neurons[0].name].ravel().tolist()
    [0.0, 1.0, 0.0, 1.0, 0.0, 1.0]
    """
    check_times(timesteps)
    return _spike_trains(graph, x, timesteps, neurons, coding)


@partial(jax.jit, static_argnames="timesteps")
def _spike_trains(
    graph: SpikingGraph, x: Array, timesteps: int, neurons: Neurons, coding: Coding
) -> dict[str, Array]:
    def fired(state: State, spikes: dict[str, Array]) -> dict[str, Array]:
        return {n.name: spikes[n.name] for n in graph.spiking}

    return scan(graph, x, timesteps, fired, neurons, coding, 0)[1]


def check_times(timesteps: int, delay: int = 0) -> None:
    """Raises InputError unless there is at least one time step, and no negative delay."""
    if timesteps < 1:
        raise InputError(f"the number of time steps T must be at least 1, got {timesteps}")
    if isinstance(delay, Integral) and delay < 0:
        raise InputError(f"--delay must not be negative, got {delay}")
