"""Several steps of one layer at a time: what a block of steps makes of all neurons.

A layer's spikes depend on the layers before it and on its own past, never on a layer behind it.
So a layer can go through K steps before the next one begins: its operations are applied once to the
K steps of a batch as if they were K batches, and then its neurons integrate one step after the
other.  Weights are read once in K steps, and products have K times as many rows.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Real

from tcl_jax.graph import Graph, Node, Op, Output, Population, constant_values, walk
from tcl_jax.simulation.coding import key_of
from tcl_jax.simulation.dynamics import Kept, Observe, State, fire, init_state, read_from
from tcl_jax.simulation.settings import Simulation


class Steps(NamedTuple):
    """Values of several steps, as one batch: those of an image lie side by side.

    Attributes:
        values: of the first image's steps, of the second's, ...
    """

    # Images first: so a batch that is spread over devices by images stays where it is.
    values: Real[Array, "b*k ..."]


def blocked(
    graph: Graph,
    x: Real[Array, "b ..."],
    timesteps: int,
    observe: Observe[Kept],
    settings: Simulation,
    size: int,
) -> tuple[State, Kept]:
    """What `dynamics.scan` computes, several steps of a layer at a time.

    Spikes are those of `scan`, but where a sum that is rounded in another order decides.  Every
    value of a block is held, as long as a layer behind it, or `observe`, reads it.

    Args:
        graph: the network.
        x: images.
        timesteps: number of steps T.
        observe: as `run` takes it.
        settings: neurons, coding, readout and their numbers.
        size: number of steps K in a block; what T leaves over is a block of its own.
    """
    x = settings.coding.checked(graph, x, timesteps)
    whole, rest = divmod(timesteps, size)
    fixed = constant_values(graph, x) if settings.coding.constant else {}

    def block(state: State, first: Array, size: int = size) -> tuple[State, Kept]:
        end, *passed = _steps(graph, state, x, fixed, first, size, settings)

        def seen(i: Array) -> Kept:
            now, spikes = jax.tree.map(partial(_at, i), passed)
            return observe(now, spikes, first + i)

        return end, lax.map(seen, jnp.arange(size))

    state, kept = lax.scan(
        block, init_state(graph, x.shape[0], settings), 1 + size * jnp.arange(whole)
    )
    kept = jax.tree.map(lambda v: v.reshape(whole * size, *v.shape[2:]), kept)
    if rest:
        state, last = block(state, jnp.asarray(1 + whole * size), rest)
        kept = jax.tree.map(lambda *parts: jnp.concatenate(parts), kept, last)
    return state, kept


def _steps(
    graph: Graph,
    start: State,
    x: Array,
    fixed: dict[str, Array],
    first: Array,
    size: int,
    settings: Simulation,
) -> tuple[State, State, dict[str, Array]]:
    """The state after `size` steps from the step `first` on; the state and spikes of each."""
    end, passed = dict(start.neurons), dict(start.neurons)
    output = outputs = start.output
    spikes: dict[str, Array] = {}
    known: dict[str, Any] = fixed
    if not settings.coding.constant:
        key = key_of(settings.seed)
        times = first + jnp.arange(size)
        frames = jax.vmap(lambda t: settings.coding.encode(x, t, key), out_axes=1)(times)
        known = {n: Steps(v) for n, v in constant_values(graph, _merged(frames)).items()}
        spikes[graph.input.name] = frames

    def every(value: Array | Steps) -> Array:
        if isinstance(value, Steps):
            return value.values
        return _merged(jnp.broadcast_to(value[:, None], (len(value), size, *value.shape[1:])))

    def linear(node: Node[Op], *values: Array | Steps) -> Steps:
        return Steps(node.op.apply(*map(every, values)))

    def integrate_and_fire(node: Node[Population | Output], current: Array | Steps) -> Steps:
        nonlocal output, outputs
        is_output = isinstance(node.op, Output)

        def current_at(i: Array) -> Array:
            if isinstance(current, Steps):
                return _at(i, _split(current.values, size))
            return current

        def advance(state: Any, i: Array) -> tuple[Any, tuple[Any, Array]]:
            after, fired = fire(settings, node, state, current_at(i))
            if is_output:
                after = read_from(state, after, first + i > settings.delay)
            return after, (after, fired)

        after, (each, spikes[node.name]) = _in_turn(
            advance, output if is_output else start.neurons[node.name], size
        )
        if is_output:
            output, outputs = after, each
        else:
            end[node.name], passed[node.name] = after, each
        return Steps(_merged(spikes[node.name]))

    walk(graph, known, linear, integrate_and_fire)
    return State(end, output), State(passed, outputs), spikes


def _in_turn(
    advance: Callable[[Any, Array], tuple[Any, Any]], start: Any, size: int
) -> tuple[Any, Any]:
    """`lax.scan` over so many steps, in whose results time is the second axis."""
    like = jax.eval_shape(lambda state: advance(state, jnp.zeros((), int))[1], start)
    made = jax.tree.map(lambda v: jnp.zeros((v.shape[0], size, *v.shape[1:]), v.dtype), like)

    def body(i: Array, carry: tuple[Any, Any]) -> tuple[Any, Any]:
        state, made = carry
        state, found = advance(state, i)
        return state, jax.tree.map(partial(_put, i), made, found)

    end: tuple[Any, Any] = lax.fori_loop(0, size, body, (start, made))
    return end


def _at(i: Array, values: Array) -> Array:
    at: Array = lax.dynamic_index_in_dim(values, i, 1, keepdims=False)
    return at


def _put(i: Array, made: Array, values: Array) -> Array:
    with_it: Array = lax.dynamic_update_index_in_dim(made, values, i, 1)
    return with_it


def _merged(values: Array) -> Array:
    return values.reshape(values.shape[0] * values.shape[1], *values.shape[2:])


def _split(values: Array, size: int) -> Array:
    return values.reshape(values.shape[0] // size, size, *values.shape[1:])
