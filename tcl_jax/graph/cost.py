"""What a node costs: its numbers, and its multiply-accumulates for one image."""

import math
from dataclasses import fields

import jax

from tcl_jax import graph as g


def parameters(node: g.Node) -> int:
    """Numbers that a node holds; thresholds are its neurons', not weights.

    >>> import jax.numpy as jnp
    >>> from tcl_jax.conversion import trace
    >>> from tcl_jax.graph import cost
    >>> dense = trace(lambda x: x @ jnp.ones((3, 4)), jnp.zeros((1, 3))).nodes[1]
    >>> cost.parameters(dense)
    12
    """
    if isinstance(node, g.Neuron | g.Output | g.Pool | g.Sum):
        return 0
    values = (getattr(node, f.name) for f in fields(node))
    return sum(v.size for v in values if isinstance(v, jax.Array))


def macs(node: g.Node, shape: tuple[int, ...]) -> int:
    """Multiply-accumulates of one image through a node, as networks are usually measured.

    Convolutions and linear maps alone count; what falls on a convolution's padding counts too.

    Args:
        node: any.
        shape: of its value, without the batch.

    >>> import jax.numpy as jnp
    >>> from tcl_jax.conversion import trace
    >>> from tcl_jax.graph import cost
    >>> dense = trace(lambda x: x @ jnp.ones((3, 4)), jnp.zeros((1, 5, 3))).nodes[1]
    >>> cost.macs(dense, (5, 4))
    60
    """
    match node:
        case g.Conv() | g.Dense():
            # Every output is a sum over the kernel's inputs: all its axes but the last.
            return math.prod(shape) * math.prod(node.kernel.shape[:-1])
        case g.Input() | g.Quantise() | g.Scale() | g.Pool() | g.Sum() | g.Neuron() | g.Output():
            return 0
        case g.Reshape() | g.Transpose() | g.Add() | g.Concat() | g.Pad() | g.Slice():
            return 0
    raise g.unknown(node)
