"""Data-normalisation (Eq. 5) by amplitude: every threshold becomes 1, every output stays."""

from dataclasses import replace
from typing import Any

import jax.numpy as jnp
import numpy as np

from tcl_jax import graph as g
from tcl_jax.errors import InputError
from tcl_jax.graph.nodes import free
from tcl_jax.graph.ops.base import Scales, Shape, by_channel, compact, equal

_ONE = np.ones(())


def normalise(graph: g.SpikingGraph) -> g.SpikingGraph:
    r"""Rescale weights so that all thresholds are 1.

    A spike of a neuron with threshold λ stands for an amplitude of λ.  Where it is made a spike of
    amplitude 1, the next weights take the factor up, and divide by the λ of the neurons that they
    feed,

    .. math:: W^l \leftarrow W^l \frac{\lambda^{l-1}}{\lambda^l}, \qquad
              b^l \leftarrow \frac{b^l}{\lambda^l} . \qquad (5)

    In a chain of layers that is all.  In general amplitudes spread from neurons forwards through
    pools, reshapes and concatenations, by channel where they differ, until weights take them up;
    and weights give the amplitude that the neurons behind them want, through whatever lies between.
    Where two amplitudes meet and no weights are there (the identity shortcut of a residual block),
    a scale λ_in/λ_out is put in.

    Args:
        graph: all thresholds finite (see `tcl_jax.conversion.with_norms`).

    Returns:
        A graph with the same logits, and the same spikes up to rounding.

    Raises:
        InputError: a threshold is not finite and above 0.

    >>> import jax, jax.numpy as jnp
    >>> from tcl_jax import clip
    >>> from tcl_jax.conversion import normalise, trace, with_norms
    >>> def network(x):
    ...     return clip(jax.nn.relu(x @ jnp.eye(2)), 4.0) @ jnp.eye(2)
    >>> graph = with_norms(trace(network, jnp.zeros((1, 2))), {"output": 8.0})
    >>> first, second = (n.op for n in normalise(graph).nodes if hasattr(n.op, "kernel"))
    >>> first.kernel[0, 0].item(), second.kernel[0, 0].item()  # 1/4 and 4/8
    (0.25, 0.5)
    """
    for spiking in graph.spiking:
        threshold = np.asarray(spiking.op.threshold)
        if not (np.isfinite(threshold).all() and (threshold > 0).all()):
            raise InputError(
                f"neurons {spiking.name!r} have threshold {threshold.min()}, which must be finite "
                "and above 0: a ReLU without clip needs norm-factors from data (--norm max or "
                "--norm percentile:99.9)"
            )
    shapes = list(g.shapes(graph).values())
    wanted = _wanted(graph, shapes)
    names = {node.name for node in graph.nodes}
    amplitude: list[Scales] = []
    nodes: list[g.Node[g.Kind]] = []
    now: list[int] = []  # of every node of the graph, its number among the new ones
    for number, node in enumerate(graph.nodes):
        arriving = [amplitude[i] for i in node.inputs]
        before = [shapes[i] for i in node.inputs]
        own = wanted.get(number)
        if own is None:
            own = _spread(node.op, arriving, before)
        amplitude.append(own)
        needs = _needs(node.op, own, arriving, before, shapes[number])
        inputs = []
        for i, got, need in zip(node.inputs, arriving, needs, strict=True):
            inputs.append(now[i])
            if not equal(got, need):
                name = free(f"{graph.nodes[i].name}->{node.name}", names)
                names.add(name)
                factor = jnp.asarray(compact(got / need), graph.dtype)
                scale = g.Scale(factor, jnp.zeros((), graph.dtype))
                nodes.append(g.Node(scale, (now[i],), name))
                inputs[-1] = len(nodes) - 1
        now.append(len(nodes))
        rescaled = _rescaled(node.op, own, needs, graph.dtype)
        nodes.append(g.Node(rescaled, tuple(inputs), node.name))
    return g.SpikingGraph(tuple(nodes))


def _wanted(graph: g.SpikingGraph, shapes: list[Shape]) -> dict[int, Scales]:
    """Amplitudes that are given, and those that weights can produce for whoever reads them."""
    able: list[bool] = []  # whether weights before it can give a value any amplitude
    for node in graph.nodes:
        able.append(
            isinstance(node.op, g.Conv | g.Dense)
            or (not isinstance(node.op, g.Neuron) and any(able[i] for i in node.inputs))
        )
    wanted: dict[int, Scales] = {}
    for number, node in reversed(list(enumerate(graph.nodes))):
        if isinstance(node.op, g.Neuron | g.Output):
            wanted[number] = np.asarray(node.op.threshold, np.float64)
        elif isinstance(node.op, g.Input):
            wanted[number] = _ONE
        own = wanted.get(number)
        if own is None or isinstance(node.op, g.Conv | g.Dense):
            continue
        before = [shapes[i] for i in node.inputs]
        if not _takes(node.op, own, before[0] if before else ()):
            del wanted[number]
            continue
        needs = _needs(node.op, own, [], before, shapes[number])
        for i, need in zip(node.inputs, needs, strict=True):
            if able[i]:
                wanted.setdefault(i, need)
    for number, node in enumerate(graph.nodes):
        if isinstance(node.op, g.Conv | g.Dense) and not by_channel(wanted.get(number, _ONE)):
            del wanted[number]
    return wanted


