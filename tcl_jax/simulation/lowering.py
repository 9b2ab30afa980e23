"""The same graph in the form that a platform simulates fast."""

import math
from dataclasses import replace

import jax
import jax.numpy as jnp

from tcl_jax.conversion import graph as g


def lower(graph: g.SpikingGraph, platform: str | None = None) -> g.SpikingGraph:
    """Replace what a platform runs slowly by what computes the same.

    On a CPU a convolution whose window exceeds its map, as 3×3 on 2×2, falls to XLA's slowest form;
    it becomes a linear map of the whole flattened signal, whose zeros cost less than that.  Nothing
    changes on other platforms.  Sums come in another order, so that membrane potentials may differ
    in their last bits.

    Args:
        graph: any.
        platform: ``cpu``, ``gpu`` or ``tpu``; JAX's default backend when None.

    Returns:
        A graph with the same neurons and the same outputs.

    >>> import jax, jax.numpy as jnp
    >>> from tcl_jax.conversion import trace
    >>> from tcl_jax.simulation import lower
    >>> def network(x):
    ...     return jax.lax.conv_general_dilated(
    ...         x, jnp.ones((3, 3, 1, 1)), (1, 1), "SAME",
    ...         dimension_numbers=("NHWC", "HWIO", "NHWC"))
    >>> graph = trace(network, jnp.zeros((1, 2, 2, 1)))
    >>> [type(node).__name__ for node in lower(graph, "cpu").nodes]
    ['Input', 'Reshape', 'Dense', 'Reshape', 'Output']
    """
    if (platform or jax.default_backend()) != "cpu":
        return graph
    shapes = g.shapes(graph)
    nodes: list[g.Node] = []
    for node in graph.nodes:
        if isinstance(node, g.Conv) and _exceeds(node, shapes[node.inputs[0]]):
            nodes += _as_linear_map(node, shapes[node.inputs[0]], shapes[node.name])
        else:
            nodes.append(node)
    return g.SpikingGraph(tuple(nodes))


def _exceeds(conv: g.Conv, shape: tuple[int, ...]) -> bool:
    reach = ((w - 1) * d + 1 for w, d in zip(conv.kernel.shape, conv.dilation, strict=False))
    return any(r > n for r, n in zip(reach, shape, strict=False))


def _as_linear_map(
    conv: g.Conv, before: tuple[int, ...], after: tuple[int, ...]
) -> tuple[g.Node, ...]:
    size = math.prod(before)
    basis = jnp.eye(size, dtype=conv.kernel.dtype).reshape(size, *before)
    matrix = g.affine(replace(conv, bias=None), basis).reshape(size, -1)
    bias = conv.bias
    if bias is not None:
        bias = jnp.broadcast_to(bias, after).reshape(-1)
    flat, product = f"{conv.name}/flat", f"{conv.name}/product"
    return (
        g.Reshape(flat, conv.inputs, (size,)),
        g.Dense(product, (flat,), matrix, bias),
        g.Reshape(conv.name, (product,), after),
    )
