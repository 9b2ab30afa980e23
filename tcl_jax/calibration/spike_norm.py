"""Norm-factors from the currents between spiking neurons (Spike-Norm)."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import partial
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Real

from tcl_jax import graph as g
from tcl_jax.calibration.method import (
    NORMS,
    Batches,
    Largest,
    NormFactors,
    NormMethod,
    bounded,
    by_channel,
    of_neurons,
    with_norms,
)
from tcl_jax.errors import InputError
from tcl_jax.simulation.dynamics import State, init_state, step
from tcl_jax.simulation.readout import Membrane
from tcl_jax.simulation.settings import Simulation
from tcl_jax.simulation.simulator import check_times

_SUMMED = Simulation(readout=Membrane())


@NORMS.register("spike_norm")
@dataclass(frozen=True)
class SpikeNorm(NormMethod):
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
    """

    reference: ClassVar[str] = "Sengupta et al. 2019, Han et al. 2020"

    scaling: float = 1.0
    """S."""
    timesteps: int = field(default=100, kw_only=True)
    """Number of steps T."""
    images: int = field(default=200, kw_only=True)
    """How many images at most, from the first, are simulated, once for every population and as far
    as it: with L layers that costs as much as T·L/2 times as many in the analog network."""
    channel: bool = False
    """Whether i runs over a channel and not the layer."""

    def __post_init__(self) -> None:
        if not 0 < self.scaling <= 1:
            raise InputError(
                f"{self.scaling} is no scaling of thresholds: write spike_norm:S with S above 0 "
                "and at most 1, as in spike_norm:0.8"
            )
        check_times(self.timesteps)
        if self.images < 1:
            raise InputError(
                f"the number of images to simulate must be at least 1, got {self.images}"
            )

    def norm_factors(self, graph: g.Graph, batches: Batches, largest: Largest) -> NormFactors:
        kept = _first(batches(), self.images)
        norms: NormFactors = {}
        for neurons in graph.neurons:
            before = _before(with_norms(graph, norms), neurons)
            currents = [np.asarray(_largest_current(before, x, self.timesteps)) for x in kept]
            strongest = np.max(currents, axis=0)
            if not strongest.max() > 0 and not bounded(neurons):
                raise InputError(
                    f"layer {neurons.name!r} receives no current above 0 in {self.timesteps} steps "
                    "of the spiking network, so that it has no threshold: simulate more steps or "
                    'images, or use norm="max"'
                )
            found = of_neurons(neurons.op.clip, self.scaling * strongest, self.channel)
            norms[neurons.name] = found
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


def _before(graph: g.Graph, neurons: g.Node[g.Population]) -> g.Graph:
    """What precedes a population, with an output that reads what the population reads.

    Only its ancestors: populations beside it may not have a threshold yet.
    """
    one = jnp.ones((), graph.dtype)
    end = g.Node(g.Output(one, one), neurons.inputs, neurons.name)
    return g.Graph(g.reached((*graph.nodes[: neurons.inputs[0] + 1], end)))


@partial(jax.jit, static_argnames="timesteps")
def _largest_current(graph: g.Graph, x: Real[Array, "b ..."], timesteps: int) -> Float[Array, " c"]:
    """The largest current into the output at any step, by channel."""
    constant = g.constant_values(graph, x)
    start = init_state(graph, x.shape[0], _SUMMED)

    def body(carry: tuple[State, Array], _: None) -> tuple[tuple[State, Array], None]:
        state, largest = carry
        after, _spikes = step(graph, state._replace(output=start.output), constant, _SUMMED)
        # The sum of this step alone.
        return (after, jnp.maximum(largest, by_channel(after.output).max(0))), None

    channels = by_channel(start.output).shape[1]
    nothing = jnp.full(channels, -jnp.inf, graph.dtype)
    return jax.lax.scan(body, (start, nothing), length=timesteps)[0][1]
