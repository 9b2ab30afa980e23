"""Margins: how far ahead the class is that is read, by which it may be decided early."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Real

from tcl_jax.errors import InputError
from tcl_jax.graph import Output
from tcl_jax.registry import Choice, Choices
from tcl_jax.simulation.readout import Counted, Readout, by_class


@dataclass(frozen=True)
class Margin(Choice, ABC):
    """What of the output neurons is compared: registered in `MARGINS`."""

    @abstractmethod
    def amounts(self, readout: Readout, state: Any, output: Output) -> Real[Array, "b ..."]:
        """Of every output neuron, in thresholds or in spikes.

        Args:
            readout: the simulation's.
            state: the readout's.
            output: the neurons.

        Raises:
            InputError: the readout has none.
        """

    def __call__(
        self, readout: Readout, state: Any, output: Output, classes: Int[Array, " b"]
    ) -> Float[Array, " b"]:
        r"""The margin of each image's class c over the others,

        .. math:: m = q_c - \max_{j \ne c} q_j

        which is negative where another class has more, as there may be: classes are the readout's.
        """
        amounts = by_class(self.amounts(readout, state, output))
        own = jnp.arange(amounts.shape[-1])[None] == classes[:, None]
        others = jnp.max(jnp.where(own, -jnp.inf, amounts), -1)
        return jnp.max(jnp.where(own, amounts, -jnp.inf), -1) - others


MARGINS: Choices[Margin] = Choices("margin")
"""All margins, by name."""


@MARGINS.register("charge")
@dataclass(frozen=True)
class Charge(Margin):
    r"""What a neuron has taken in: spikes fired plus what is left of the last.

    .. math:: q_j = n_j + V_j / \theta

    Finer than counts, of which early differences are 0 or 1.
    """

    def amounts(self, readout: Readout, state: Any, output: Output) -> Real[Array, "b ..."]:
        return readout.charge(state, output) / output.threshold


CHARGE = Charge()


@MARGINS.register("counts")
@dataclass(frozen=True)
class Counts(Margin):
    """Spikes that a neuron has fired, as hardware counts them without a look at potentials."""

    def amounts(self, readout: Readout, state: Any, output: Output) -> Real[Array, "b ..."]:
        if not isinstance(state, Counted):
            raise InputError(f"the readout {readout} counts no spikes: give margin=charge")
        return state.counts / jnp.ones_like(state.counts)  # in floating point, of whole numbers too
