"""Data-normalisation (Eq. 5) by amplitude: every threshold becomes 1, every output stays."""

from dataclasses import replace

import jax.numpy as jnp
import numpy as np

from tcl_jax.conversion import graph as g
from tcl_jax.errors import InputError

_ONE = np.ones(())


def normalise(graph: g.SpikingGraph) -> g.SpikingGraph:
    r"""Rescale weights so that all thresholds are 1.

    A spike of a neuron with threshold λ stands for an amplitude of λ.  Where it is made a spike of
    amplitude 1, the next weights take the factor up, and divide by the λ of the neurons that they
    feed,

    .. math:: W^l \leftarrow W^l \frac{\lambda^{l-1}}{\lambda^l}, \qquad
              b^l \leftarrow \frac{b^l}{\lambda^l} . \qquad (5)

    In a chain of layers that is all.  In general every value between two neurons is given the
    amplitude of the neurons that read it, from the output backwards through pools, reshapes and
    additions; wherever a neuron's own amplitude differs from what is wanted of it and no weights
    are there to take up the difference (the identity shortcut of a residual block), a scale
    λ_in/λ_out is put in.

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
    >>> first, second = (node for node in normalise(graph).nodes if hasattr(node, "kernel"))
    >>> first.kernel[0, 0].item(), second.kernel[0, 0].item()  # 1/4 and 4/8
    (0.25, 0.5)
    """
    for spiking in graph.spiking:
        threshold = np.asarray(spiking.threshold)
        if not (np.isfinite(threshold).all() and (threshold > 0).all()):
            raise InputError(
                f"neurons {spiking.name!r} have threshold {threshold.min()}, which must be finite "
                "and above 0: a ReLU without clip needs norm-factors from data (--norm max or "
                "--norm percentile:99.9)"
            )
    shapes = g.shapes(graph)
    wanted = _wanted(graph, shapes)
    nodes: list[g.Node] = []
    for node in graph.nodes:
        needs = _needs(node, wanted[node.name], shapes)
        inputs = []
        for name, need in zip(node.inputs, needs, strict=True):
            if need is None or _equal(wanted[name], need):
                inputs.append(name)
                continue
            adapter = f"{name}->{node.name}"
            inputs.append(adapter)
            if adapter in (n.name for n in nodes[-1:]):  # x + x reads one adapter twice
                continue
            factor = _compact(wanted[name] / need)
            nodes.append(g.Scale(adapter, (name,), _float32(factor), jnp.zeros((), jnp.float32)))
        arriving = [wanted[name] for name in node.inputs]
        nodes.append(replace(_rescaled(node, wanted[node.name], arriving), inputs=tuple(inputs)))
    return g.SpikingGraph(tuple(nodes))


def _wanted(graph: g.SpikingGraph, shapes: dict[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
    """Amplitude in whose units each node's value will be: that of the first reader."""
    wanted: dict[str, np.ndarray] = {}
    for node in reversed(graph.nodes):
        if isinstance(node, g.Neuron | g.Output):
            wanted[node.name] = np.asarray(node.threshold, np.float64)
        elif isinstance(node, g.Input):
            wanted[node.name] = _ONE
        own = wanted.setdefault(node.name, _ONE)
        for name, need in zip(node.inputs, _needs(node, own, shapes), strict=True):
            if need is not None:
                wanted.setdefault(name, need)
    return wanted


def _needs(
    node: g.Node, own: np.ndarray, shapes: dict[str, tuple[int, ...]]
) -> list[np.ndarray | None]:
    """Amplitude that a node needs of each input; None where its weights take up any."""
    match node:
        case g.Conv() | g.Dense():
            return [None]
        case g.Pool() if not _constant_over_windows(own, node.window):
            raise InputError(
                f"the norm-factors after the pool {node.name!r} differ between positions of a map, "
                "which a pool cannot take up: give one a layer or a channel"
            )
        case g.Reshape() if own.ndim:
            return [_compact(np.broadcast_to(own, node.shape).reshape(shapes[node.inputs[0]]))]
        case g.Transpose() if own.ndim:
            return [np.broadcast_to(own, shapes[node.name]).transpose(np.argsort(node.axes))]
        case g.Sum() if own.ndim:
            return [np.expand_dims(np.broadcast_to(own, shapes[node.name]), node.axes)]
    return [own] * len(node.inputs)


def _rescaled(node: g.Node, own: np.ndarray, arriving: list[np.ndarray]) -> g.Node:
    match node:
        case g.Conv() | g.Dense():
            before = _per_channel(arriving[0], node)
            after = _per_channel(own, node)
            kernel = np.asarray(node.kernel, np.float64)
            if isinstance(node, g.Conv) and before.ndim and node.groups > 1:
                # Kernels of group k read the k-th part of the input's channels.
                parts = before.reshape(node.groups, 1, -1)
                kernel = kernel.reshape(*kernel.shape[:-1], node.groups, -1)
                kernel = kernel * parts.transpose(2, 0, 1)
                kernel = kernel.reshape(node.kernel.shape)
            else:
                kernel = kernel * (before[:, None] if before.ndim else before)
            bias = None if node.bias is None else _float32(np.asarray(node.bias) / after)
            return replace(node, kernel=_float32(kernel / after), bias=bias)
        case g.Scale():
            return replace(node, shift=_float32(np.asarray(node.shift, np.float64) / own))
        case g.Neuron():
            return replace(node, threshold=jnp.ones_like(node.threshold))
        case g.Output():
            scale = np.asarray(node.scale, np.float64) * own
            return replace(node, threshold=jnp.ones_like(node.threshold), scale=_float32(scale))
    return node


def _constant_over_windows(amplitude: np.ndarray, window: tuple[int, ...]) -> bool:
    # Aligned at the last axis, as in broadcasting.
    sizes = _compact(amplitude).shape[::-1]
    return all(size == 1 for size, width in zip(sizes, window[::-1], strict=False) if width > 1)


def _per_channel(amplitude: np.ndarray, node: g.Conv | g.Dense) -> np.ndarray:
    """An amplitude as a scalar or a vector over the last axis."""
    amplitude = _compact(amplitude)
    if amplitude.ndim and amplitude.size != amplitude.shape[-1]:
        raise InputError(
            f"the norm-factors around {node.name!r} differ between positions of a map, which "
            "a convolution cannot take up: give one a layer or a channel"
        )
    return amplitude.reshape(-1) if amplitude.ndim else amplitude


def _compact(amplitude: np.ndarray) -> np.ndarray:
    """The same amplitude with axes over which it is constant reduced to one."""
    for axis in range(amplitude.ndim):
        first = amplitude.take([0], axis)
        if (amplitude == first).all():
            amplitude = first
    return amplitude.reshape(()) if amplitude.size == 1 else amplitude


def _equal(a: np.ndarray, b: np.ndarray) -> bool:
    return bool(np.all(np.equal(*np.broadcast_arrays(_compact(a), _compact(b)))))


def _float32(value: np.ndarray) -> jnp.ndarray:
    return jnp.asarray(value, jnp.float32)
