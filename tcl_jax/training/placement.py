"""Where the arrays of a training state lie: whole on every device, or cut over all of them."""

import dataclasses
import math
from typing import Any

import jax

from tcl_jax.cluster import Cluster
from tcl_jax.training.step import TrainState

CUT = ("opt_state", "average")
"""What no step needs whole: each device updates its part of it."""


def placed(shapes: TrainState, cluster: Cluster, *, shard_optimizer: bool = False) -> TrainState:
    """A sharding for every array of a state.

    Args:
        shapes: of the arrays.
        cluster: the devices.
        shard_optimizer: cut what is `CUT` over them, where shapes allow it.
    """
    where: TrainState = jax.tree.map(lambda _: cluster.whole, shapes)
    if shard_optimizer:
        for name in CUT:
            parts = jax.tree.map(lambda x: cluster.cut(x.shape), getattr(shapes, name))
            where = dataclasses.replace(where, **{name: parts})
    return where


def bytes_on_each(shapes: Any, where: Any) -> int:
    """Of arrays, on one device."""
    sizes = jax.tree.map(
        lambda x, s: math.prod(s.shard_shape(x.shape)) * x.dtype.itemsize, shapes, where
    )
    return sum(jax.tree.leaves(sizes))
