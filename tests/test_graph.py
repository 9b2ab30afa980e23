"""A graph checks itself when made, and no reading takes an unknown node for something else."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tcl_jax import InputError, clip, convert
from tcl_jax import graph as g
from tcl_jax.calibration import model_based
from tcl_jax.conversion import evaluate, fold, normalise
from tcl_jax.graph import cost, nodes
from tcl_jax.graph import quantise as integer
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


def test_every_choice_over_kinds_of_nodes_ends_in_an_error(monkeypatch):
    """A kind that only evaluation knows of: no other reading may take it for something else."""

    @nodes._leaves()
    @dataclasses.dataclass(frozen=True)
    class Double:
        name: str
        inputs: tuple[str, ...]

    known = g.affine
    monkeypatch.setitem(g.KINDS, "Double", Double)
    monkeypatch.setattr(
        g, "affine", lambda node, *x: 2 * x[0] if isinstance(node, Double) else known(node, *x)
    )
    double = Double("a", ("x",))
    scale = g.Scale("s", ("a",), ONE, jnp.zeros(()))
    neuron = g.Neuron("n", ("s",), ONE)
    graph = g.SpikingGraph(
        (INPUT, double, scale, neuron, dense("d", "n"), g.Output("y", ("d",), ONE, ONE))
    )
    assert evaluate(graph, X).shape == (3, 2)
    ends = jnp.zeros((1, 2)), jnp.ones((1, 2))
    readings = {
        "fold": lambda: fold(graph),
        "normalise": lambda: normalise(graph),
        "bounds": lambda: model_based.interval(double, ends),
        "cost": lambda: cost.macs(double, (2,)),
        "energy": lambda: energy._paths(double, jnp.ones((1, 2))),
        "integer": lambda: integer.quantise(graph, X),
    }
    for name, reading in readings.items():
        try:
            reading()
        except TypeError as error:
            assert "Double is a kind of node that is not provided for" in str(error), name
        else:
            pytest.fail(f"{name} takes an unknown kind for something else")
