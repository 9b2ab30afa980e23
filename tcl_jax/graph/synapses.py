"""Types of weights: a network with its weights rounded to one, which is another function, slightly.

What is rounded is the weight of a synapse.  Biases, thresholds and what else there is one of for a
channel keep their digits, or in a network of whole numbers the 32 bits of its potentials.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Real

from tcl_jax.graph.graph import Graph
from tcl_jax.graph.nodes import Kind, Node
from tcl_jax.graph.ops.base import Affine
from tcl_jax.graph.quantise import quantise
from tcl_jax.registry import Registry

WEIGHTS: Registry[Callable[[Graph, Real[Array, "b ..."]], Graph]] = Registry("type of weights")
"""By name, what rounds them: given a normalised graph, and images of which the largest value is as
large as any."""


@WEIGHTS.register("float32")
def as_converted(graph: Graph, images: Real[Array, "b ..."]) -> Graph:
    """The same network."""
    return graph


@WEIGHTS.register("bfloat16")
def in_bfloat16(graph: Graph, images: Real[Array, "b ..."] | None = None) -> Graph:
    """With kernels in bfloat16, the nearest: 8 significant bits, half the memory.

    Computed as the network of those weights in float32.

    >>> import jax, jax.numpy as jnp
    >>> from tcl_jax.conversion import evaluate, trace
    >>> from tcl_jax.simulation import in_bfloat16
    >>> x = jnp.array([[1 + 2.0**-10]])
    >>> graph = in_bfloat16(trace(lambda x: x @ jnp.array([[1.001, 1.003]]), x))
    >>> (evaluate(graph, x) / x).tolist()
    [[1.0, 1.0]]
    """
    return stored(graph, jnp.bfloat16)


WEIGHTS.register("int8")(quantise)


def stored(graph: Graph, dtype: Any) -> Graph:
    """With kernels of this type of floating point, the nearest."""

    def weighted(node: Node[Kind]) -> Node[Kind]:
        op = node.op
        return replace(node, op=op.stored(dtype)) if isinstance(op, Affine) else node

    return Graph(tuple(map(weighted, graph.nodes)))
