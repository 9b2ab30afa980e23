"""Batch norm into weights (Eq. 7): a graph of the same outputs with fewer nodes."""

from tcl_jax import graph as g
from tcl_jax.graph.scales import settle


def fold(graph: g.Graph) -> g.Graph:
    r"""Fold every per-channel scale and shift into the convolution or linear map before it.

    .. math:: W \leftarrow \frac{\gamma}{\sigma} W, \qquad
              b \leftarrow \frac{\gamma}{\sigma} (b - \mu) + \beta  \qquad (7)

    found in the graph and not by the names of layers.  A constant factor after a sum (the division
    of an average) becomes the pool's own.  A scale without a shift goes back past what only moves
    values about, or into all branches of a sum, or else forwards into the weights that read it, as
    that of the image does.  One that has nothing to go into, or differs between positions, stays.

    Args:
        graph: as traced.

    Returns:
        A graph with the same outputs.

    >>> import jax.numpy as jnp
    >>> from tcl_jax.conversion import fold, trace
    >>> graph = trace(lambda x: (x @ jnp.ones((2, 2)) - 1.0) * 3.0, jnp.zeros((1, 2)))
    >>> [type(node.op).__name__ for node in graph.nodes]
    ['Input', 'Dense', 'Scale', 'Scale', 'Output']
    >>> dense = fold(graph).nodes[1].op
    >>> dense.kernel.tolist(), dense.bias.tolist()
    ([[3.0, 3.0], [3.0, 3.0]], [-3.0, -3.0])
    """
    return settle(graph.nodes, g.shapes(graph), graph.dtype)
