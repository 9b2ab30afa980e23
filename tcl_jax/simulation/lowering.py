"""The same graph in the form that a platform simulates fast."""

import math
from functools import singledispatch

import jax
import jax.numpy as jnp
import numpy as np

from tcl_jax import graph as g
from tcl_jax.graph.convolution import is_depthwise
from tcl_jax.graph.ops.base import Shape


def lower(graph: g.Graph, platform: str | None = None) -> g.Graph:
    """Replace what a platform runs slowly by what computes the same.

    On a CPU a convolution whose window has more places than its map, as 3×3 on 2×2, falls to XLA's
    slowest form; it becomes a linear map of the whole flattened signal, whose zeros cost less than
    that.  Not where these would be too many, as in a convolution of very many groups, nor a
    depthwise one, nor where the map would take more than 64 MiB.  Nothing changes on other
    platforms.  Sums come in another order, so that membrane potentials may differ
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
    >>> [type(node.op).__name__ for node in lower(graph, "cpu").nodes]
    ['Input', 'Reshape', 'Dense', 'Reshape', 'Output']
    """
    if (platform or jax.default_backend()) != "cpu":
        return graph
    shapes = list(g.shapes(graph).values())
    names = {node.name for node in graph.nodes}
    nodes: list[g.Node[g.Kind]] = []
    now: list[int] = []  # of every node of the graph, its number among the new ones
    for number, node in enumerate(graph.nodes):
        inputs = tuple(now[i] for i in node.inputs)
        steps = _faster(node.op, *(shapes[i] for i in (*node.inputs, number)))
        for what, op in steps.items():
            name = g.free(f"{node.name}/{what}", names) if what else node.name
            nodes.append(g.Node(op, inputs, name))
            inputs = (len(nodes) - 1,)
        now.append(len(nodes) - 1)
    return g.Graph(tuple(nodes))


@singledispatch
def _faster(op: g.Kind, *sizes: Shape) -> dict[str, g.Kind]:
    """What computes the same in less time on a CPU: by name, one step after the other.

    The last step, which has the node's own name, is called ''.  Of most kinds nothing is known that
    is faster than what they are.

    Args:
        op: of any kind.
        sizes: shapes of what it reads, and last of its value.
    """
    return {"": op}


@_faster.register
def _(op: g.Conv, before: Shape, after: Shape) -> dict[str, g.Kind]:
    return _as_linear_map(op, before, after) if _gains(op, before, after) else {"": op}


# Measured with 1 and 50 images: where XLA's slow form is taken, the linear map is 2.5 to 80 times
# faster with as many products; with 16 times as many (32 groups on 2×2) still 1.6 and 3.3 times.
_PRODUCTS = 16
_BYTES = 1 << 26


def _gains(conv: g.Conv, before: Shape, after: Shape) -> bool:
    """Whether a CPU computes the linear map in less time than the convolution."""
    places, window = math.prod(before[:-1]), math.prod(conv.kernel.shape[:-2])
    weights = math.prod(before) * math.prod(after)
    products = math.prod(after[:-1]) * conv.kernel.size
    return (
        places < window
        and not is_depthwise(conv.kernel, conv.padding, conv.groups)
        and weights <= _PRODUCTS * products
        and weights * conv.kernel.dtype.itemsize <= _BYTES
    )


def _as_linear_map(conv: g.Conv, before: Shape, after: Shape) -> dict[str, g.Kind]:
    size = math.prod(before)
    matrix = jnp.asarray(_matrix(conv, before, after).reshape(size, -1))
    bias = conv.bias
    if bias is not None:
        bias = jnp.broadcast_to(bias, after).reshape(-1)
    return {"flat": g.Reshape((size,)), "product": g.Dense(matrix, bias), "": g.Reshape(after)}


def _matrix(conv: g.Conv, before: Shape, after: Shape) -> np.ndarray:
    """The weight between every input and every output, each with its position and channel.

    Made on the host: the convolution itself, run on a basis, would be the slow one.
    """
    kernel = np.asarray(conv.kernel)
    matrix = np.zeros((*before, *after), kernel.dtype)
    ins, outs = kernel.shape[-2], kernel.shape[-1] // conv.groups
    for to in np.ndindex(*after[:-1]):
        for tap in np.ndindex(*kernel.shape[:-2]):
            at = tuple(
                o * stride + k * dilation - low
                for o, stride, k, dilation, (low, _) in zip(
                    to, conv.strides, tap, conv.dilation, conv.padding, strict=True
                )
            )
            if not all(0 <= i < n for i, n in zip(at, before, strict=False)):
                continue
            for group in range(conv.groups):
                seen = slice(group * ins, (group + 1) * ins)
                made = slice(group * outs, (group + 1) * outs)
                matrix[(*at, seen, *to, made)] = kernel[(*tap, slice(None), made)]
    return matrix
