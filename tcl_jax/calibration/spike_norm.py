"""Norm-factors from the currents between spiking neurons (Spike-Norm)."""

from collections.abc import Iterable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Real

from tcl_jax import graph as g
from tcl_jax.calibration.norms import Norms, bounded, by_channel, of_neurons, with_norms
from tcl_jax.errors import InputError
from tcl_jax.simulation.simulator import State, check_times, init_state, step


def spike_norm(
    graph: g.SpikingGraph,
    batches: Iterable[Real[Array | np.ndarray, "_ ..."]],
    *,
    scaling: float,
    per_channel: bool,
    timesteps: int,
    images: int,
) -> Norms:
    r"""Threshold balancing layer by layer (Sengupta et al. 2019, Algorithm 1: Spike-Norm).

    The threshold of a population is the largest current that it ever receives from spiking neurons
    before it, which have their thresholds by then,

    .. math:: \lambda^l = S \max_{x, i, t} z^l_i(t), \qquad
              z^l(t) = \sum_j W^l_j \lambda^{l-1}_j s^{l-1}_j(t) + b^l ,

    over images x, neurons i of the layer or channel, and steps t.  So currents between neurons are
    bounded as they are, step by step, where ``max`` bounds their mean over time.  S < 1 trades some
    clipping for less latency (Han et al. 2020); later populations see the thresholds so scaled.

    A spike of a neuron of threshold λ here has amplitude λ, and there amplitude 1.  Without biases
    the two differ by a factor along the layers alone, and after `normalise` (Eq. 5) not at all:
    weights become W/v with v the threshold that the paper gives its layer.  Other than there,
    images are analog currents and not Poisson trains, biases are allowed, and the output neurons
    are not balanced (see `calibrate`).  It is a method for ReLU networks: where a clip follows a
    ReLU, the smaller of the clip and the threshold holds.

    Args:
        graph: folded, with thresholds as traced.
        batches: calibration images; those after the first `images` are not read.
        scaling: S.
        per_channel: whether i runs over a channel and not the layer.
        timesteps: number of steps T.
        images: how many images at most are simulated, once for every population and as far as it:
            with L layers that costs as much as T·L/2 times as many images in the analog network.

    Raises:
        InputError: a number is not above 0; a population without clip never receives a current
            above 0.
    """
    check_times(timesteps)
    if images < 1:
        raise InputError(f"the number of images to simulate must be at least 1, got {images}")
    kept = _first(batches, images)
    norms: Norms = {}
    for neurons in graph.neurons:
        before = _before(with_norms(graph, norms), neurons)
        currents = [np.asarray(_largest_current(before, x, timesteps)) for x in kept]
        largest = np.max(currents, axis=0)
        if not largest.max() > 0 and not bounded(neurons):
            raise InputError(
                f"layer {neurons.name!r} receives no current above 0 in {timesteps} steps of the "
                "spiking network, so that it has no threshold: simulate more steps or images, or "
                "use --norm max"
            )
        norms[neurons.name] = of_neurons(neurons.op.clip, scaling * largest, per_channel)
    return norms


def _first(batches: Iterable[Array | np.ndarray], images: int) -> list[Array | np.ndarray]:
    kept: list[Array | np.ndarray] = []
    missing = images
    for x in batches:
        kept.append(x[:missing])
        missing -= kept[-1].shape[0]
        if not missing:
            break
    return kept


def _before(graph: g.SpikingGraph, neurons: g.Node[g.Population]) -> g.SpikingGraph:
    """What precedes a population, with an output that reads what the population reads.

    Only its ancestors: populations beside it may not have a threshold yet.
    """
    # No output neuron fires at an infinite threshold.
    one = jnp.ones((), graph.dtype)
    end = g.Node(g.Output(one * jnp.inf, one), neurons.inputs, neurons.name)
    return g.SpikingGraph(g.reached((*graph.nodes[: neurons.inputs[0] + 1], end)))


@partial(jax.jit, static_argnames="timesteps")
def _largest_current(
    graph: g.SpikingGraph, x: Real[Array, "b ..."], timesteps: int
) -> Float[Array, " c"]:
    """The largest current into the output at any step, by channel."""
    end = graph.output.name
    constant = g.constant_values(graph, x)

    def body(carry: tuple[State, Array], _: None) -> tuple[tuple[State, Array], None]:
        state, largest = carry
        state, _spikes = step(graph, state, constant)
        # It started at 0 and cannot fire: the potential is the current of this step.
        current = state.membrane[end]
        emptied = state.membrane | {end: jnp.zeros_like(current)}
        return (
            state._replace(membrane=emptied),
            jnp.maximum(largest, by_channel(current).max(0)),
        ), None

    state = init_state(graph, x.shape[0])
    channels = by_channel(state.membrane[end]).shape[1]
    start = (state, jnp.full(channels, -jnp.inf, graph.dtype))
    return jax.lax.scan(body, start, length=timesteps)[0][1]
