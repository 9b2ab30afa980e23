"""Forms that a platform is given compute what the general ones do."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from tcl_jax import clip, models, simulation
from tcl_jax import graph as g
from tcl_jax.conversion import Artifact, evaluate, fold, normalise, save, trace, with_norms
from tcl_jax.errors import InputError
from tcl_jax.graph.convolution import convolve
from tcl_jax.promotion import implicit
from tcl_jax.simulation.costs import COSTS
from tcl_jax.simulation.lowering import _matrix
from tcl_jax.simulation.winograd import Winograd


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
        assert [*simulation.lowering.chosen(graph, "cpu").values()].count("maps of the whole") == 2
        assert sum(isinstance(n.op, g.Conv) for n in lowered.nodes) == 1
        assert [n.name for n in lowered.neurons] == [n.name for n in graph.neurons]
        np.testing.assert_allclose(evaluate(lowered, x), evaluate(graph, x), atol=1e-12)
        one, other = (simulation.spike_trains(form, x, 40) for form in (graph, lowered))
        for name, train in one.items():
            assert 0 < train.mean() < 1
            np.testing.assert_array_equal(other[name], train)


DIRECT, CHANNELS, WHOLE = "convolution", "maps of channels", "maps of the whole"
WINOGRAD = "Winograd's form"


@pytest.mark.parametrize(
    "sides, window, channels, groups, form",
    [
        ((2, 2), 3, 64, 1, WHOLE),
        ((2, 2), 3, 128, 64, WHOLE),
        ((2, 2), 3, 512, 32, DIRECT),
        ((2, 2), 3, 64, 64, DIRECT),
        ((2, 2), 5, 1024, 1, WHOLE),
        ((2, 2), 5, 1032, 1, DIRECT),
        ((2, 2), 3, 1032, 1, WINOGRAD),
        ((2, 200), 3, 16, 1, DIRECT),
        ((8, 8), 3, 16, 1, DIRECT),
        ((2, 2), 3, 512, 1, WINOGRAD),
        ((8, 8), 3, 64, 1, WINOGRAD),
        ((8, 8), 5, 64, 1, DIRECT),
        ((8, 8), 3, 64, 2, DIRECT),
        ((8, 8), 1, 16, 1, CHANNELS),
        ((8, 8), 1, 16, 2, DIRECT),
    ],
)
def test_a_convolution_takes_the_form_that_costs_least(sides, window, channels, groups, form):
    kernel = jnp.ones((window, window, channels // groups, channels))
    graph = trace(lambda x: _conv(x, kernel, 1, groups), jnp.zeros((1, *sides, channels)))
    assert simulation.lowering.chosen(graph, "cpu") == {"conv": form}
    lowered = simulation.lower(graph, "cpu")
    assert any(isinstance(n.op, g.Conv) for n in lowered.nodes) is (form == DIRECT)
    assert max(a.nbytes for a in jax.tree.leaves(lowered)) <= max(1 << 26, kernel.nbytes * 16 / 9)


def test_what_is_lowered_is_not_saved(tmp_path):
    kernel = jnp.ones((3, 3, 64, 64))
    graph = trace(lambda x: _conv(x, kernel, 1), jnp.zeros((1, 8, 8, 64)))
    with pytest.raises(InputError, match=r"'conv' is a Winograd, .* before it was lowered"):
        save(Artifact(simulation.lower(graph, "cpu"), {}), tmp_path / "snn")
    assert not (tmp_path / "snn").exists()


def test_a_map_of_channels_has_steps_of_one():
    kernel = jnp.ones((1, 1, 16, 16))
    graph = trace(lambda x: _conv(x, kernel, 2), jnp.zeros((1, 8, 8, 16)))
    assert simulation.lowering.chosen(graph, "cpu") == {"conv": DIRECT}


@settings(max_examples=20)
@given(
    st.tuples(st.integers(1, 6), st.integers(1, 6)),
    st.tuples(*[st.tuples(st.integers(0, 2), st.integers(0, 2))] * 2),
    st.tuples(st.integers(1, 3), st.integers(1, 3)),
    st.integers(1, 6),
    st.booleans(),
)
def test_winograd_s_form_is_the_convolution(sides, padding, channels, batch, biased):
    """Exactly, of numbers of few bits; also where the cache holds no more than a tile of images."""
    assume(all(n + sum(p) >= 3 for n, p in zip(sides, padding, strict=True)))
    rng = np.random.default_rng(0)

    def eighths(*shape):
        return jnp.asarray(rng.integers(-8, 9, shape) / 8, jnp.float32)

    x, kernel = eighths(batch, *sides, channels[0]), eighths(3, 3, *channels)
    conv = g.Conv(kernel, eighths(channels[1]) if biased else None, (1, 1), padding, (1, 1), 1)
    assert Winograd.computes(conv)
    form, expected = Winograd.of(conv), conv.apply(x)

    def computed():
        # As one program: each of its many parts would take as long to compile.
        return jax.jit(lambda x: form.apply(x))(x)

    np.testing.assert_array_equal(computed(), expected)
    before = COSTS["cpu"]
    try:
        COSTS["cpu"] = replace(before, cache=4 * x[0].nbytes)
        np.testing.assert_array_equal(computed(), expected)
    finally:
        COSTS["cpu"] = before


def test_winograd_s_form_is_as_accurate(rng):
    """As the convolution is in float32, against the same in float64; of spikes, and of an image."""
    kernel = rng.normal(0, 0.05, (3, 3, 64, 64))
    for x in ((rng.random((2, 8, 8, 64)) < 0.3).astype(float), rng.normal(size=(2, 8, 8, 64))):
        with jax.enable_x64(True):
            exact = np.asarray(_conv(jnp.asarray(x), jnp.asarray(kernel), 1))
        conv = g.Conv(jnp.asarray(kernel, jnp.float32), None, (1, 1), ((1, 1),) * 2, (1, 1), 1)
        form, x = Winograd.of(conv), jnp.asarray(x, jnp.float32)
        plain, other = (np.abs(op.apply(x) - exact).max() for op in (conv, form))
        assert 0 < other < 4 * plain


@pytest.mark.parametrize("platform", ["gpu", "tpu"])
def test_other_platforms_keep_their_convolutions(platform):
    graph = trace(lambda x: _conv(x, jnp.ones((3, 3, 1, 1)), 1), jnp.zeros((1, 2, 2, 1)))
    assert simulation.lower(graph, platform) is graph


def test_vgg16_has_one_convolution_left(randomised):
    model = models.create("vgg16", image_shape=(32, 32, 3), num_classes=10)
    x = jnp.zeros((1, 32, 32, 3))
    variables = randomised(jax.eval_shape(model.init, jax.random.key(0), x))
    graph = fold(trace(lambda x: model.apply(variables, x), x))
    lowered = simulation.lower(graph, "cpu")
    found = [*simulation.lowering.chosen(graph, "cpu").values()]
    assert [found.count(form) for form in (DIRECT, WINOGRAD, WHOLE)] == [1, 12, 0]
    left = [sum(isinstance(n.op, kind) for n in lowered.nodes) for kind in (g.Conv, Winograd)]
    assert left == [1, 12]
