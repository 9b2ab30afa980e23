"""A graph checks itself when made, and no reading takes an unknown node for something else."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import wiring

from tcl_jax import InputError, clip, convert
from tcl_jax import graph as g
from tcl_jax.conversion import evaluate, fold, normalise
from tcl_jax.graph import quantise as integer
from tcl_jax.graph.ops.base import leaves
from tcl_jax.simulation import fan_outs

ONE = jnp.ones(())
W = jnp.asarray([[0.5, -0.25], [0.25, 0.75]])
X = jnp.asarray([[1.0, 0.5], [0.25, 2.0], [0.5, 0.5]])


def small(w, x):
    return clip(jax.nn.relu(x @ w), 2.0) @ w


def dense(*shape):
    return g.Dense(jnp.ones(shape or (2, 2)), None)


IN, OUT = g.Input((2,)), g.Output(ONE, ONE)
START, END = {"x": (IN,)}, {"y": (OUT, "a")}


def between(*a, end=OUT):
    """The input, one node, and the output that reads it."""
    return wiring.nodes(x=(IN,), a=a, y=(end, "a"))


@pytest.mark.parametrize(
    "given, says",
    [
        (2 * between(dense(), "x"), "two nodes are named 'x'"),
        (wiring.nodes(**START, **END, a=(dense(), "x")), "'y' reads node 2, which does not come"),
        (between(dense(), "a"), "'a' reads node 1, which does not come before it"),
        (between(dense(), "nobody"), "'a' reads node 3, which does not come before it"),
        ((g.Node(dense(), (-1,), "a"),), "'a' reads node -1, which does not come before it"),
        (
            wiring.nodes(**START, a=(dense(), "x"), **END, b=(dense(), "a")),
            "the output must be the last node",
        ),
        (wiring.nodes(**START, a=(dense(), "x")), "has one output, got 0"),
        (wiring.nodes(**START, a=(dense(), "x"), **END, z=(OUT, "a")), "one output"),
        (between(IN), "has one input, got 2"),
        ((), "has one input, got 0"),
        (between(g.Add(), "x"), "'a' reads 1 values, and must read 2"),
        (between(g.Concat(0)), "'a' reads 0 values, and must read 1"),
        (between(g.Population.clipped(ONE), "x", "x"), "'a' reads 2 values, and must read 1"),
        (between(g.Population.clipped(jnp.ones(3)), "x"), r"threshold of 'a' has shape \(3,\)"),
        (between(g.Population.clipped(jnp.ones((4, 2))), "x"), "does not broadcast against"),
        (between(dense(), "x", end=g.Output(jnp.ones(3), ONE)), "threshold of 'y'"),
        (between(dense(3, 2), "x"), r"node 'a' cannot read \(2,\): "),
        (between(g.Reshape((3,)), "x"), r"node 'a' cannot read \(2,\): "),
        (between("a", "x"), "a str is no node"),
    ],
)
def test_a_graph_checks_itself(given, says):
    with pytest.raises(InputError, match=says):
        g.Graph(given)


def test_graphs_can_be_stacked_and_mapped():
    graphs = [convert(small, w, X) for w in (W, 2 * W)]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *graphs)
    found = jax.vmap(evaluate, in_axes=(0, None))(stacked, X)
    for row, graph in zip(found, graphs, strict=True):
        np.testing.assert_allclose(row, evaluate(graph, X), rtol=1e-6)


@leaves()
@dataclasses.dataclass(frozen=True)
class Double(g.Op):
    """A kind of which nothing is known but what it does."""

    def apply(self, *values):
        return 2 * values[0]


def test_a_kind_needs_no_more_than_what_it_does():
    """Readings that nothing general is true of refuse it: none takes it for something else."""
    double = Double()
    graph = wiring.graph(
        x=(IN,),
        a=(double, "x"),
        s=(g.Scale(3 * ONE, jnp.zeros(())), "a"),
        n=(g.Population.clipped(ONE), "s"),
        d=(dense(), "n"),
        y=(OUT, "d"),
    )
    np.testing.assert_array_equal(evaluate(graph, X), np.minimum(6 * X, 1) @ np.ones((2, 2)))
    np.testing.assert_array_equal(evaluate(fold(graph), X), evaluate(graph, X))
    assert [n.name for n in fold(graph).nodes] == [n.name for n in graph.nodes]
    lam = np.asarray([0.5, 1.5])
    large = wiring.graph(
        x=(IN,),
        n=(g.Population.clipped(jnp.asarray(lam)), "x"),
        a=(double, "n"),
        d=(dense(), "a"),
        y=(OUT, "d"),
    )
    np.testing.assert_allclose(evaluate(normalise(large), X), evaluate(large, X), rtol=1e-6)
    assert [n.name for n in normalise(large).nodes] == ["x", "x->n", "n", "n->a", "a", "d", "y"]
    assert g.shapes(graph)["a"] == (2,) and double.parameters == double.macs((2,)) == 0
    half = np.asarray(0.5)
    assert double.carry([half], [(2,)]) == half and double.split(half, [(2,)]) == (half,)
    assert double.carry([np.asarray([1.0, 2.0])], [(2,)]) is None
    assert double.then(half, half) is double.after([half]) is None
    readings = {
        "between what its value lies": lambda: double.bounds((X[:1], X[:1])),
        "which ways lead through it": lambda: fan_outs(graph),
        "what it makes of whole numbers": lambda: integer.quantise(graph, X),
    }
    for says, reading in readings.items():
        with pytest.raises(NotImplementedError, match=f"Double .*{says}"):
            reading()


def test_what_is_constant_is_what_no_neuron_precedes():
    """A sum with spikes is none, although one of its terms is; alone that one goes on."""
    graph = wiring.graph(
        x=(IN,),
        a=(dense(), "x"),
        n=(g.Population.clipped(ONE), "a"),
        s=(g.Add(), "n", "x"),
        j=(g.Concat(0), "x", "a"),
        b=(dense(4, 2), "j"),
        t=(g.Add(), "s", "b"),
        y=(OUT, "t"),
    )
    found = g.constant_values(graph, X)
    assert list(found) == ["x", "a", "j", "b"]
    np.testing.assert_array_equal(found["b"], np.hstack([X, X @ np.ones((2, 2))]) @ np.ones((4, 2)))


def test_a_scale_that_makes_a_value_larger_is_not_folded():
    graph = wiring.graph(
        x=(IN,),
        r=(g.Reshape((1, 2)), "x"),
        s=(g.Scale(jnp.asarray([[1.0], [2.0], [3.0]]), jnp.zeros(())), "r"),
        y=(OUT, "s"),
    )
    assert g.shapes(fold(graph))["y"] == (3, 2)
    np.testing.assert_array_equal(evaluate(fold(graph), X), evaluate(graph, X))
