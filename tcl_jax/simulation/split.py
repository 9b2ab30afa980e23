"""Products of bfloat16 that are exact: of spikes, with float32 weights in three parts.

A TPU's matrix units multiply numbers of bfloat16, of 8 significant bits, and sum in float32.  A
product of float32 takes six such, of three parts of either factor.  What is a few spikes is a
number of 8 bits itself, and only the weights, of 24, have parts:

.. math:: W = W_1 + W_2 + W_3, \\qquad x W = x W_1 + x W_2 + x W_3

without an error but that of sums in float32; of weights that are bfloat16 there is one part.

Weights that only one place of an image has are waited for rather than multiplied, unless very many
images share them, and three parts are half as much again: these stay whole.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from tcl_jax import graph as g
from tcl_jax.graph.counts import multiples
from tcl_jax.graph.ops.base import Op
from tcl_jax.graph.ops.weights import Weighted
from tcl_jax.pytrees import pytree
from tcl_jax.simulation.neurons import NeuronModel

PLATFORMS = ("tpu",)
"""Where such products are as exact as they are here: their sums are those of float32."""
_BITS = 8
_PARTS = 3


@pytree("parts")
@dataclass(frozen=True)
class Split(Op):
    """Weighted sums of values that bfloat16 holds.

    Attributes:
        parts: the same operation with parts of the weights, the largest first, which has the bias.
    """

    parts: tuple[Weighted, ...]

    def apply(self, *values: Array) -> Array:
        (x,) = values
        terms = [part.apply(x.astype(jnp.bfloat16)) for part in reversed(self.parts)]
        return sum(terms[1:], terms[0])


def split(graph: g.Graph, neurons: NeuronModel) -> g.Graph:
    """The same graph, with products of bfloat16 where they are exact.

    Args:
        graph: of floating point.
        neurons: what hidden neurons are: how many spikes they fire in a step.
    """
    if neurons.spikes_a_step is None:
        return graph
    sizes = g.shapes(graph)
    held = {n for n, of in multiples(graph, neurons.spikes_a_step).items() if of.in_bits(_BITS)}

    def in_parts(node: g.Node[g.Kind]) -> g.Node[g.Kind]:
        op = node.op
        if not isinstance(op, Weighted) or graph.nodes[node.inputs[0]].name not in held:
            return node
        kernels = list(_parts(np.asarray(op.kernel)))
        places = math.prod(sizes[node.name][:-1])
        if len(kernels) > _PARTS or places == 1 < len(kernels):
            return node
        first, *others = (replace(op, kernel=jnp.asarray(kernel)) for kernel in kernels)
        return replace(node, op=Split((first, *(replace(part, bias=None) for part in others))))

    return g.Graph(tuple(map(in_parts, graph.nodes)))


def _parts(kernel: np.ndarray) -> Iterator[np.ndarray]:
    """Of bfloat16, each the nearest to what those before leave; together they are the kernel."""
    rest = kernel.astype(np.float64)
    for _ in range(_PARTS + 1):
        part = rest.astype(jnp.bfloat16)
        yield part
        rest = rest - part.astype(np.float64)
        if not rest.any():
            return
