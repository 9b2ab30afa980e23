"""Neuron models: how a membrane potential integrates, fires and is reset."""

import numbers
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int, Real

from tcl_jax.errors import InputError
from tcl_jax.promotion import against
from tcl_jax.registry import Choice, Choices

Reset = Literal["subtract", "zero"]


@dataclass(frozen=True)
class NeuronModel(Choice, ABC):
    """What hidden neurons are.

    A model is a dataclass of its numbers, registered in `NEURONS`, whose state is any pytree of
    arrays ``[b, ...]``, the membrane potential first.  Potentials and currents of a graph of whole
    numbers are int32.
    """

    @property
    def spikes_a_step(self) -> int | None:
        """How many a neuron fires at most; None where that is not known."""
        return None

    def potential(self, state: Any) -> Real[Array, "b ..."]:
        """The membrane potential V: the first array of a state, unless a model says otherwise."""
        first: Array = jax.tree.leaves(state)[0]
        return first

    @abstractmethod
    def init(self, threshold: Real[Array, "b ..."]) -> Any:
        """The state of neurons of these thresholds before the first step."""

    @abstractmethod
    def step(
        self, state: Any, current: Real[Array, "b ..."], threshold: Real[Array, "..."]
    ) -> tuple[Any, Bool[Array, "b ..."] | Int[Array, "b ..."]]:
        """One step.

        Args:
            state: before it.
            current: z, from all synapses.
            threshold: θ, broadcasting at the last axis.

        Returns:
            The state, and which neurons fire, or how many spikes each, of amplitude θ.
        """


NEURONS: Choices[NeuronModel] = Choices("neuron model")
"""All models, by name."""


@NEURONS.register("if")
@dataclass(frozen=True, kw_only=True)
class IF(NeuronModel):
    r"""Integrate and fire (Eqs. 2 and 3); the defaults are the paper's neurons.

    .. math:: V \leftarrow (1 - \ell) V + z, \quad s = [V \ge \theta], \quad
              V \leftarrow V - \theta s \;\text{ or }\; V (1 - s), \quad
              V \leftarrow \max(V, -f \theta)

    with leak ℓ and floor f.  A neuron that rests ignores z.  Where potentials are whole numbers, so
    is what they lose: ℓV, rounded.  The state is V, and with a refractory time the steps of rest
    that are left beside it.

    Raises:
        InputError: a number is out of range.

    >>> import jax.numpy as jnp
    >>> from tcl_jax.simulation import IF
    >>> z, threshold = jnp.array([0.75, 0.5]), jnp.array(1.0)
    >>> v, spikes = IF().step(jnp.array([0.75, 0.25]), z, threshold)
    >>> v.tolist(), spikes.tolist()
    ([0.5, 0.75], [True, False])
    >>> IF(reset="zero").step(v, z, threshold)[0].tolist()
    [0.0, 0.0]
    """

    reference: ClassVar[str] = "Ho & Chang 2021"

    v0: float = 0.0
    """Membrane potential at the start, as a fraction of the threshold."""
    reset: Reset = "subtract"
    """A spike subtracts the threshold from the potential, or sets it to zero."""
    leak: float = 0.0
    """Fraction of the potential that is lost in every step."""
    floor: float | None = None
    """The potential never falls below minus this many thresholds; None lets it."""
    refractory: int = field(default=0, metadata={"static": True})
    """Steps after a spike in which a neuron takes no input: it fires at most every 1 + that."""

    def __post_init__(self) -> None:
        for name in ("v0", "leak", "floor"):
            if isinstance(value := getattr(self, name), numbers.Real):  # 0 and 0.5 are one type
                object.__setattr__(self, name, float(value))
        if not _holds(self.v0, lambda v0: (v0 >= 0) & (v0 < 1)):
            raise InputError(
                f"v0 must be in [0, 1), got {self.v0}: it is a fraction of the threshold"
            )
        if self.reset not in get_args(Reset):
            raise InputError(f"reset must be subtract or zero, got {self.reset!r}")
        if not _holds(self.leak, lambda leak: (leak >= 0) & (leak < 1)):
            raise InputError(f"leak must be in [0, 1), got {self.leak}: it is lost in every step")
        if not _holds(self.floor, lambda floor: floor >= 0):
            raise InputError(f"floor must not be negative, got {self.floor}")
        if self.refractory < 0:
            raise InputError(f"refractory must not be negative, got {self.refractory}")

    @property
    def spikes_a_step(self) -> int:
        return 1

    def init(self, threshold: Real[Array, "b ..."]) -> Any:
        potential = fraction(self.v0, threshold)
        return (potential, jnp.zeros(threshold.shape, jnp.int32)) if self.refractory else potential

    def step(
        self, state: Any, current: Real[Array, "b ..."], threshold: Real[Array, "..."]
    ) -> tuple[Any, Bool[Array, "b ..."]]:
        potential, resting = state if self.refractory else (state, None)
        theta = against(threshold, potential)
        if resting is not None:
            current = jnp.where(resting > 0, 0, current)
        potential = potential - fraction(self.leak, potential) + current
        fires = potential >= theta
        if resting is not None:
            fires &= resting == 0
            resting = jnp.where(fires, self.refractory, jnp.maximum(resting - 1, 0))
        potential = jnp.where(fires, 0 if self.reset == "zero" else potential - theta, potential)
        if self.floor is not None:
            potential = jnp.maximum(potential, fraction(-self.floor, theta))
        return potential if resting is None else (potential, resting), fires


def _holds(value: Any, rule: Callable[[Any], Any]) -> bool:
    """Whether a number, or all of an array, keeps a rule; what has no value yet is not asked."""
    known = isinstance(value, numbers.Real | np.ndarray | jax.Array)
    if isinstance(value, jax.core.Tracer) or not known:
        return True
    return bool(np.all(rule(value)))


def fraction(part: float, values: Array) -> Array:
    """A part of thresholds or potentials, in their type: of whole numbers, rounded."""
    if jnp.issubdtype(values.dtype, jnp.integer):
        return jnp.round(part * values.astype(jnp.result_type(float))).astype(values.dtype)
    return part * values
