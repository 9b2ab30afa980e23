"""Batch norm into weights (Eq. 7): a graph of the same outputs with fewer nodes."""

from collections import Counter
from dataclasses import replace

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
    >>> [type(node).__name__ for node in graph.nodes]
    ['Input', 'Dense', 'Scale', 'Scale', 'Output']
    >>> dense = fold(graph).nodes[1]
    >>> dense.kernel.tolist(), dense.bias.tolist()
    ([[3.0, 0.0], [0.0, 3.0]], [-3.0, -3.0])
    """
    readers = Counter(name for node in graph.nodes for name in node.inputs)
    shapes = g.shapes(graph)
    folded: dict[str, g.Node] = {}
    renamed: dict[str, str] = {}
    for node in graph.nodes:
        node = replace(node, inputs=tuple(renamed.get(i, i) for i in node.inputs))
        merged = None
        if isinstance(node, g.Op) and node.scaling:
            merged = _merged(folded, node.inputs[0], *node.scaling, readers, shapes)
        if merged is None:
            folded[node.name] = node
        else:
            folded[merged.name] = merged
            renamed[node.name] = node.inputs[0]
            readers[node.inputs[0]] = readers[node.name]
    return g.SpikingGraph(tuple(folded.values()))


def _merged(
    nodes: dict[str, g.Node],
    name: str,
    scale: Scales,
    shift: Scales,
    readers: Counter[str],
    shapes: dict[str, Shape],
) -> g.Op | None:
    """The operation at or before a node that takes a scale and shift up; None if there is none.

    What others read too must keep its value, all along the way.
    """
    while True:
        op = nodes[name]
        if readers[name] != 1 or not isinstance(op, g.Op):
            return None
        if (merged := op.then(scale, shift)) is not None:
            return merged
        if shift.any() or len(op.inputs) != 1:
            return None
        (name,) = op.inputs
        if (split := op.split(scale, [shapes[name]])) is None:
            return None
        (scale,) = split
