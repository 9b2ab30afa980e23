"""From any JAX function to a spiking graph: an interpreter of its jaxpr.

Values that do not depend on the input are constants and are evaluated.  Values that do, the
signals, pass through affine primitives (`tcl_jax.conversion.rules`) until they meet an activation:
a ReLU, alone or clipped.  Everything else is refused, with the line of the user's own code.
"""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jaxtyping import Array

from tcl_jax.conversion import graph as g
from tcl_jax.conversion.rules import RULES, TAKES_REFUSED
from tcl_jax.conversion.tracer import Signal, Tracer
from tcl_jax.errors import InputError

# Any size but 1 tells the batch from axes of length one; a prime is unlikely to be another axis.
_BATCH = 7


class UnsupportedOperation(InputError):
    """The function holds operations that no spiking network with IF neurons can carry out."""


def trace(fn: Callable[[Array], Array], sample_input: Any) -> g.SpikingGraph:
    """The spiking graph of an inference function.

    Args:
        fn: maps a batch of inputs to logits, with its variables bound and in inference mode.
        sample_input: an input batch, or anything with its shape and dtype; only the shape after
            the batch axis matters.  The graph's arrays are float64 where it is, float32 otherwise.

    Returns:
        The graph, exactly as traced: not folded, thresholds λ (∞ for a ReLU without clip).

    Raises:
        UnsupportedOperation: an operation on the signal is not affine and no known activation.
            The message lists every one, with file and line.

    >>> import jax, jax.numpy as jnp
    >>> from tcl_jax import clip
    >>> from tcl_jax.conversion import trace
    >>> graph = trace(lambda x: clip(jax.nn.relu(x @ jnp.eye(3)), 2.0), jnp.zeros((1, 3)))
    >>> [type(node).__name__ for node in graph.nodes]
    ['Input', 'Dense', 'Neuron', 'Output']
    """
    shape = tuple(sample_input.shape[1:])
    closed = jax.make_jaxpr(fn)(jax.ShapeDtypeStruct((_BATCH, *shape), sample_input.dtype))
    dtype = np.float64 if sample_input.dtype == np.float64 else np.float32
    tracer = Tracer(closed.jaxpr, dtype, RULES, TAKES_REFUSED)
    tracer.nodes["input"] = g.Input("input", (), shape)
    outputs = tracer.run(
        closed.jaxpr, closed.consts, [Signal("input", tuple(range(len(shape) + 1)))]
    )
    if tracer.refusals:
        raise UnsupportedOperation(
            "cannot convert this network: " + "; ".join(dict.fromkeys(tracer.refusals))
        )
    if len(outputs) != 1 or not isinstance(outputs[0], Signal) or outputs[0].batch != 0:
        raise UnsupportedOperation(
            "cannot convert this function: it must return one array of logits, computed from its "
            "input, images first"
        )
    logits = tracer.arranged(outputs[0], tuple(range(len(outputs[0].axes))))
    one, infinite = tracer.array(1.0), tracer.array(np.inf)
    tracer.nodes["output"] = g.Output("output", (logits.node,), infinite, one)
    return g.SpikingGraph(_reachable(list(tracer.nodes.values())))


def _reachable(nodes: list[g.Node]) -> tuple[g.Node, ...]:
    """Those that the output depends on, in order; the input always."""
    needed = {nodes[-1].name, "input"}
    for node in reversed(nodes):
        if node.name in needed:
            needed.update(node.inputs)
    return tuple(n for n in nodes if n.name in needed)
