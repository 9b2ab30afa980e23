"""Batch norm into weights (Eq. 7): a graph of the same outputs with fewer nodes."""

from collections import Counter
from dataclasses import replace

import numpy as np

from tcl_jax import graph as g
from tcl_jax.graph.ops.base import Scales, Shape


def fold(graph: g.SpikingGraph) -> g.SpikingGraph:
    r"""Fold every per-channel scale and shift into the convolution or linear map before it.

    .. math:: W \leftarrow \frac{\gamma}{\sigma} W, \qquad
              b \leftarrow \frac{\gamma}{\sigma} (b - \mu) + \beta  \qquad (7)

    found in the graph and not by the names of layers.  A constant factor after a sum (the division
    of an average) becomes the pool's own.  A scale alone goes back through what only moves values
    about.  One that has nothing to go into, or whose value differs between positions, stays.

    Args:
        graph: as traced.

    Returns:
        A graph with the same outputs.

    >>> import jax.numpy as jnp
    >>> from tcl_jax.conversion import fold, trace
    >>> graph = trace(lambda x: (x @ jnp.eye(2) - 1.0) * 3.0, jnp.zeros((1, 2)))
    >>> [type(node.op).__name__ for node in graph.nodes]
    ['Input', 'Dense', 'Scale', 'Scale', 'Output']
    >>> dense = fold(graph).nodes[1].op
    >>> dense.kernel.tolist(), dense.bias.tolist()
    ([[3.0, 0.0], [0.0, 3.0]], [-3.0, -3.0])
    """
    nodes = list(graph.nodes)
    shapes = list(g.shapes(graph).values())
    readers = Counter(number for node in nodes for number in node.inputs)
    instead: dict[int, int] = {}  # of what was merged, the node that has its value now
    for number, node in enumerate(nodes):
        read = tuple(instead.get(i, i) for i in node.inputs)
        nodes[number] = replace(node, inputs=read)
        if isinstance(node.op, g.Op) and node.op.scaling:
            merged = _merged(nodes, read[0], *node.op.scaling, readers, shapes)
            if merged is not None:
                at, op = merged
                nodes[at] = replace(nodes[at], op=op)
                instead[number] = read[0]
                readers[read[0]] = readers[number]
    return g.SpikingGraph(g.reached(nodes))


def _merged(
    nodes: list[g.Node[g.Kind]],
    number: int,
    scale: Scales,
    shift: Scales,
    readers: Counter[int],
    shapes: list[Shape],
) -> tuple[int, g.Op] | None:
    """At or before a node, the operation that takes a scale and shift up; None if there is none.

    What others read too must keep its value, all along the way, and its shape.
    """
    for factor in (scale, shift):
        if np.broadcast_shapes(factor.shape, shapes[number]) != shapes[number]:
            return None
    while True:
        op = nodes[number].op
        if readers[number] != 1 or not isinstance(op, g.Op):
            return None
        if (merged := op.then(scale, shift)) is not None:
            return number, merged
        if shift.any() or len(nodes[number].inputs) != 1:
            return None
        (number,) = nodes[number].inputs
        if (split := op.split(scale, [shapes[number]])) is None:
            return None
        (scale,) = split
