"""Data-normalisation (Eq. 5): every threshold becomes 1, every output stays."""

import numpy as np

from tcl_jax import graph as g
from tcl_jax.errors import InputError
from tcl_jax.graph.ops.base import Scales, equal, wide
from tcl_jax.graph.scales import scaled, settle


def normalise(graph: g.Graph) -> g.Graph:
    r"""Rescale weights so that all thresholds are 1.

    A spike of a neuron with threshold λ stands for an amplitude of λ.  Where it is made a spike of
    amplitude 1, the next weights take the factor up, and divide by the λ of the neurons that they
    feed,

    .. math:: W^l \leftarrow W^l \frac{\lambda^{l-1}}{\lambda^l}, \qquad
              b^l \leftarrow \frac{b^l}{\lambda^l} . \qquad (5)

    In a chain of layers that is all.  In general a scale of λ is put behind all neurons, and one of
    1/λ before them, and those move as the one of a batch norm does (`fold`): through pools,
    reshapes and concatenations, by channel where they differ, until weights take them up.  Where
    there are none (the identity shortcut of a residual block), a scale λ_in/λ_out stays.

    Args:
        graph: all thresholds finite (see `tcl_jax.conversion.with_norms`).

    Returns:
        A graph with the same logits, and the same spikes up to rounding, whose populations say in
        `unit` what a spike stands for: λ.

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
                'and above 0: a ReLU without clip needs norm-factors from data (norm="max" or '
                'norm="percentile:99.9")'
            )
    shapes = dict(g.shapes(graph))
    nodes: list[g.Node[g.Kind]] = []
    now: list[int] = []  # of every node of the graph, its number among the new ones
    for node in graph.nodes:
        inputs = []
        for i in node.inputs:
            source = graph.nodes[i]
            factor = _amplitude(source.op) / _threshold(node.op)
            inputs.append(now[i])
            if not equal(factor, np.ones(())):
                name = g.free(f"{source.name}->{node.name}", shapes)
                shapes[name] = shapes[source.name]
                inputs[-1] = len(nodes)
                nodes.append(scaled(now[i], factor, name))
        now.append(len(nodes))
        op = node.op
        if isinstance(op, g.Population | g.Output):
            op = op.in_units_of(_threshold(op))
        nodes.append(g.Node(op, tuple(inputs), node.name))
    return settle(nodes, shapes, graph.dtype)


def _threshold(op: g.Kind) -> Scales:
    found: Scales = wide(op.threshold if isinstance(op, g.Population | g.Output) else 1)
    return found


def _amplitude(op: g.Kind) -> Scales:
    """Of what the spikes of neurons, all of size 1, stand for."""
    found: Scales = wide(op.threshold if isinstance(op, g.Population) else 1)
    return found
