"""Neurons: how a membrane potential integrates, fires and is reset."""

import numbers
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int, Real

from tcl_jax.errors import InputError
from tcl_jax.promotion import against

Reset = Literal["subtract", "zero"]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Neurons:
    """What the hidden neurons of a simulation are; the defaults are the paper's.

    The output's neurons only count: they integrate and fire from 0 and are reset by subtraction,
    whatever is set here.

    A pytree of v0, leak and floor, so that one compilation serves all their values, and `jax.vmap`
    many of them at once.
    """

    v0: float = 0.0
    """Membrane potential at the start, as a fraction of the threshold."""
    reset: Reset = field(default="subtract", metadata={"static": True})
    """A spike subtracts the threshold from the potential, or sets it to zero."""
    leak: float = 0.0
    """Fraction of the potential that is lost in every step."""
    floor: float | None = None
    """The potential never falls below minus this many thresholds; None lets it."""
    refractory: int = field(default=0, metadata={"static": True})
    """Steps after a spike in which a neuron takes no input: it fires at most every 1 + that."""

    def __post_init__(self):
        for name in ("v0", "leak", "floor"):
            if isinstance(value := getattr(self, name), numbers.Real):  # 0 and 0.5 are one type
                object.__setattr__(self, name, float(value))
        if not _holds(self.v0, lambda v0: (v0 >= 0) & (v0 < 1)):
            raise InputError(
                f"--v0 must be in [0, 1), got {self.v0}: it is a fraction of the threshold"
            )
        if self.reset not in get_args(Reset):
            raise InputError(f"--reset must be subtract or zero, got {self.reset!r}")
        if not _holds(self.leak, lambda leak: (leak >= 0) & (leak < 1)):
            raise InputError(f"--leak must be in [0, 1), got {self.leak}: it is lost in every step")
        if not _holds(self.floor, lambda floor: floor >= 0):
            raise InputError(f"--floor must not be negative, got {self.floor}")
        if self.refractory < 0:
            raise InputError(f"--refractory must not be negative, got {self.refractory}")


def _holds(value: Any, rule: Callable[[Any], Any]) -> bool:
    """Whether a number, or all of an array, keeps a rule; what has no value yet is not asked."""
    known = isinstance(value, numbers.Real | np.ndarray | jax.Array)
    if isinstance(value, jax.core.Tracer) or not known:
        return True
    return bool(np.all(rule(value)))


IF = Neurons()
"""Integrate-and-fire from 0, reset by subtraction: the paper's neurons."""


def fire(
    neurons: Neurons,
    potential: Real[Array, "b ..."],
    current: Real[Array, "b ..."],
    threshold: Real[Array, "..."],
    resting: Int[Array, "b ..."] | None = None,
) -> tuple[Real[Array, "b ..."], Real[Array, "b ..."], Int[Array, "b ..."] | None]:
    r"""One step: integrate, fire, reset (Eqs. 2 and 3).

    .. math:: V \leftarrow (1 - \ell) V + z, \quad s = [V \ge \theta], \quad
              V \leftarrow V - \theta s \;\text{ or }\; V (1 - s), \quad
              V \leftarrow \max(V, -f \theta)

    with leak ℓ and floor f.  A neuron that rests ignores z.  Where potentials are whole numbers, so
    is what they lose: ℓV, rounded.

    Args:
        neurons: what they are.
        potential: V.
        current: z.
        threshold: θ, broadcasting at the last axis.
        resting: steps that each still rests; None where no neuron ever does.

    Returns:
        The new potential, the spikes, of amplitude θ, or 1 where potentials are whole numbers, and
        the steps of rest.

    >>> import jax.numpy as jnp
    >>> from tcl_jax.simulation import Neurons, fire
    >>> z, threshold = jnp.array([0.75, 0.5]), jnp.array(1.0)
    >>> v, spikes, _ = fire(Neurons(), jnp.array([0.75, 0.25]), z, threshold)
    >>> v.tolist(), spikes.tolist()
    ([0.5, 0.75], [1.0, 0.0])
    >>> fire(Neurons(reset="zero"), v, z, threshold)[0].tolist()
    [0.0, 0.0]
    """
    theta = against(threshold, potential)
    if resting is not None:
        current = jnp.where(resting > 0, 0, current)
    potential = potential - fraction(neurons.leak, potential) + current
    fires = potential >= theta
    if resting is not None:
        fires &= resting == 0
        resting = jnp.where(fires, neurons.refractory, jnp.maximum(resting - 1, 0))
    potential = jnp.where(fires, 0 if neurons.reset == "zero" else potential - theta, potential)
    if neurons.floor is not None:
        potential = jnp.maximum(potential, fraction(-neurons.floor, theta))
    if jnp.issubdtype(theta.dtype, jnp.integer):
        return potential, fires.astype(jnp.int8), resting
    return potential, jnp.where(fires, theta, jnp.zeros_like(potential)), resting


def fraction(part: float, values: Array) -> Array:
    """A part of thresholds or potentials, in their type: of whole numbers, rounded."""
    if jnp.issubdtype(values.dtype, jnp.integer):
        return jnp.round(part * values.astype(jnp.result_type(float))).astype(values.dtype)
    return part * values
