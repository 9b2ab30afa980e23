"""A network as conversion sees it, without converting it."""

from collections import Counter
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jaxtyping import Array
from rich.table import Table

from tcl_jax import graph as g
from tcl_jax.graph.fold import fold
from tcl_jax.progress import Console
from tcl_jax.report.names import shortened
from tcl_jax.simulation.lowering import chosen
from tcl_jax.tracing.trace import trace


def explain(fn: Callable[[Any, Array], Array], variables: Any, sample_input: Any) -> None:
    """Print the spiking graph that a function would become: traced, batch norm folded.

    For each node its name (without what all begin with), the nodes that it reads, its shape
    (without the batch), the number of its parameters, for neurons λ ("–" for a ReLU without clip,
    whose norm-factor would come from data), and the multiply-accumulates of one image.  Below, the
    forms in which `simulation.lower` has convolutions computed here, where these are others.

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
    >>> explain(network, jnp.ones((2, 2)), jnp.zeros((1, 2)))  # doctest: +NORMALIZE_WHITESPACE
    # node      kind       reads shape parameters λ MACs
    0 input     Input                2
    1 dense     Dense          0     2          4      4
    2 neuron    Population     1     2            2
    3 dense_2   Dense          2     2          4      4
    4 output    Output         3     2
      2 neurons                                 8      8
    """
    graph = fold(trace(lambda x: fn(variables, x), sample_input))
    shapes = g.shapes(graph)
    neurons = sum(int(np.prod(shapes[n.name])) for n in graph.neurons)
    costs = [_cost(node, shapes[node.name]) for node in graph.nodes]
    parameters, macs = (sum(of_each) for of_each in zip(*costs, strict=True))
    heading, names = shortened([node.name for node in graph.nodes], "node")
    table = Table(
        box=None,
        show_footer=True,
        pad_edge=False,
        collapse_padding=True,
        header_style="bold",
        footer_style="bold",
    )
    right: dict[str, Any] = {"justify": "right", "no_wrap": True}
    table.add_column("#", **right)
    table.add_column(heading, f"{neurons:,} neurons", overflow="fold")
    table.add_column("kind", no_wrap=True)
    table.add_column("reads", justify="right")
    table.add_column("shape", **right)
    table.add_column("parameters", f"{parameters:,}", **right)
    table.add_column("λ", **right)
    table.add_column("MACs", f"{macs:,}", **right)
    rows = zip(graph.nodes, names, costs, strict=True)
    for number, (node, name, (held, taken)) in enumerate(rows):
        table.add_row(
            str(number),
            name,
            type(node.op).__name__,
            ", ".join(map(str, node.inputs)),
            "×".join(map(str, shapes[node.name])),
            _count(held),
            _bound(node.op.clip) if isinstance(node.op, g.Population) else "",
            _count(taken),
        )
    console = Console()  # of its own: it writes to wherever standard output goes now
    console.print(table)
    kept = Counter(chosen(graph).values())
    if other := {form: n for form, n in kept.items() if form != "convolution"}:
        said = ", ".join(f"{n} as {form}" for form, n in sorted(other.items()))
        console.print(f"{said}: the fastest forms of convolutions on {jax.default_backend()}")


def _cost(node: g.Node[g.Kind], shape: tuple[int, ...]) -> tuple[int, int]:
    """Parameters and multiply-accumulates."""
    op = node.op
    return (op.parameters, op.macs(shape)) if isinstance(op, g.Op) else (0, 0)


def _count(number: int) -> str:
    return f"{number:,}" if number else ""


def _bound(clip: Array) -> str:
    values = np.asarray(clip)
    if not np.isfinite(values).all():
        return "–"
    low, high = values.min(), values.max()
    return f"{low:.4g}" if low == high else f"{low:.4g}–{high:.4g}"
