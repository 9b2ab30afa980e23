"""Simulation of all steps: the state after them, spikes, values and classes."""

from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int, Real

from tcl_jax.errors import InputError
from tcl_jax.graph import Graph
from tcl_jax.promotion import alike
from tcl_jax.simulation.blocked import blocked
from tcl_jax.simulation.compiled import compiled_once
from tcl_jax.simulation.dynamics import Kept, Observe, State, scan
from tcl_jax.simulation.settings import PAPER, Simulation


def all_steps(
    graph: Graph,
    x: Real[Array, "b ..."],
    timesteps: int,
    observe: Observe[Kept],
    settings: Simulation,
) -> tuple[State, Kept]:
    """What every simulation here is made of, to be compiled with what is around it: see `run`."""
    size = settings.executor.block(graph, x.shape[0], timesteps)
    if size == 1:
        return scan(graph, x, timesteps, observe, settings)
    return blocked(graph, x, timesteps, observe, settings, size)


def run(
    graph: Graph,
    x: Real[Array, "b ..."],
    timesteps: int,
    observe: Observe[Kept],
    settings: Simulation = PAPER,
) -> tuple[State, Kept]:
    """All steps, in one program.

    Compiled for each new program: a second call with arguments of the same shapes, and with an
    `observe` that does the same, compiles nothing.

    Args:
        graph: the network.
        x: images.
        timesteps: number of steps T.
        observe: from state and spikes at step t, and t, to what is kept of them; keep little.
            Where the images are not the same at every step, what is fed is among the spikes, by the
            input's name.
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
    >>> def counts(state, spikes, t):
    ...     return state.output.counts
    >>> simulation.run(graph, x, 4, counts)[1].ravel().tolist()
    [0.0, 1.0, 1.0, 2.0]
    >>> simulation.run(graph, x, 4, counts, simulation.Simulation(delay=3))[1].ravel().tolist()
    [0.0, 0.0, 0.0, 1.0]
    """
    check_times(timesteps)

    def simulation(graph: Graph, x: Array, settings: Simulation) -> tuple[State, Kept]:
        return all_steps(graph, x, timesteps, observe, settings)

    return compiled_once(simulation, graph, x, settings)


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
    return all_steps(graph, x, timesteps, lambda state, spikes, t: None, settings)[0]


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
    def fired(state: State, spikes: dict[str, Array], t: Array) -> dict[str, Array]:
        return {n.name: spikes[n.name] for n in graph.spiking}

    return all_steps(graph, x, timesteps, fired, settings)[1]


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
    charge, unit = alike(settings.readout.charge(state.output, output), output.unit)
    return charge * unit / jnp.asarray(jnp.maximum(t - settings.delay, 1), charge.dtype)


def classify(graph: Graph, state: State, settings: Simulation = PAPER) -> Int[Array, "b ..."]:
    """The class that the output neurons point to, by the readout: see `readout.Readout`."""
    return settings.readout.classify(state.output, graph.output.op)


def check_times(timesteps: int) -> None:
    """Raises InputError unless there is at least one time step."""
    if timesteps < 1:
        raise InputError(f"must be at least 1, got {timesteps}", "timesteps")
