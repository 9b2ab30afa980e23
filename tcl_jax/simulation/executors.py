"""Executors: in which order a simulation is computed, which decides its speed, not its spikes."""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import Literal

import jax

from tcl_jax.errors import InputError
from tcl_jax.graph import Graph, shapes
from tcl_jax.provenance import cores
from tcl_jax.registry import Choice, Choices
from tcl_jax.simulation.costs import costs


@dataclass(frozen=True)
class Executor(Choice, ABC):
    """How many steps of one layer are computed at once, before the next layer's.

    All executors compute the same; only the order in which a sum is rounded can differ.
    """

    @abstractmethod
    def block(self, graph: Graph, batch: int, timesteps: int) -> int:
        """The number of steps K that a layer goes through at once; 1 is step by step.

        Args:
            graph: the network.
            batch: number of images.
            timesteps: number of steps T, which K does not surpass.
        """


EXECUTORS: Choices[Executor] = Choices("executor")
"""All executors, by name."""


@EXECUTORS.register("scan")
@dataclass(frozen=True)
class Scan(Executor):
    """All layers go through a step before the next step: the least memory."""

    def block(self, graph: Graph, batch: int, timesteps: int) -> int:
        return 1


@EXECUTORS.register("blocked")
@dataclass(frozen=True)
class Blocked(Executor):
    """A layer goes through K steps before the next layer does: weights are read once in K steps."""

    steps: int | None = field(default=None, metadata={"static": True})
    """K; None takes one that is fast by what is known of the platform, and divides T if it can."""
    memory: float = field(default=1.0, kw_only=True, metadata={"static": True})
    """GiB that the values of a block may take, whatever `steps` says."""
    platform: Literal["cpu", "gpu", "tpu"] | None = field(
        default=None, kw_only=True, metadata={"static": True}
    )
    """Whose costs tell K; None takes JAX's default."""

    def __post_init__(self) -> None:
        if self.steps is not None and self.steps < 1:
            raise InputError(f"steps must be at least 1, got {self.steps}")
        if not self.memory > 0:
            raise InputError(f"memory must be above 0 GiB, got {self.memory:g}")

    def block(self, graph: Graph, batch: int, timesteps: int) -> int:
        found = shapes(graph)
        values = batch * sum(math.prod(found[n.name]) for n in graph.spiking)
        wanted = self.steps or _fastest(graph, values, self.platform)
        room = int(self.memory * 2**30 / (values * graph.dtype.itemsize))
        most = max(1, min(timesteps, room))
        length = min(wanted, most)
        return length if self.steps else _dividing(timesteps, length, most)


def _dividing(timesteps: int, near: int, most: int) -> int:
    """A length that divides T, so that no other block is compiled for what is left over.

    Args:
        timesteps: T.
        near: the length that it is to be like, by a factor of √2 at most; itself where none is.
        most: that it can be.
    """
    like = (k for k in range(1, most + 1) if near**2 <= 2 * k**2 <= 4 * near**2)
    dividing = [k for k in like if timesteps % k == 0]
    return min(dividing, key=lambda k: abs(math.log(k / near)), default=near)


def _fastest(graph: Graph, values: int, platform: str | None) -> int:
    r"""The power of two below the K whose steps take the least time.

    .. math:: \frac{w}{K} + s K \to \min, \qquad K = \sqrt{w / s}

    with what a block takes once, w: starting its operations and reading their weights; and what a
    step takes longer, s, because the values of a longer block are in the cache no more.

    Args:
        graph: the network, as it is simulated.
        values: of all neurons of all images.
        platform: that computes.
    """
    known = costs(platform)
    if known is None:
        return 1
    weights = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(graph))
    once = known.operation * len(graph.nodes) + known.weight * weights
    if once < known.block:
        return 1
    longer = known.spread * values / cores()
    return int(2 ** (math.log2(max(1.0, once / longer)) // 2))
