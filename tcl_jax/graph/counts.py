"""What values are whole numbers of: those of spikes, as long as nothing weights them."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import jax.numpy as jnp
import numpy as np

from tcl_jax.graph.graph import Graph, shapes, walk
from tcl_jax.graph.nodes import Node, Output, Population
from tcl_jax.graph.ops.base import Op, Shape


@dataclass(frozen=True)
class Multiples:
    """The numbers k · step, where k is whole and no larger than `most`, of either sign."""

    step: float
    most: int

    def in_bits(self, bits: int) -> bool:
        """Whether each is a binary floating-point number of so many significant bits.

        >>> Multiples(0.25, 4).in_bits(8), Multiples(1 / 49, 49).in_bits(8)
        (True, False)
        """
        return math.frexp(self.step)[0] == 0.5 and self.most <= 2**bits


def multiples(graph: Graph, spikes: int) -> dict[str, Multiples]:
    """By name, of those nodes whose value in a time step is made of spikes, and of no weights.

    Args:
        graph: any.
        spikes: that a neuron fires at most in a step.

    >>> import jax, jax.numpy as jnp
    >>> from tcl_jax import clip, convert
    >>> def network(w, x):
    ...     x = clip(jax.nn.relu(x), 2.0).reshape(-1, 2, 2)
    ...     return x.mean(1) @ w
    >>> graph = convert(network, jnp.eye(2), jnp.ones((1, 4)))
    >>> list(multiples(graph, spikes=1).values())
    [Multiples(step=1.0, most=1), Multiples(step=1.0, most=1), Multiples(step=0.5, most=2)]
    """
    sizes = shapes(graph)
    sides: dict[str, tuple[Shape, ...]] = {
        node.name: tuple(sizes[graph.nodes[i].name] for i in node.inputs) for node in graph.nodes
    }

    def carried(node: Node[Op], *read: Multiples | None) -> Multiples | None:
        known = [of for of in read if of is not None]
        return _of(node.op, known, sides[node.name]) if len(known) == len(read) else None

    def fired(node: Node[Population | Output], _: Multiples | None) -> Multiples | None:
        if isinstance(node.op, Output):  # which nothing reads
            return None
        thresholds = np.unique(np.asarray(node.op.threshold, np.float64))
        alike = thresholds.size == 1 and np.isfinite(thresholds).all()
        return Multiples(thresholds.item(), spikes) if alike else None

    start: dict[str, Multiples | None] = {graph.input.name: None}
    found = walk(graph, start, carried, fired)
    return {name: of for name, of in found.items() if of is not None}


def _of(op: Op, read: list[Multiples], sides: tuple[Shape, ...]) -> Multiples | None:
    if op.scaling is not None:
        scale, shift = op.scaling
        if scale.size > 1 or shift.any() or not scale.all():
            return None
        return Multiples(read[0].step * abs(scale.item()), read[0].most)
    counting = op.counted(jnp.int32)
    if counting is None:
        return None
    whole, factor = counting
    step = min(of.step for of in read)
    if any(of.step % step for of in read):  # no whole number of one is the other
        return None

    most = largest(whole, [round(of.most * of.step / step) for of in read], sides)
    return Multiples(step * abs(1.0 if factor is None else factor), most)


def largest(op: Op, bounds: Sequence[int], sides: Sequence[Shape]) -> int:
    """The largest size of a count, made of such up to some size.

    Args:
        op: on whole numbers.
        bounds: of each value that it reads.
        sides: their shapes, without the batch.

    >>> from tcl_jax.graph import Add
    >>> largest(Add(), [3, 4], [(5,), (5,)])
    7
    """
    ends = [
        jnp.full((1, *side), bound, jnp.int32) for bound, side in zip(bounds, sides, strict=True)
    ]
    return int(max(jnp.max(jnp.abs(end)) for end in op.bounds(*((-end, end) for end in ends))))
