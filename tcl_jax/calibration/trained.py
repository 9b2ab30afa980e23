"""Norm-factors that were trained with the network: those of its clips."""

from dataclasses import dataclass
from typing import ClassVar

from tcl_jax import graph as g
from tcl_jax.calibration.method import (
    NORMS,
    Batches,
    Largest,
    NormFactors,
    NormMethod,
    bounded,
    named,
)
from tcl_jax.errors import InputError


@NORMS.register("tcl")
@dataclass(frozen=True)
class Trained(NormMethod):
    """λ of a population is the trained bound of its clip (Ho & Chang 2021), whatever the data."""

    reference: ClassVar[str] = "Ho & Chang 2021"
    reads_once: ClassVar[bool] = True

    def check(self, graph: g.Graph) -> None:
        if bare := [n.name for n in graph.neurons if not bounded(n)]:
            raise InputError(
                f'{named(bare)} has no trained λ: convert this network with norm="max" or '
                'norm="percentile:99.9", or train it with TCL'
            )

    def norm_factors(self, graph: g.Graph, batches: Batches, largest: Largest) -> NormFactors:
        return {}
