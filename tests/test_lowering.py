"""Forms that a platform is given compute what the general ones do."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from tcl_jax import clip, models, simulation
from tcl_jax import graph as g
from tcl_jax.conversion import evaluate, fold, normalise, trace, with_norms
from tcl_jax.graph.convolution import convolve
from tcl_jax.promotion import implicit
from tcl_jax.simulation.lowering import _matrix


@settings(max_examples=20)
@given(
    st.integers(1, 2),
    st.integers(2, 4),
    st.integers(1, 3),
    st.tuples(st.integers(1, 3), st.integers(1, 3)),
    st.tuples(st.integers(1, 2), st.integers(1, 2)),
    st.tuples(st.integers(0, 2), st.integers(0, 2)),
    st.integers(1, 2),
)
def test_a_depthwise_convolution(rank, channels, multiple, window, strides, padding, dilation):
    rng = np.random.default_rng(0)
    window, strides, padding = window[:rank], strides[:rank], (padding,) * rank
    x = jnp.asarray(rng.normal(size=(2, *(7,) * rank, channels)), jnp.float32)
    kernel = jnp.asarray(rng.normal(size=(*window, 1, channels * multiple)), jnp.float32)
    names = ("NHWC", "HWIO", "NHWC") if rank == 2 else ("NWC", "WIO", "NWC")
    expected = jax.lax.conv_general_dilated(
        x,
        kernel,
        strides,
        padding,
        rhs_dilation=(dilation,) * rank,
        dimension_numbers=names,
        feature_group_count=channels,
    )
    found = convolve(x, kernel, strides, padding, (dilation,) * rank, channels)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


def _conv(x, w, stride, groups=1):
    return jax.lax.conv_general_dilated(
        x,
        w,
        (stride, stride),
        "SAME",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=groups,
    )


@settings(max_examples=20)
@given(
    st.integers(1, 2),
    st.tuples(st.integers(1, 3), st.integers(1, 3)),
    st.tuples(st.integers(1, 2), st.integers(1, 2)),
    st.tuples(*[st.tuples(st.integers(0, 3), st.integers(0, 3))] * 2),
    st.tuples(st.integers(1, 2), st.integers(1, 2)),
    st.sampled_from([(1, 2, 3), (2, 2, 3), (4, 1, 2)]),
)
def test_the_linear_map_is_the_convolution(rank, window, strides, padding, dilation, channels):
    """Any geometry: sites left out by strides, uneven padding, taps that meet padding alone."""
    groups, ins, outs = channels
    rng = np.random.default_rng(0)
    window, strides, padding = window[:rank], strides[:rank], padding[:rank]
    x = jnp.asarray(rng.integers(-8, 9, (3, *(3, 2)[:rank], groups * ins)) / 8, jnp.float32)
    kernel = jnp.asarray(rng.integers(-8, 9, (*window, ins, groups * outs)) / 8, jnp.float32)
    node = g.Conv(kernel, None, strides, padding, dilation[:rank], groups)
    reach = [(w - 1) * d + 1 for w, d in zip(window, dilation, strict=False)]
    sides = [n + sum(p) for n, p in zip(x.shape[1:-1], padding, strict=True)]
    assume(all(n >= r for n, r in zip(sides, reach, strict=True)))
    expected = node.apply(x)
    matrix = _matrix(node, x.shape[1:], expected.shape[1:]).reshape(x[0].size, -1)
    np.testing.assert_array_equal(
        np.asarray(x).reshape(3, -1) @ matrix, np.asarray(expected).reshape(3, -1)
    )


def test_small_maps_become_linear_and_spikes_stay():
    """In float64, where another order of summation changes no spike."""
    with jax.enable_x64(True):
        rng = np.random.default_rng(0)
        w = [jnp.asarray(rng.normal(0.05, 0.3, (3, 3, i, o))) for i, o in ((2, 4), (2, 6), (6, 4))]
        bias = jnp.asarray(rng.normal(0, 0.2, 4))

        @implicit()
        def network(x):
            x = clip(jax.nn.relu(_conv(x, w[0], 2) + bias), 0.7)
            x = clip(jax.nn.relu(_conv(x, w[1], 1, groups=2)), 0.5)
            x = clip(jax.nn.relu(_conv(x, w[2], 2) + bias), 0.9)
            return x.reshape(x.shape[0], -1)

        x = jnp.asarray(rng.normal(0.3, 1, (5, 4, 4, 2)))
        graph = normalise(with_norms(fold(trace(network, x)), {"output": 0.6}))
        lowered = simulation.lower(graph, "cpu")
        # Two of the three convolutions are on maps of 2×2.
        assert sum(isinstance(n.op, g.Conv) for n in lowered.nodes) == 1
        assert [n.name for n in lowered.neurons] == [n.name for n in graph.neurons]
        np.testing.assert_allclose(evaluate(lowered, x), evaluate(graph, x), atol=1e-12)
        one, other = (simulation.spike_trains(form, x, 40) for form in (graph, lowered))
        for name, train in one.items():
            assert 0 < train.mean() < 1
            np.testing.assert_array_equal(other[name], train)


@pytest.mark.parametrize(
    "sides, channels, groups, changed",
    [
        ((2, 2), 64, 1, True),
        ((2, 2), 128, 32, True),
        ((2, 2), 128, 64, False),
        ((2, 2), 64, 64, False),
        ((2, 200), 16, 1, False),
        ((2, 2), 1024, 1, True),
        ((2, 2), 1032, 1, False),
    ],
    ids=["small", "groups", "too many groups", "depthwise", "long", "64 MiB", "more than 64 MiB"],
)
def test_only_what_gains_becomes_linear(sides, channels, groups, changed):
    kernel = jnp.ones((3, 3, channels // groups, channels))
    graph = trace(lambda x: _conv(x, kernel, 1, groups), jnp.zeros((1, *sides, channels)))
    lowered = simulation.lower(graph, "cpu")
    assert any(isinstance(n.op, g.Conv) for n in lowered.nodes) is not changed
    assert max(a.nbytes for a in jax.tree.leaves(lowered)) <= 1 << 26


@pytest.mark.parametrize("platform", ["gpu", "tpu"])
def test_other_platforms_keep_their_convolutions(platform):
    graph = trace(lambda x: _conv(x, jnp.ones((3, 3, 1, 1)), 1), jnp.zeros((1, 2, 2, 1)))
    assert simulation.lower(graph, platform) is graph


def test_vgg16_has_three_small_maps(randomised):
    model = models.create("vgg16", image_shape=(32, 32, 3), num_classes=10)
    x = jnp.zeros((1, 32, 32, 3))
    variables = randomised(jax.eval_shape(model.init, jax.random.key(0), x))
    graph = fold(trace(lambda x: model.apply(variables, x), x))
    lowered = simulation.lower(graph, "cpu")
    before, after = (sum(isinstance(n.op, g.Conv) for n in f.nodes) for f in (graph, lowered))
    assert (before, after) == (13, 10)
