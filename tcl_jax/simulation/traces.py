"""What single neurons do: spikes and membrane potentials of chosen layers, at every step."""

import difflib
from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import jax
from jaxtyping import Array, Float, Int, Real

from tcl_jax.errors import InputError
from tcl_jax.graph import Graph, Output
from tcl_jax.promotion import against, alike
from tcl_jax.simulation.dynamics import State, spike_counts
from tcl_jax.simulation.settings import PAPER, Simulation
from tcl_jax.simulation.simulator import all_steps, check_times


class Trace(NamedTuple):
    """A layer's neurons at t = 1, 2, ...

    Attributes:
        spikes: how many each fires in the step.
        potential: membrane potentials V after it, in thresholds.
    """

    spikes: Int[Array, "t b ..."]
    potential: Float[Array, "t b ..."]


def traces(
    graph: Graph,
    x: Real[Array, "b ..."],
    timesteps: int,
    layers: Sequence[str] | None = None,
    settings: Simulation = PAPER,
) -> dict[str, Trace]:
    """Spikes and membrane potentials of layers, by the names of their neurons.

    Memory is T times that of these layers together.

    Args:
        graph: the network.
        x: images.
        timesteps: number of steps T.
        layers: names, or parts of names as `find_layers` takes them; None takes all.
        settings: neurons, coding, readout and their numbers.  Output neurons are the readout's;
            until a delay has passed they stay as they were.

    Raises:
        InputError: there is no such layer, `timesteps` is not above 0, or the images do not fit.

    >>> import jax, jax.numpy as jnp
    >>> from tcl_jax import clip, convert, simulation
    >>> def network(w, x):
    ...     return clip(jax.nn.relu(x), 1.0) @ w
    >>> graph = convert(network, jnp.eye(1), [jnp.ones((1, 1))])
    >>> (trace,) = simulation.traces(graph, jnp.array([[0.75]]), 4, ["neuron"]).values()
    >>> trace.spikes.ravel().tolist(), trace.potential.ravel().tolist()
    ([0, 1, 1, 1], [0.75, 0.5, 0.25, 0.0])
    """
    check_times(timesteps)
    names = tuple(n.name for n in graph.spiking) if layers is None else find_layers(graph, layers)
    found: dict[str, Trace] = _traces(graph, x, timesteps, names, settings)
    return found


@partial(jax.jit, static_argnames=("timesteps", "names"))
def _traces(
    graph: Graph, x: Array, timesteps: int, names: tuple[str, ...], settings: Simulation
) -> dict[str, Trace]:
    def observe(state: State, spikes: dict[str, Array], t: Array) -> dict[str, Trace]:
        return traced_layers(graph, names, settings, state, spikes)

    return all_steps(graph, x, timesteps, observe, settings)[1]


def traced_layers(
    graph: Graph,
    names: Sequence[str],
    settings: Simulation,
    state: State,
    spikes: dict[str, Array],
) -> dict[str, Trace]:
    """Traces of one step, ``[b, ...]``, for what is observed in `tcl_jax.simulation.run`.

    Args:
        graph: the network.
        names: of layers of neurons, in full.
        settings: what is simulated.
        state: after the step.
        spikes: in it.
    """
    found = {}
    for node in graph.spiking:
        if node.name not in names:
            continue
        if isinstance(node.op, Output):
            potential = settings.readout.potential(state.output)
        else:
            potential = settings.neurons.potential(state.neurons[node.name])
        potential, theta = alike(potential, node.op.threshold)
        counts = spike_counts(spikes[node.name], node.op.threshold)
        found[node.name] = Trace(counts, potential / against(theta, potential))
    return found


def find_layers(graph: Graph, layers: Sequence[str]) -> tuple[str, ...]:
    """Full names of layers of neurons, of which parts are given, as ``act1`` of ``Net/act1/tcl``.

    Args:
        graph: the network.
        layers: names, or parts of a name between slashes; a part that several have stands for all.

    Returns:
        Names in the order of the network, each once.

    Raises:
        InputError: there is none of such a name.

    >>> import jax, jax.numpy as jnp
    >>> from tcl_jax import clip, convert
    >>> from tcl_jax.simulation.traces import find_layers
    >>> graph = convert(lambda w, x: clip(jax.nn.relu(x), 1.0) @ w, jnp.eye(1), [jnp.ones((1, 1))])
    >>> find_layers(graph, ["output", "neuron"])
    ('neuron', 'output')
    """
    names = [node.name for node in graph.spiking]
    found = set()
    for layer in layers:
        matching = [n for n in names if f"/{layer.strip('/')}/" in f"/{n}/"]
        if not matching:
            parts = list(dict.fromkeys(part for n in names for part in n.split("/")))
            close = difflib.get_close_matches(layer, parts + names, n=2)
            hint = (
                f"did you mean {' or '.join(close)}?" if close else f"there are {', '.join(names)}"
            )
            raise InputError(f"no layer of neurons is called {layer!r}: {hint}")
        found.update(matching)
    return tuple(n for n in names if n in found)
