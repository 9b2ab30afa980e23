"""What a graph computes as an analog network, and what stays constant when it spikes."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Real

from tcl_jax.errors import InputError
from tcl_jax.graph.convolution import PRECISION
from tcl_jax.graph.graph import Graph, walk
from tcl_jax.graph.nodes import Kind, Node, Output, Population
from tcl_jax.graph.ops.base import Op
from tcl_jax.promotion import against, alike, wider

Observer = Callable[[str, Array], None]


def evaluate(
    graph: Graph, x: Real[Array, "b ..."], observe: Observer | None = None
) -> Float[Array, "b ..."]:
    """The graph as an analog network, with the clips that this was trained with: its logits.

    Whatever thresholds the neurons have: norm-factors change what spikes can carry, not this.  Of a
    network of whole numbers, images and weights are what they were rounded to, and activations are
    not rounded.

    Args:
        graph: folded or not, normalised or not.
        x: a batch of inputs.
        observe: called with every population's name and activation, of which its `unit` says what 1
            stands for, and with the output's name and the logits.

    Returns:
        The logits.

    Raises:
        InputError: the images have another shape than the graph takes.

    >>> import jax, jax.numpy as jnp
    >>> from tcl_jax import clip
    >>> from tcl_jax.conversion import evaluate, trace
    >>> graph = trace(lambda x: clip(jax.nn.relu(x), 2.0) * 10.0, jnp.zeros((1, 3)))
    >>> evaluate(graph, jnp.array([[-1.0, 1.0, 5.0]])).tolist()
    [[0.0, 10.0, 20.0]]
    """
    x = images(graph, x)
    return _logits(graph, x) if observe is None else _walk(graph, x, observe)


def _walk(graph: Graph, x: Array, observe: Observer) -> Array:
    whole = jnp.issubdtype(graph.dtype, jnp.integer)
    if whole:
        graph = jax.tree.map(lambda a: a.astype(x.dtype), graph)

    def carried_out(node: Node[Op], *values: Array) -> Array:
        value = node.op.apply(*values)
        return value.astype(x.dtype) if whole else value

    def clipped(node: Node[Population | Output], z: Array) -> Array:
        if isinstance(node.op, Output):
            z, unit = alike(z, node.op.unit)
            value = z * unit
        else:
            if whole:  # the current is in other units than the spikes, of which θ makes one
                z = z / against(node.op.threshold, z)
            value = jnp.minimum(*alike(jnp.maximum(z, 0), against(node.op.clip, z)))
        observe(node.name, value)
        return value

    values = walk(graph, {graph.input.name: x}, carried_out, clipped)
    return values[graph.output.name]


@jax.jit
def _logits(graph: Graph, x: Array) -> Array:
    return _walk(graph, x, lambda name, activation: None)


def limit(graph: Graph) -> Graph:
    """The analog network that spike rates tend to as T grows: its clips are the thresholds.

    With λ of TCL it is the network itself.  Where norm-factors are smaller than activations, as
    percentiles are, it has what they clip, and nothing else of what spiking changes.

    >>> import jax, jax.numpy as jnp
    >>> from tcl_jax.conversion import evaluate, trace, with_norms
    >>> from tcl_jax.graph import limit
    >>> graph = trace(lambda x: jax.nn.relu(x) * 10.0, jnp.zeros((1, 2)))
    >>> graph = with_norms(graph, {graph.neurons[0].name: 2.0})
    >>> x = jnp.array([[1.0, 5.0]])
    >>> evaluate(graph, x).tolist(), evaluate(limit(graph), x).tolist()
    ([[10.0, 50.0]], [[10.0, 20.0]])
    """

    def clipped(node: Node[Kind]) -> Node[Kind]:
        if isinstance(node.op, Population):
            return replace(node, op=replace(node.op, clip=node.op.threshold))
        return node

    return Graph(tuple(map(clipped, graph.nodes)))


def constant_values(graph: Graph, x: Real[Array, "b ..."]) -> dict[str, Real[Array, "b ..."]]:
    """Values of the nodes that no neuron precedes: constant over time where the images are.

    Args:
        graph: any.
        x: images.

    Raises:
        InputError: the images have another shape than the graph takes.
    """

    def carried_out(node: Node[Op], *values: Array | None) -> Array | None:
        known = [v for v in values if v is not None]
        return node.op.apply(*known) if len(known) == len(values) else None

    start: dict[str, Array | None] = {graph.input.name: images(graph, x)}
    found = walk(graph, start, carried_out, lambda node, z: None)
    return {name: value for name, value in found.items() if value is not None}


def precision(graph: Graph) -> dict[str, str]:
    """What its products are computed in, to be written beside figures.

    >>> import jax.numpy as jnp
    >>> from tcl_jax.conversion import trace
    >>> from tcl_jax.graph import precision
    >>> precision(trace(lambda x: x @ jnp.eye(2), jnp.zeros((1, 2))))
    {'dtype': 'float32', 'matmul_precision': 'highest'}
    """
    return {"dtype": str(graph.dtype), "matmul_precision": PRECISION}


def images(graph: Graph, x: Real[Array | np.ndarray, "b ..."]) -> Real[Array, "b ..."]:
    """A batch in the type that the graph computes in.

    Raises:
        InputError: it is no array, or does not have the shape that the graph takes.
    """
    check_batch(x)
    if tuple(x.shape[1:]) != graph.input.op.shape:
        raise InputError(
            f"the network takes images of shape {graph.input.op.shape}, got {tuple(x.shape[1:])} "
            f"(a batch of shape {tuple(x.shape)})"
        )
    # A graph of whole numbers rounds the images itself.
    return jnp.asarray(x, wider(graph.dtype, jnp.float32))


def check_batch(x: Any) -> None:
    """Raises InputError where something is no array of images."""
    if not hasattr(x, "shape") or not hasattr(x, "dtype"):
        advice = {
            "tuple": "give the images alone, without labels",
            "dict": 'give the images alone, as batch["image"]',
            "list": "give one array, as jnp.stack(images)",
        }.get(type(x).__name__, "give a NumPy or JAX array")
        raise InputError(f"a batch must be an array of images, got a {type(x).__name__}: {advice}")
    if not len(x.shape):
        raise InputError("a batch must be an array of images, got a single number")
    if not (jnp.issubdtype(x.dtype, jnp.integer) or jnp.issubdtype(x.dtype, jnp.floating)):
        raise InputError(f"images must be numbers, got an array of {x.dtype}")
