"""Methods that the package does not have: a class and a registration each, and every law holds."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int, Key, Real

from tcl_jax import graph as g
from tcl_jax.calibration import NORMS, NormFactors, NormMethod
from tcl_jax.calibration.method import Batches, Largest, of_neurons
from tcl_jax.graph.ops.base import Positive, Scales, Shape, compact, leaves
from tcl_jax.promotion import against
from tcl_jax.simulation import CODINGS, NEURONS, READOUTS, Coding, NeuronModel, Readout


@NORMS.register("part_of_max")
@dataclass(frozen=True)
class PartOfMax(NormMethod):
    """λ is a part of the largest activation."""

    part: float = 0.75
    channel: bool = False

    def norm_factors(self, graph: g.Graph, batches: Batches, largest: Largest) -> NormFactors:
        return {
            n.name: of_neurons(n.op.clip, self.part * largest[n.name], self.channel)
            for n in graph.neurons
        }


@NEURONS.register("burst")
@dataclass(frozen=True)
class Burst(NeuronModel):
    """As many spikes in a step as the potential holds thresholds, up to some number."""

    most: int = 4

    def init(self, threshold: Real[Array, "b ..."]) -> Array:
        return jnp.zeros_like(threshold)

    def step(
        self, state: Array, current: Real[Array, "b ..."], threshold: Real[Array, "..."]
    ) -> tuple[Array, Int[Array, "b ..."]]:
        potential = state + current
        theta = against(threshold, potential)
        spikes = jnp.clip(potential // theta, 0, self.most)
        return potential - spikes * theta, spikes.astype(jnp.int32)


@CODINGS.register("flicker")
@dataclass(frozen=True)
class Flicker(Coding):
    """All of the current of so many steps in the last of them, and then nothing."""

    every: int = 2

    def encode(
        self, x: Real[Array, "b ..."], t: Int[Array, ""] | int, key: Key[Array, ""]
    ) -> Real[Array, "b ..."]:
        return jnp.where(jnp.asarray(t) % self.every == 0, x * self.every, 0)


@READOUTS.register("fading")
@dataclass(frozen=True)
class Fading(Readout):
    """Current that counts for less the longer ago it was."""

    fade: float = 0.125

    def init(self, nothing: Real[Array, "b ..."]) -> Array:
        return nothing

    def update(
        self, state: Array, current: Real[Array, "b ..."], output: g.Output
    ) -> tuple[Array, Bool[Array, "b ..."]]:
        return state - self.fade * state + current, jnp.zeros(current.shape, bool)

    def charge(self, state: Array, output: g.Output) -> Real[Array, "b ..."]:
        return state


@READOUTS.register("every")
@dataclass(frozen=True)
class Every(Readout):
    """All readouts at once; the spikes are those of the paper's."""

    @property
    def readouts(self) -> dict[str, Readout]:
        return {name: READOUTS.read(name) for name in READOUTS if name != self.name}

    def init(self, nothing: Real[Array, "b ..."]) -> dict[str, Any]:
        return {name: readout.init(nothing) for name, readout in self.readouts.items()}

    def update(
        self, state: dict[str, Any], current: Real[Array, "b ..."], output: g.Output
    ) -> tuple[dict[str, Any], Bool[Array, "b ..."]]:
        found = {k: r.update(state[k], current, output) for k, r in self.readouts.items()}
        return {name: after for name, (after, _) in found.items()}, found["spikes"][1]

    def charge(self, state: dict[str, Any], output: g.Output) -> Real[Array, "b ..."]:
        return self.readouts["spikes"].charge(state["spikes"], output)

    def classes(self, state: dict[str, Any], output: g.Output) -> dict[str, Int[Array, "b ..."]]:
        return {name: r.classify(state[name], output) for name, r in self.readouts.items()}


@leaves()
@dataclass(frozen=True)
class Flip(Positive):
    """Reverses axes, counted without the batch."""

    axes: tuple[int, ...]

    def apply(self, *values: Array) -> Array:
        return jnp.flip(values[0], [axis + 1 for axis in self.axes])

    def carry(self, scales: Sequence[Scales], shapes: Sequence[Shape]) -> Scales:
        return compact(np.flip(np.broadcast_to(scales[0], shapes[0]), self.axes))

    def split(self, scale: Scales, shapes: Sequence[Shape]) -> tuple[Scales, ...]:
        return (compact(np.flip(np.broadcast_to(scale, shapes[0]), self.axes)),)


def flipped(tracer: Any, eqn: Any, x: Any) -> Any:
    """What becomes of a signal at the primitive ``rev``."""
    axes = tuple(x.axes[axis] - 1 for axis in eqn.params["dimensions"])
    return tracer.add(eqn, "flip", Flip(axes), (x.node,), x.axes)
