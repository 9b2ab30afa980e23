"""Simulation: `state, x -> state, spikes`, all steps in one scan."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int, Real

from tcl_jax.errors import InputError
from tcl_jax.graph import (
    Graph,
    Node,
    Output,
    Population,
    apply,
    constant_values,
    images,
    shapes,
    walk,
)
from tcl_jax.promotion import against
from tcl_jax.simulation.coding import key_of
from tcl_jax.simulation.compiled import compiled_once
from tcl_jax.simulation.settings import PAPER, Simulation

Kept = TypeVar("Kept")


class State(NamedTuple):
    """What the neurons remember.

    Attributes:
        neurons: of hidden ones by name, what their model keeps: of the paper's, membrane potentials
            V.
        output: what the readout keeps, a delay left out: of the paper's, potentials and counts.
    """

    neurons: dict[str, Any]
    output: Any


def init_state(graph: Graph, batch: int, settings: Simulation = PAPER) -> State:
    """Neurons before the first step.

    Args:
        graph: thresholds finite.
        batch: number of images.
        settings: what neurons and readout are.

    Returns:
        The state at t = 0.
    """
    shape = shapes(graph)
    nothing = jnp.zeros((batch, *shape[graph.output.name]), graph.dtype)
    thresholds = {
        n.name: jnp.broadcast_to(n.op.threshold, (batch, *shape[n.name])) for n in graph.neurons
    }
    neurons = {name: settings.neurons.init(theta) for name, theta in thresholds.items()}
    return State(neurons, settings.readout.init(nothing))


def step(
    graph: Graph,
    state: State,
    constant: dict[str, Real[Array, "b ..."]],
    settings: Simulation = PAPER,
) -> tuple[State, dict[str, Array]]:
    r"""One time step: every layer integrates the spikes that the layer before fires in this step.

    .. math:: z^l(t) = \sum_j W^l_j \theta^{l-1}_j(t) + b^l, \qquad
              V^l(t) = V^l(t-1) + z^l(t) - V_{thr} \theta^l(t) \qquad (1, 3)

    Args:
        graph: the network.
        state: at t − 1.
        constant: from `constant_values`: what is the same at every t.
        settings: what neurons and readout are.

    Returns:
        The state at t, and the spikes of every neuron by name: of the size of its threshold, or 1
        in a graph of whole numbers.

    >>> import jax, jax.numpy as jnp
    >>> from tcl_jax import clip, convert, simulation
    >>> graph = convert(lambda w, x: clip(jax.nn.relu(x), 1.0) @ w, jnp.eye(1), [jnp.ones((1, 1))])
    >>> state = simulation.init_state(graph, batch=1)
    >>> constant = simulation.constant_values(graph, jnp.full((1, 1), 0.5))
    >>> for t in range(4):
    ...     state, spikes = simulation.step(graph, state, constant)
    >>> state.output.counts.item()
    2.0
    """
    neurons: dict[str, Any] = {}
    spikes: dict[str, Array] = {}
    output = state.output

    def integrate_and_fire(node: Node[Population | Output], current: Array) -> Array:
        nonlocal output
        if isinstance(node.op, Output):
            output, fired = settings.readout.update(state.output, current, node.op)
        else:
            before = state.neurons[node.name]
            neurons[node.name], fired = settings.neurons.step(before, current, node.op.threshold)
        spikes[node.name] = _of_size(fired, against(node.op.threshold, current))
        return spikes[node.name]

    walk(graph, constant, apply, integrate_and_fire)
    return State(neurons, output), spikes


def _of_size(spikes: Array, theta: Array) -> Array:
    """Spikes, which are there or numbers of such, with their amplitude."""
    once, whole = spikes.dtype == bool, jnp.issubdtype(theta.dtype, jnp.integer)
    if whole and not once:
        raise InputError(
            "neurons of this model can fire several times in a step, for which a network of whole "
            "numbers has no room: simulate it before it is quantised"
        )
    if whole:
        return spikes.astype(jnp.int8)
    if once:
        return jnp.where(spikes, theta, jnp.zeros_like(theta))
    return spikes.astype(theta.dtype) * theta


def run(
    graph: Graph,
    x: Real[Array, "b ..."],
    timesteps: int,
    observe: Callable[[State, dict[str, Array]], Kept],
    settings: Simulation = PAPER,
) -> tuple[State, Kept]:
    """All steps, in one `jax.lax.scan`.

    Compiled for each new program: a second call with arguments of the same shapes, and with an
    `observe` that does the same, compiles nothing.

    Args:
        graph: the network.
        x: images.
        timesteps: number of steps T.
        observe: from state and spikes at t to what is kept of them; keep little.  Where the images
            are fed as spikes, these are among them, by the input's name.
        settings: neurons, coding, readout and their numbers.

    Returns:
        The state after T steps, and what was kept, with time as the first axis.

    Raises:
        InputError: `timesteps` is not above 0, the images do not fit the graph, or it is one of
            whole numbers and neurons fire more than once in a step.

    >>> import jax, jax.numpy as jnp
    >>> from tcl_jax import clip, convert, simulation
    >>> graph = convert(lambda w, x: clip(jax.nn.relu(x), 1.0) @ w, jnp.eye(1), [jnp.ones((1, 1))])
    >>> x = jnp.full((1, 1), 0.5)
    >>> def counts(state, spikes):
    ...     return state.output.counts
    >>> simulation.run(graph, x, 4, counts)[1].ravel().tolist()
    [0.0, 1.0, 1.0, 2.0]
    >>> simulation.run(graph, x, 4, counts, simulation.Simulation(delay=3))[1].ravel().tolist()
    [0.0, 0.0, 0.0, 1.0]
    """
    check_times(timesteps)

    def all_steps(graph: Graph, x: Array, settings: Simulation) -> tuple[State, Kept]:
        return scan(graph, x, timesteps, observe, settings)

    return compiled_once(all_steps, graph, x, settings)


def scan(
    graph: Graph,
    x: Real[Array, "b ..."],
    timesteps: int,
    observe: Callable[[State, dict[str, Array]], Kept],
    settings: Simulation,
) -> tuple[State, Kept]:
    """What every simulation here is made of, to be compiled with what is around it: see `run`."""
    x = images(graph, x)
    fixed = constant_values(graph, x)
    coding, key = settings.coding, key_of(settings.seed)

    def body(before: State, t: Array) -> tuple[State, Kept]:
        constant = fixed if coding.constant else constant_values(graph, coding.encode(x, t, key))
        state, spikes = step(graph, before, constant, settings)
        state = read_from(before, state, t > settings.delay)
        if not coding.constant:
            spikes = {graph.input.name: constant[graph.input.name], **spikes}
        return state, observe(state, spikes)

    return jax.lax.scan(body, init_state(graph, x.shape[0], settings), jnp.arange(1, timesteps + 1))


def read_from(before: State, after: State, begun: Bool[Array, "..."]) -> State:
    """The state after a step, the readout's as before it where reading has not begun.

    Args:
        before: the step.
        after: it.
        begun: for all images, or each ``[b]``.
    """

    def kept(new: Array, old: Array) -> Array:
        return jnp.where(begun.reshape(*begun.shape, *(1,) * (new.ndim - begun.ndim)), new, old)

    return after._replace(output=jax.tree.map(kept, after.output, before.output))


def simulate(
    graph: Graph,
    x: Real[Array, "b ..."],
    timesteps: int,
    settings: Simulation = PAPER,
) -> State:
    """The state after `timesteps` steps; memory does not grow with them.  Arguments as `run` has.

    >>> import jax, jax.numpy as jnp
    >>> from tcl_jax import clip, convert, simulation
    >>> def network(w, x):
    ...     return clip(jax.nn.relu(x), 1.0) @ w
    >>> graph = convert(network, jnp.eye(2), [jnp.ones((1, 2))])
    >>> state = simulation.simulate(graph, jnp.array([[0.25, 0.75]]), timesteps=8)
    >>> state.output.counts.tolist()
    [[2.0, 6.0]]
    """
    check_times(timesteps)
    state: State = _simulate(graph, x, timesteps, settings)
    return state


@partial(jax.jit, static_argnames="timesteps")
def _simulate(graph: Graph, x: Array, timesteps: int, settings: Simulation) -> State:
    return scan(graph, x, timesteps, lambda state, spikes: None, settings)[0]


def spike_trains(
    graph: Graph,
    x: Real[Array, "b ..."],
    timesteps: int,
    settings: Simulation = PAPER,
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
    trains: dict[str, Array] = _spike_trains(graph, x, timesteps, settings)
    return trains


@partial(jax.jit, static_argnames="timesteps")
def _spike_trains(graph: Graph, x: Array, timesteps: int, settings: Simulation) -> dict[str, Array]:
    def fired(state: State, spikes: dict[str, Array]) -> dict[str, Array]:
        return {n.name: spikes[n.name] for n in graph.spiking}

    return scan(graph, x, timesteps, fired, settings)[1]


def logits(
    graph: Graph, state: State, t: Int[Array, ""] | int, settings: Simulation = PAPER
) -> Real[Array, "b ..."]:
    r"""The function's values, as the network has them by step t.

    .. math:: y(t) = \frac{\lambda}{t - d} q(t)

    with the output's norm-factor λ, the delay d and the charge q, all current into the output
    neurons: the mean of that, in the units of the function that was converted.  It converges to the
    function's value as 1/t, positive or negative, of any shape.

    Args:
        graph: the network.
        state: after t steps.
        t: their number.
        settings: what the state was simulated with.

    >>> import jax, jax.numpy as jnp
    >>> from tcl_jax import clip, convert, simulation
    >>> def network(w, x):
    ...     return clip(jax.nn.relu(x), 1.0) @ w - 1.0
    >>> x = jnp.array([[0.25, 0.75]])
    >>> graph = convert(network, 2 * jnp.eye(2), [x])
    >>> simulation.logits(graph, simulation.simulate(graph, x, timesteps=8), 8).tolist()
    [[-0.5, 0.5]]
    """
    output = graph.output.op
    charge = settings.readout.charge(state.output, output)
    return charge * output.unit / jnp.maximum(t - settings.delay, 1)


def classify(graph: Graph, state: State, settings: Simulation = PAPER) -> Int[Array, "b ..."]:
    """The class that the output neurons point to, by the readout: see `readout.Readout`."""
    return settings.readout.classify(state.output, graph.output.op)


def check_times(timesteps: int) -> None:
    """Raises InputError unless there is at least one time step."""
    if timesteps < 1:
        raise InputError(f"must be at least 1, got {timesteps}", "timesteps")
