"""Where scales end: which nodes of them are left, and that the function is the same."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import wiring

from tcl_jax import graph as g
from tcl_jax.conversion import evaluate, fold, normalise
from tcl_jax.simulation import spike_trains

ONE = jnp.ones(())
X = jnp.asarray([[0.25, 1.5], [1.0, -0.5], [0.75, 0.125]])
KERNEL = jnp.asarray([[1.0, 0.5, -0.25, 2.0], [-0.5, 1.0, 1.5, 0.25], [0.25, 0.5] * 2, [1.0] * 4])


def dense(before=2, after=2):
    return g.Dense(KERNEL[:before, :after], jnp.full(after, 0.125))


def neuron(*lam):
    return g.Population.clipped(jnp.asarray(lam if len(lam) > 1 else lam[0]))


def scale(by, shift=0.0):
    return g.Scale(jnp.asarray(by), jnp.asarray(shift))


def part(start):
    return g.Slice((start,), (start + 2,), (1,))


ADD, JOIN = g.Add(), g.Concat(0)
POOL = g.Pool(window=(2,), strides=(2,), padding=((0, 0),), factor=0.5 * ONE)
END = g.Output(0.5 * ONE, 2 * ONE)


def side_by_side(one, other):
    """Two populations that read the same value, and weights that read both."""
    return {
        "n": (one, "a"),
        "m": (other, "a"),
        "j": (JOIN, "n", "m"),
        "b": (dense(4), "j"),
        "y": (END, "b"),
    }


def apart(one, other):
    """Two populations that each read one half of a value."""
    return {
        "b": (dense(2, 4), "a"),
        "p": (part(0), "b"),
        "q": (part(2), "b"),
        "n": (one, "p"),
        "m": (other, "q"),
        "j": (JOIN, "n", "m"),
        "c": (dense(4), "j"),
        "y": (END, "c"),
    }


def for_one_of_two(factor):
    """A value that neurons read scaled, and weights as it is."""
    return {
        "s": (factor, "a"),
        "n": (neuron(0.5), "s"),
        "b": (dense(), "n"),
        "c": (dense(), "a"),
        "t": (ADD, "b", "c"),
        "y": (END, "t"),
    }


CASES = {
    "a chain": ([], {"n": (neuron(0.5), "a"), "y": (END, "n")}),
    "an identity shortcut": (
        ["n->s"],
        {
            "n": (neuron(0.5), "a"),
            "b": (dense(), "n"),
            "s": (ADD, "b", "n"),
            "m": (neuron(2.0), "s"),
            "c": (dense(), "m"),
            "y": (END, "c"),
        },
    ),
    "a shortcut from the image": (
        ["s->n"],
        {"s": (ADD, "a", "x"), "n": (neuron(0.5), "s"), "b": (dense(), "n"), "y": (END, "b")},
    ),
    "two populations that read one value": (["a->m"], side_by_side(neuron(0.5), neuron(0.25))),
    "two of the same threshold": ([], side_by_side(neuron(0.5), neuron(0.5))),
    "weights beside a population": (
        [],
        {
            "n": (neuron(0.5, 2.0), "a"),
            "b": (dense(), "n"),
            "c": (dense(), "a"),
            "s": (ADD, "b", "c"),
            "y": (END, "s"),
        },
    ),
    "two populations and then weights": (
        ["m->s"],
        {
            "n": (neuron(0.5), "a"),
            "b": (dense(), "a"),
            "m": (neuron(2.0), "b"),
            "s": (ADD, "n", "m"),
            "c": (dense(), "s"),
            "y": (END, "c"),
        },
    ),
    "two populations and then a third": (
        ["x->n", "n->s", "m->s"],
        {
            "n": (neuron(0.5), "x"),
            "m": (neuron(2.0), "a"),
            "s": (ADD, "n", "m"),
            "k": (neuron(4.0), "s"),
            "b": (dense(), "k"),
            "y": (END, "b"),
        },
    ),
    "parts of a value": (["q->m"], apart(neuron(0.5), neuron(2.0))),
    "parts of a value, each of its own λ by channel": (
        [],
        apart(neuron(0.5, 2.0), neuron(0.25, 4.0)),
    ),
    "parts of a value that are joined again": (
        ["j->n"],
        {
            "b": (dense(2, 4), "a"),
            "p": (part(0), "b"),
            "q": (part(2), "b"),
            "j": (JOIN, "q", "p"),
            "n": (neuron(0.5, 2.0, 0.25, 4.0), "j"),
            "c": (dense(4), "n"),
            "y": (END, "c"),
        },
    ),
    "a value joined with itself": (
        ["j->n"],
        {
            "j": (JOIN, "a", "a"),
            "n": (neuron(0.5, 0.5, 0.25, 0.25), "j"),
            "b": (dense(4), "n"),
            "y": (END, "b"),
        },
    ),
    "spikes pooled into a population": (
        [],
        {
            "n": (neuron(0.5), "a"),
            "p": (POOL, "n"),
            "m": (neuron(1.5), "p"),
            "b": (dense(1), "m"),
            "y": (END, "b"),
        },
    ),
    "pools over channels, each of its own λ": (
        ["n->p"],
        {
            "n": (neuron(0.5, 2.0), "a"),
            "p": (POOL, "n"),
            "q": (POOL, "n"),
            "b": (dense(1), "p"),
            "c": (dense(1), "q"),
            "s": (ADD, "b", "c"),
            "y": (END, "s"),
        },
    ),
    "a value added to itself": (
        [],
        {"s": (ADD, "a", "a"), "n": (neuron(0.5), "s"), "b": (dense(), "n"), "y": (END, "b")},
    ),
    "a value added to a part of itself": (
        ["s->n"],
        {
            "p": (g.Slice((1,), (2,), (1,)), "a"),
            "s": (ADD, "a", "p"),
            "n": (neuron(0.5), "s"),
            "b": (dense(), "n"),
            "y": (END, "b"),
        },
    ),
    "a value joined with a pool of it": (
        ["j->n"],
        {
            "p": (g.Reshape((2,)), "a"),
            "q": (g.Pool(window=(1,), strides=(1,), padding=((0, 0),), factor=2 * ONE), "a"),
            "j": (JOIN, "p", "q"),
            "n": (neuron(0.5, 0.5, 0.25, 0.25), "j"),
            "b": (dense(4), "n"),
            "y": (END, "b"),
        },
    ),
    "sums of different shapes": (
        ["s->n", "t", "u"],
        {
            "b": (g.Reshape((1, 2)), "a"),
            "c": (g.Reshape((2, 1)), "x"),
            "t": (scale(2.0, 0.25), "b"),
            "u": (scale(0.5, -0.25), "c"),
            "s": (ADD, "t", "u"),
            "n": (g.Population.clipped(jnp.asarray([[0.5], [0.25]])), "s"),
            "f": (g.Reshape((4,)), "n"),
            "d": (dense(4), "f"),
            "y": (END, "d"),
        },
    ),
    "a scale of the image": (
        [],
        {"s": (scale([0.5, 4.0]), "x"), "b": (dense(), "s"), "y": (END, "b")},
    ),
    "a scale of 0 for one of two readers": (["s"], for_one_of_two(scale([1.0, 0.0]))),
    "a shift for one of two readers": (["s"], for_one_of_two(scale(2.0, 0.25))),
    "a shift before weights": (
        ["s"],
        {"s": (scale(2.0, 0.25), "x"), "b": (dense(), "s"), "y": (END, "b")},
    ),
}
"""By what is wired: the scales that are left of it, normalised."""


def scales(graph):
    return [node.name for node in graph.nodes if isinstance(node.op, g.Scale)]


@pytest.mark.parametrize("case", CASES)
def test_scales_end_in_weights_and_change_nothing(case):
    left, steps = CASES[case]
    graph = wiring.graph(x=(g.Input((2,)),), a=(dense(), "x"), **steps)
    normalised = normalise(graph)
    assert sorted(scales(normalised)) == sorted(left)
    assert all(np.all(n.op.threshold == 1) for n in normalised.spiking)
    for other in (fold(graph), normalised, fold(normalised)):
        np.testing.assert_array_equal(evaluate(other, X), evaluate(graph, X))
    large, small = (spike_trains(it, X, 24) for it in (graph, normalised))
    for name, spikes in small.items():
        np.testing.assert_array_equal(np.asarray(large[name]) > 0, np.asarray(spikes) > 0)
        assert 0 < np.mean(spikes) < 1, name


@pytest.mark.parametrize("case", CASES)
def test_what_has_settled_stays(case):
    graph = wiring.graph(x=(g.Input((2,)),), a=(dense(), "x"), **CASES[case][1])
    for once in (fold(graph), normalise(graph)):
        twice = fold(once)
        assert jax.tree.structure(twice) == jax.tree.structure(once)
        jax.tree.map(np.testing.assert_array_equal, twice, once)


def test_a_bias_that_is_the_threshold_fires_at_every_step(rng):
    """As where λ is the largest current of a channel whose weights are all negative."""
    bias = rng.uniform(0.01, 9, 512).astype(np.float32)
    graph = wiring.graph(
        x=(g.Input((1,)),),
        a=(g.Dense(-jnp.ones((1, 512)), jnp.asarray(bias)), "x"),
        n=(neuron(*bias), "a"),
        y=(END, "n"),
    )
    x = jnp.zeros((1, 1))
    for each in (graph, normalise(graph)):
        assert np.all(np.asarray(spike_trains(each, x, 5)["n"]) > 0)


def test_a_weight_is_rounded_once(rng):
    weights = rng.normal(0, 1, (2, 4)).astype(np.float32)
    first, second, third = np.float32([1 / 3, 0.7, 1.1])
    graph = wiring.graph(
        x=(g.Input((4,)),),
        n=(neuron(first), "x"),
        a=(g.Dense(jnp.asarray(weights.T), None), "n"),
        s=(scale(third), "a"),
        m=(neuron(second), "s"),
        y=(END, "m"),
    )
    (found,) = wiring.operations(normalise(graph), g.Dense)
    exact = np.float64(weights.T) * np.float64(first) * np.float64(third) / np.float64(second)
    np.testing.assert_array_equal(found.kernel, exact.astype(np.float32))
    assert found.bias is None
