"""A network as conversion sees it, without converting it."""

from collections.abc import Callable
from typing import Any

import numpy as np
from jaxtyping import Array
from rich.console import Console
from rich.table import Table

from tcl_jax.conversion import cost
from tcl_jax.conversion import graph as g
from tcl_jax.conversion.fold import fold
from tcl_jax.conversion.trace import trace


def explain(fn: Callable[[Any, Array], Array], variables: Any, sample_input: Any) -> None:
    """Print the spiking graph that a function would become: traced, batch norm folded.

    For each node its shape (without the batch), the numbers that it holds, for neurons their number
    and λ ("–" for a ReLU without clip, whose norm-factor would come from data), and the
    multiply-accumulates of one image.

    Args:
        fn: ``variables, inputs -> logits`` in inference mode.
        variables: its parameters and statistics.
        sample_input: a batch of inputs, or anything with its shape and dtype.

    Raises:
        UnsupportedOperation: `fn` does something that spikes cannot; all of it is listed.

    >>> import jax, jax.numpy as jnp
    >>> from tcl_jax import clip, explain
    >>> def network(w, x):
    ...     return clip(jax.nn.relu(x @ w), 2.0) @ w
    >>> explain(network, jnp.eye(2), jnp.zeros((1, 2)))  # doctest: +NORMALIZE_WHITESPACE
    node       kind    reads    shape  parameters  λ  MACs
    input      Input                2
    dense      Dense   input        2           4        4
    neuron     Neuron  dense        2              2
    dense_2    Dense   neuron       2           4        4
    output     Output  dense_2      2
    2 neurons                                   8        8
    """
    graph = fold(trace(lambda x: fn(variables, x), sample_input))
    shapes = g.shapes(graph)
    table = Table(
        box=None, show_footer=True, pad_edge=False, header_style="bold", footer_style="bold"
    )
    neurons = sum(int(np.prod(shapes[n.name])) for n in graph.neurons)
    parameters = sum(map(cost.parameters, graph.nodes))
    macs = sum(cost.macs(n, shapes[n.name]) for n in graph.nodes)
    table.add_column("node", f"{neurons:,} neurons", overflow="fold")
    table.add_column("kind")
    table.add_column("reads", overflow="fold")
    table.add_column("shape", justify="right")
    table.add_column("parameters", f"{parameters:,}", justify="right")
    table.add_column("λ", justify="right")
    table.add_column("MACs", f"{macs:,}", justify="right")
    for node in graph.nodes:
        table.add_row(
            node.name,
            type(node).__name__,
            ", ".join(node.inputs),
            "×".join(map(str, shapes[node.name])),
            _count(cost.parameters(node)),
            _threshold(node.threshold) if isinstance(node, g.Neuron) else "",
            _count(cost.macs(node, shapes[node.name])),
        )
    # A console of its own: it writes to wherever standard output goes now.
    Console(width=None if Console().is_terminal else 160).print(table)


def _count(number: int) -> str:
    return f"{number:,}" if number else ""


def _threshold(threshold: Array) -> str:
    values = np.asarray(threshold)
    if not np.isfinite(values).all():
        return "–"
    low, high = values.min(), values.max()
    return f"{low:.4g}" if low == high else f"{low:.4g}–{high:.4g}"
