"""What happens in a time step, and all steps one after the other: the reference of executors."""

from collections.abc import Callable
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
    shapes,
    walk,
)
from tcl_jax.promotion import against
from tcl_jax.simulation.coding import key_of
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


Observe = Callable[[State, dict[str, Array], Array], Kept]
"""From the state after a step, the spikes in it by name, and its number t to what is kept."""


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
        before = output if isinstance(node.op, Output) else state.neurons[node.name]
        after, spikes[node.name] = fire(settings, node, before, current)
        if isinstance(node.op, Output):
            output = after
        else:
            neurons[node.name] = after
        return spikes[node.name]

    walk(graph, constant, apply, integrate_and_fire)
    return State(neurons, output), spikes


def fire(
    settings: Simulation, node: Node[Population | Output], state: Any, current: Array
) -> tuple[Any, Array]:
    """One step of one layer: what it remembers, and its spikes with their amplitude.

    Args:
        settings: what neurons and readout are.
        node: the neurons, or the output.
        state: what they remember of the step before.
        current: what arrives.
    """
    if isinstance(node.op, Output):
        state, fired = settings.readout.update(state, current, node.op)
    else:
        state, fired = settings.neurons.step(state, current, node.op.threshold)
    return state, _of_size(fired, against(node.op.threshold, current))


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


def spike_counts(
    spikes: Real[Array, "b ..."], threshold: Real[Array, "..."]
) -> Int[Array, "b ..."]:
    """How many spikes there are in a step, from spikes with their amplitude.

    Args:
        spikes: as `step` gives them.
        threshold: of these neurons.
    """
    if jnp.issubdtype(spikes.dtype, jnp.integer):
        return spikes
    return jnp.rint(spikes / against(threshold, spikes)).astype(jnp.int32)


def read_from(before: Any, after: Any, begun: Bool[Array, "..."]) -> Any:
    """What a readout keeps after a step, as before it where reading has not begun.

    Args:
        before: its state before the step.
        after: the state after it.
        begun: for all images, or each ``[b]``.
    """

    def kept(new: Array, old: Array) -> Array:
        return jnp.where(begun.reshape(*begun.shape, *(1,) * (new.ndim - begun.ndim)), new, old)

    return jax.tree.map(kept, after, before)


def scan(
    graph: Graph,
    x: Real[Array, "b ..."],
    timesteps: int,
    observe: Observe[Kept],
    settings: Simulation,
) -> tuple[State, Kept]:
    """All steps one after the other, to be compiled with what is around it: see `run`."""
    coding, key = settings.coding, key_of(settings.seed)
    x = coding.checked(graph, x, timesteps)
    fixed = constant_values(graph, x) if coding.constant else {}

    def body(before: State, t: Array) -> tuple[State, Kept]:
        constant = fixed if coding.constant else constant_values(graph, coding.encode(x, t, key))
        state, spikes = step(graph, before, constant, settings)
        read = read_from(before.output, state.output, t > settings.delay)
        state = state._replace(output=read)
        if not coding.constant:
            spikes = {graph.input.name: constant[graph.input.name], **spikes}
        return state, observe(state, spikes, t)

    return jax.lax.scan(body, init_state(graph, x.shape[0], settings), jnp.arange(1, timesteps + 1))
