"""Norm-factors from weights alone: bounds that no activation can exceed."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from tcl_jax import graph as g
from tcl_jax.calibration.method import (
    NORMS,
    Batches,
    Largest,
    NormFactors,
    NormMethod,
    by_channel,
    of_neurons,
)
from tcl_jax.errors import InputError
from tcl_jax.graph.ops.base import Interval


@NORMS.register("model_based")
@dataclass(frozen=True)
class ModelBased(NormMethod):
    r"""λ of a population is the largest activation possible (Diehl et al. 2015, Algorithm 1).

    .. math:: \lambda^l = \max_i \Big( \sum_j \max(W^l_{ij}, 0) \, u_j
              + \sum_j \min(W^l_{ij}, 0) \, l_j + b^l_i \Big)

    over neurons i of the layer or channel, where inputs lie between l and u.  Those that are
    neurons lie between 0 and the λ just found.  Images, which the paper has between 0 and 1, lie
    between the smallest and the largest value of their channel (the last axis) on the calibration
    images.  What stands between two populations, pools and additions too, passes both bounds on.

    No image within those bounds exceeds λ, so that nothing is clipped; but all inputs at their
    worst is what no image does, layer upon layer: the bound is some times too large at each, very
    loose for deep networks, whose later layers then hardly fire.
    """

    reference: ClassVar[str] = "Diehl et al. 2015"

    channel: bool = False
    """One λ a channel.  A channel that can never be active takes its layer's."""

    def norm_factors(self, graph: g.Graph, batches: Batches, largest: Largest) -> NormFactors:
        low, high = _range(batches())
        shape = (1, *graph.input.op.shape)
        norms: NormFactors = {}

        def clipped(node: g.Node[g.Population | g.Output], interval: Interval) -> Interval:
            if isinstance(node.op, g.Output):
                return interval
            _, upper = interval
            largest = np.asarray(by_channel(upper).max(0))
            if not np.isfinite(largest).all():
                raise InputError(
                    f"the bound on the activations of layer {node.name!r} is beyond float32: the "
                    'network is too deep for norm="model_based", so use max or percentile:99.9'
                )
            norm = norms[node.name] = of_neurons(node.op.clip, largest, self.channel)
            amplitude = jnp.broadcast_to(jnp.asarray(norm, jnp.float32), upper.shape)
            return jnp.zeros_like(upper), amplitude

        images = jnp.broadcast_to(low, shape), jnp.broadcast_to(high, shape)
        g.walk(
            graph, {graph.input.name: images}, lambda node, *read: node.op.bounds(*read), clipped
        )
        return norms


def _range(
    batches: Iterable[Array | np.ndarray],
) -> tuple[Float[np.ndarray, " c"], Float[np.ndarray, " c"]]:
    ends = [(np.asarray(by_channel(x).min(0)), np.asarray(by_channel(x).max(0))) for x in batches]
    lows, highs = zip(*ends, strict=True)
    return np.min(lows, 0), np.max(highs, 0)