def _takes(node: g.Kind, own: Scales, shape: Shape) -> bool:
    """Whether a node whose input has this shape can be in this amplitude.

    Windows, and what is padded or cut, know nothing of positions: the amplitude must not either.
    """
    match node:
        case g.Pool():
            touched = [w > 1 for w in node.window]
        case g.Pad():
            touched = [any(p) for p in node.padding]
        case g.Slice():
            parts = zip(node.start, node.stop, node.strides, shape, strict=True)
            touched = [part[:3] != (0, part[3], 1) for part in parts]
        case (
            g.Input() | g.Neuron() | g.Output() | g.Scale() | g.Sum() | g.Reshape() | g.Transpose()
        ):
            return True
        case g.Add() | g.Concat():
            return True
        case _:
            raise g.unknown(node)
    sizes = compact(own).shape[::-1]  # aligned at the last axis, as in broadcasting
    return all(s == 1 for s, t in zip(sizes, touched[::-1], strict=False) if t)


def _spread(node: g.Kind, arriving: list[Scales], shapes: list[Shape]) -> Scales:
    """The amplitude of a value for which nobody wants one: that of what it is made of."""
    if all(not compact(a).ndim for a in arriving):
        first = compact(arriving[0])
        if isinstance(node, g.Conv | g.Dense):
            return _ONE
        if not isinstance(node, g.Concat) or all(equal(a, first) for a in arriving):
            return first
    full = [np.broadcast_to(a, shape) for a, shape in zip(arriving, shapes, strict=True)]
    match node:
        case g.Conv() | g.Dense():
            return _ONE
        case g.Scale() | g.Add():
            return arriving[0]
        case g.Pool() | g.Pad() | g.Slice():
            takes = _takes(node, arriving[0], shapes[0])
            return compact(arriving[0]) if takes else _ONE
        case g.Sum():
            kept = full[0].max(node.axes, keepdims=True)
            return compact(np.squeeze(kept, node.axes))
        case g.Reshape():
            return compact(full[0].reshape(node.shape))
        case g.Transpose():
            return compact(full[0].transpose(node.axes))
        case g.Concat():
            return compact(np.concatenate(full, node.axis))
    raise g.unknown(node)


def _needs(
    node: g.Kind,
    own: Scales,
    arriving: list[Scales],
    before: list[Shape],
    after: Shape,
) -> list[Scales]:
    """The amplitude of every input of a node that is itself in amplitude `own`."""
    match node:
        case g.Conv() | g.Dense():
            return [a if by_channel(a) else _ONE for a in arriving]
        case g.Input():
            return []
        case g.Scale() | g.Pool() | g.Add() | g.Pad() | g.Slice() | g.Neuron() | g.Output():
            return [own] * len(before)
        case g.Reshape() | g.Transpose() | g.Sum() | g.Concat() if not own.ndim:
            return [own] * len(before)
        case g.Reshape():
            return [compact(np.broadcast_to(own, node.shape).reshape(before[0]))]
        case g.Transpose():
            return [np.broadcast_to(own, after).transpose(np.argsort(node.axes))]
        case g.Sum():
            return [np.expand_dims(np.broadcast_to(own, after), node.axes)]
        case g.Concat():
            edges = np.cumsum([shape[node.axis] for shape in before])[:-1]
            parts = np.split(np.broadcast_to(own, after), edges, node.axis)
            return [compact(part) for part in parts]
    raise g.unknown(node)


def _rescaled(node: g.Kind, own: Scales, arriving: list[Scales], dtype: Any) -> g.Kind:
    """The node whose inputs come in these amplitudes and whose value is in its own."""

    def rounded(value: Scales) -> jnp.ndarray:
        return jnp.asarray(value, dtype)

    match node:
        case g.Conv() | g.Dense():
            before, after = (compact(a).reshape(-1) for a in (arriving[0], own))
            kernel = np.asarray(node.kernel, np.float64)
            if isinstance(node, g.Conv) and before.size > 1 and node.groups > 1:
                # Kernels of group k read the k-th part of the input's channels.
                parts = before.reshape(node.groups, 1, -1)
                kernel = kernel.reshape(*kernel.shape[:-1], node.groups, -1)
                kernel = kernel * parts.transpose(2, 0, 1)
                kernel = kernel.reshape(node.kernel.shape)
            else:
                kernel = kernel * before[:, None]
            bias = None if node.bias is None else rounded(np.asarray(node.bias) / after)
            return replace(node, kernel=rounded(kernel / after), bias=bias)
        case g.Scale():
            return replace(node, shift=rounded(np.asarray(node.shift, np.float64) / own))
        case g.Neuron():
            return replace(node, threshold=jnp.ones_like(node.threshold))
        case g.Output():
            scale = np.asarray(node.scale, np.float64) * own
            return replace(node, threshold=jnp.ones_like(node.threshold), scale=rounded(scale))
        case g.Input() | g.Pool() | g.Sum() | g.Reshape() | g.Transpose():
            return node
        case g.Add() | g.Concat() | g.Pad() | g.Slice():
            return node
    raise g.unknown(node)
