"""A graph checks itself when made, and no reading takes an unknown node for something else."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tcl_jax import InputError, clip, convert
from tcl_jax import graph as g
from tcl_jax.conversion import evaluate, fold, normalise
from tcl_jax.graph import quantise as integer
from tcl_jax.graph.ops.base import leaves
from tcl_jax.simulation import energy

ONE = jnp.ones(())
W = jnp.asarray([[0.5, -0.25], [0.25, 0.75]])
X = jnp.asarray([[1.0, 0.5], [0.25, 2.0], [0.5, 0.5]])


def small(w, x):
    return clip(jax.nn.relu(x @ w), 2.0) @ w


def dense(name, reads, shape=(2, 2)):
    return g.Dense(name, (reads,), jnp.ones(shape), None)


INPUT, OUTPUT = g.Input("x", (), (2,)), g.Output("y", ("a",), ONE, ONE)


@pytest.mark.parametrize(
    "given, says",
    [
        ((INPUT, dense("a", "x"), dense("a", "x"), OUTPUT), "two nodes are named 'a'"),
        ((INPUT, OUTPUT, dense("a", "x")), "'y' reads 'a', which does not come before it"),
        ((INPUT, dense("a", "a"), OUTPUT), "'a' reads 'a', which does not come before it"),
        ((dense("a", "x"), OUTPUT), "'a' reads 'x', which does not come before it"),
        ((INPUT, dense("a", "x"), OUTPUT, dense("b", "a")), "the output must be the last node"),
        ((INPUT, dense("a", "x")), "has one output, got 0"),
        ((INPUT, dense("a", "x"), OUTPUT, dataclasses.replace(OUTPUT, name="z")), "one output"),
        ((INPUT, g.Input("a", (), (2,)), OUTPUT), "has one input, got 2"),
        ((), "has one input, got 0"),
        ((INPUT, g.Add("a", ("x",)), OUTPUT), "'a' reads 1 values, and must read 2"),
        ((INPUT, g.Concat("a", (), 0), OUTPUT), "'a' reads 0 values, and must read 1"),
        ((INPUT, g.Neuron("a", ("x", "x"), ONE), OUTPUT), "'a' reads 2 values, and must read 1"),
        ((INPUT, g.Neuron("a", ("x",), jnp.ones(3)), OUTPUT), r"threshold of 'a' has shape \(3,\)"),
        ((INPUT, g.Neuron("a", ("x",), jnp.ones((4, 2))), OUTPUT), "does not broadcast against"),
        ((INPUT, dense("a", "x"), g.Output("y", ("a",), jnp.ones(3), ONE)), "threshold of 'y'"),
        ((INPUT, dense("a", "x", (3, 2)), OUTPUT), r"node 'a' cannot read \(2,\): "),
        ((INPUT, g.Reshape("a", ("x",), (3,)), OUTPUT), r"node 'a' cannot read \(2,\): "),
        ((INPUT, "a", OUTPUT), "a str is no node"),
    ],
)
def test_a_graph_checks_itself(given, says):
    with pytest.raises(InputError, match=says):
        g.SpikingGraph(given)


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
    double = Double("a", ("x",))
    scale = g.Scale("s", ("a",), 3 * ONE, jnp.zeros(()))
    neuron = g.Neuron("n", ("s",), ONE)
    graph = g.SpikingGraph(
        (INPUT, double, scale, neuron, dense("d", "n"), g.Output("y", ("d",), ONE, ONE))
    )
    np.testing.assert_array_equal(evaluate(graph, X), np.minimum(6 * X, 1) @ np.ones((2, 2)))
    np.testing.assert_array_equal(evaluate(fold(graph), X), evaluate(graph, X))
    assert [type(n) for n in fold(graph).nodes] == [type(n) for n in graph.nodes]
    assert g.shapes(graph)["a"] == (2,) and double.parameters == double.macs((2,)) == 0
    half = np.asarray(0.5)
    assert double.carry([half], [(2,)]) == half and double.split(half, [(2,)]) == (half,)
    assert double.carry([np.asarray([1.0, 2.0])], [(2,)]) is None
    assert double.then(half, half) is double.after([half]) is None
    readings = {
        "between what its value lies": lambda: double.bounds((X[:1], X[:1])),
        "which ways lead through it": lambda: energy.fan_outs(graph),
        "a kind of node that is not provided for": lambda: normalise(graph),
        "kind of node that is not provided for": lambda: integer.quantise(graph, X),
    }
    for says, reading in readings.items():
        with pytest.raises((NotImplementedError, TypeError), match=f"Double .*{says}"):
            reading()
