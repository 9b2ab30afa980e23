"""Graphs written by hand, wired by name."""

from tcl_jax import graph as g

KINDS = {kind for kind in g.KINDS.values() if kind.__module__.startswith("tcl_jax.")}
"""Kinds of nodes, but for those that only tests know."""


def nodes(**steps):
    """Nodes by name, each what it does and the names of what it reads."""
    number = {name: index for index, name in enumerate(steps)}
    return tuple(
        g.Node(op, tuple(number.get(name, len(steps)) for name in reads), label)
        for label, (op, *reads) in steps.items()
    )


def graph(**steps):
    return g.Graph(nodes(**steps))


def changed(graph, node, op):
    """The graph in which a node does something else."""
    return g.Graph(tuple(g.Node(op, n.inputs, n.name) if n is node else n for n in graph.nodes))


def operations(graph, kind):
    """All that are of a kind."""
    return [n.op for n in graph.nodes if isinstance(n.op, kind)]
