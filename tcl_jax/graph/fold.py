"""Batch norm into weights (Eq. 7): a graph of the same outputs with fewer nodes."""

from collections import Counter
from dataclasses import replace
from typing import Any

import jax.numpy as jnp
import numpy as np

from tcl_jax import graph as g


def fold(graph: g.SpikingGraph) -> g.SpikingGraph:
    r"""Fold every per-channel scale and shift into the convolution or linear map before it.

    .. math:: W \leftarrow \frac{\gamma}{\sigma} W, \qquad
              b \leftarrow \frac{\gamma}{\sigma} (b - \mu) + \beta  \qquad (7)

    found in the graph and not by the names of layers.  A constant factor after a sum (the division
    of an average) becomes the pool's own.  A scale that has nothing to go into, or whose value
    differs between positions, stays as it is.

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
    folded: dict[str, g.Node] = {}
    renamed: dict[str, str] = {}
    for node in graph.nodes:
        node = replace(node, inputs=tuple(renamed.get(i, i) for i in node.inputs))
        merged = None
        if isinstance(node, g.Scale):
            host = _host(node, folded, readers)
            merged = host and _merge(host, node, graph.dtype)
        if merged is None:
            folded[node.name] = node
        else:
            folded[merged.name] = merged
            renamed[node.name] = node.inputs[0]
            readers[node.inputs[0]] = readers[node.name]
    return g.SpikingGraph(tuple(folded.values()))


def _host(scale: g.Scale, nodes: dict[str, g.Node], readers: Counter[str]) -> g.Node | None:
    """The node that a scale may go into, past changes of layout if it is the same everywhere."""
    host = nodes[scale.inputs[0]]
    uniform = scale.scale.size == 1 and not np.any(np.asarray(scale.shift))
    # What others read too must keep its value.
    while readers[host.name] == 1 and uniform and isinstance(host, g.Reshape | g.Transpose):
        host = nodes[host.inputs[0]]
    return host if readers[host.name] == 1 else None


def _merge(before: g.Node, after: g.Scale, dtype: Any) -> g.Node | None:
    """One node that does what the two do, or None where there is no such node."""
    # In float64: products of three float32 numbers are then rounded once.
    scale, shift = (np.asarray(v, np.float64) for v in (after.scale, after.shift))
    match before:
        case g.Conv() | g.Dense():
            channels = before.kernel.shape[-1]
            if not (_per_channel(scale, channels) and _per_channel(shift, channels)):
                return None
            scale = np.broadcast_to(scale.reshape(-1), (channels,))
            shift = np.broadcast_to(shift.reshape(-1), (channels,))
            bias = (
                np.zeros(channels) if before.bias is None else np.asarray(before.bias, np.float64)
            )
            return replace(
                before,
                kernel=jnp.asarray(np.asarray(before.kernel, np.float64) * scale, dtype),
                bias=jnp.asarray(bias * scale + shift, dtype),
            )
        case g.Pool() | g.Sum():
            if scale.size != 1 or shift.any():
                return None
            factor = np.asarray(before.factor, np.float64) * scale.reshape(())
            return replace(before, factor=jnp.asarray(factor, dtype))
        case g.Scale():
            earlier_shift = np.asarray(before.shift, np.float64)
            return replace(
                before,
                scale=jnp.asarray(np.asarray(before.scale, np.float64) * scale, dtype),
                shift=jnp.asarray(earlier_shift * scale + shift, dtype),
            )
        case g.Input() | g.Quantise() | g.Neuron() | g.Output():
            return None
        case g.Reshape() | g.Transpose() | g.Add() | g.Concat() | g.Pad() | g.Slice():
            return None
    raise g.unknown(before)


def _per_channel(value: np.ndarray, channels: int) -> bool:
    return value.size == 1 or (value.shape[-1] == channels and value.size == channels)
