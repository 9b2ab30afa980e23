"""The largest activations of the analog network, as norm-factors and for methods to start from."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Real

from tcl_jax import graph as g
from tcl_jax.calibration.method import (
    NORMS,
    Batches,
    Largest,
    NormFactors,
    NormMethod,
    by_channel,
    check_active,
    of_neurons,
)
from tcl_jax.errors import InputError


@NORMS.register("max")
@dataclass(frozen=True)
class Max(NormMethod):
    r"""λ of a population is its largest activation (Diehl et al. 2015, data-based normalisation).

    .. math:: \lambda^l = \max_{x, i} a^l_i(x)

    over calibration images x and neurons i of the layer or channel.
    """

    reference: ClassVar[str] = "Diehl et al. 2015"
    reads_once: ClassVar[bool] = True

    channel: bool = False
    """Whether i runs over a channel and not the layer."""

    def norm_factors(self, graph: g.Graph, batches: Batches, largest: Largest) -> NormFactors:
        check_active(graph, largest, self)
        return {n.name: of_neurons(n.op.clip, largest[n.name], self.channel) for n in graph.neurons}


def largest_activations(
    graph: g.Graph, batches: Iterable[Real[Array | np.ndarray, "_ ..."]]
) -> Largest:
    """The largest activation of every channel of every population, and the largest logits.

    Raises:
        InputError: there are no images, or they are not finite.
    """

    @jax.jit
    def of_batch(graph: g.Graph, x: Array) -> tuple[Array, dict[str, Array]]:
        found: dict[str, Array] = {}
        g.evaluate(graph, x, lambda name, a: found.__setitem__(name, by_channel(a).max(0)))
        return jnp.isfinite(x).all(), found

    largest: Largest = {}
    for number, x in enumerate(batches, start=1):
        x = g.images(graph, x)
        if not len(x):
            raise InputError(f"calibration batch {number} holds no images: leave it out")
        finite, tops = of_batch(graph, x)
        if not finite:
            raise InputError(
                f"calibration batch {number} holds values that are not finite: mend it"
            )
        for name, top in tops.items():
            largest[name] = np.maximum(largest.get(name, -np.inf), np.asarray(top))
    if not largest:
        raise InputError("there are no calibration images: give at least one")
    return largest
