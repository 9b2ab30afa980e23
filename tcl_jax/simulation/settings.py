"""How a network is simulated, as one value."""

from dataclasses import asdict, dataclass
from numbers import Integral
from typing import Any

from tcl_jax.errors import InputError
from tcl_jax.pytrees import pytree
from tcl_jax.simulation.coding import Analog, Coding
from tcl_jax.simulation.executors import Blocked, Executor
from tcl_jax.simulation.neurons import IF, NeuronModel
from tcl_jax.simulation.readout import Readout, Spikes

_TABLES = {
    "neurons": "NEURONS",
    "coding": "CODINGS",
    "readout": "READOUTS",
    "executor": "EXECUTORS",
}
"""Where what a text names is read, by what it is of a simulation."""


@pytree("neurons", "coding", "readout", "delay", "seed")
@dataclass(frozen=True)
class Simulation:
    """How a network is simulated; the defaults are the paper's.

    A pytree of its numbers, so that one compilation serves all their values, and `jax.vmap` many of
    them at once; what they are numbers of is structure.

    Raises:
        InputError: a number is out of range.

    >>> from tcl_jax.simulation import IF, READOUTS, Simulation
    >>> settings = Simulation(IF(v0=0.5), readout=READOUTS.read("membrane"))
    >>> str(settings.neurons), str(settings.coding), str(settings.readout)
    ('if:v0=0.5', 'analog', 'membrane')
    """

    neurons: NeuronModel = IF()
    """What hidden neurons are; those of the output are the readout's."""
    coding: Coding = Analog()
    """How images are fed."""
    readout: Readout = Spikes()
    """What the output's neurons make of their current, and how a class is read."""
    delay: int = 0
    """What arrives at the output in so many first steps, in which deep networks only fill up, is
    left out: reading starts after it."""
    seed: int = 0
    """Of what the coding draws."""
    executor: Executor = Blocked()
    """In which order all that is computed."""

    def __post_init__(self) -> None:
        for name, table in _TABLES.items():
            if isinstance(text := getattr(self, name), str):
                raise InputError(
                    f"{name} is the text {text!r}: give simulation.{table}.read({text!r})"
                )
        if isinstance(self.delay, Integral) and self.delay < 0:
            raise InputError(f"delay must not be negative, got {self.delay}")
        if isinstance(self.seed, Integral) and not 0 <= self.seed < 2**31:
            raise InputError(f"must be from 0 to 2^31 - 1, got {self.seed}", "seed")

    def said(self) -> dict[str, Any]:
        """For a record that people and tables read."""
        texts = {name: str(getattr(self, name)) for name in _TABLES}
        return {**texts, **asdict(self.neurons), "delay": self.delay, "seed": self.seed}

    def distinguished(self) -> dict[str, Any]:
        """All that makes a simulation another, for a fingerprint: not the executor."""
        # As records have it of old, which had no other model: they are to stay valid.
        neurons = asdict(self.neurons) if isinstance(self.neurons, IF) else str(self.neurons)
        coding = {"coding": str(self.coding), "seed": self.seed}
        delay = {"delay": self.delay, "readout": str(self.readout)}
        return {"neurons": neurons, "coding": coding, **delay}


PAPER = Simulation()
"""Integrate-and-fire from 0, reset by subtraction, analog input, classes by spikes."""
