"""Norm-factors by every method, a layer and a channel, against NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tcl_jax import InputError, clip
from tcl_jax.calibration import Max, ModelBased, Percentile, SpikeNorm, Trained
from tcl_jax.conversion import calibrate, evaluate, norm_method, trace, with_norms
from tcl_jax.graph import limit
from tcl_jax.promotion import implicit

WIDTH, IMAGES = 40, 50


@pytest.fixture
def weights(rng) -> list[np.ndarray]:
    return [rng.normal(0, s, (WIDTH, WIDTH)).astype(np.float32) for s in (0.1, 0.3, 0.2)]


@pytest.fixture
def x(rng) -> np.ndarray:
    return rng.normal(0, 1, (IMAGES, WIDTH)).astype(np.float32)


def _relu_network(weights):
    def network(x):
        x = jax.nn.relu(x @ weights[0])
        return jax.nn.relu(x @ weights[1]) @ weights[2]

    return network


def _activations(weights, x) -> list[np.ndarray]:
    first = np.maximum(x @ weights[0], 0)
    second = np.maximum(first @ weights[1], 0)
    return [first, second, second @ weights[2]]


def _batches(x):
    return lambda: [jnp.asarray(x[:20]), jnp.asarray(x[20:])]


def test_max_is_the_largest_activation(weights, x):
    graph = trace(_relu_network(weights), x)
    found = calibrate(graph, norm_method("max"), _batches(x))
    names = [n.name for n in (*graph.neurons, graph.output)]
    assert found.keys() == set(names)
    # NumPy's products may be summed in another order.
    expected = [a.max() for a in _activations(weights, x)]
    np.testing.assert_allclose([found[name] for name in names], expected, rtol=1e-5)


@pytest.mark.parametrize("percent", [10, 50, 75, 99.9, 100])
def test_a_percentile_is_numpy_s(percent, weights, x):
    graph = trace(_relu_network(weights), x)
    found = calibrate(graph, norm_method(f"percentile:{percent}"), _batches(x))
    *hidden, logits = _activations(weights, x)
    for neurons, a in zip(graph.neurons, hidden, strict=True):
        exact = np.percentile(a, percent, method="inverted_cdf")
        if exact == 0:  # a silent majority
            exact = np.percentile(a[a > 0], percent, method="inverted_cdf")
        # NumPy's products may be summed in another order.
        assert found[neurons.name] == pytest.approx(exact, rel=1e-5)
    assert found[graph.output.name] == pytest.approx(logits.max(), rel=1e-5)


def test_percentiles_do_not_depend_on_batches(weights, x):
    graph = trace(_relu_network(weights), x)
    how = norm_method("percentile:99")
    whole = calibrate(graph, how, lambda: [jnp.asarray(x)])
    parts = calibrate(graph, how, _batches(x))
    assert whole == pytest.approx(parts, rel=1e-6)


def test_tcl_is_refused_for_a_bare_relu(weights, x):
    def network(x):
        x = clip(jax.nn.relu(x @ weights[0]), 1.0)
        return jax.nn.relu(x @ weights[1]) @ weights[2]

    with pytest.raises(InputError, match=r"has no trained λ: convert"):
        calibrate(trace(network, x), norm_method("tcl"), _batches(x))


def test_tcl_reads_the_output_alone(weights, x):
    graph = trace(lambda x: clip(jax.nn.relu(x @ weights[0]), 1.0) @ weights[1], x)
    found = calibrate(graph, norm_method("tcl"), _batches(x))
    logits = np.clip(x @ weights[0], 0, 1) @ weights[1]
    assert found == {graph.output.name: pytest.approx(logits.max(), rel=1e-5)}


def test_no_images_are_refused(weights, x):
    with pytest.raises(InputError, match="no calibration images"):
        calibrate(trace(_relu_network(weights), x), norm_method("max"), list)


# --- One a channel --------------------------------------------------------------------------

SIDE, IN, OUT = 4, 3, 6


@pytest.fixture
def maps(rng) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Images ``[b, h, w, c]``, weights, and activations, of which channel 2 has none."""
    x = rng.normal(0, 1, (IMAGES, SIDE, SIDE, IN)).astype(np.float32)
    x[..., 0] = np.abs(x[..., 0])
    w = rng.normal(0, 0.5, (IN, OUT)).astype(np.float32) * np.float32(10) ** -np.arange(OUT)
    w[:, 2] = [-1, 0, 0]
    return x, w, np.maximum(x @ w, 0)


def _map_network(w):
    return lambda x: jax.nn.relu(x @ w).sum((1, 2, 3), keepdims=True)[:, 0, 0]


def test_max_of_a_channel(maps):
    x, w, a = maps
    graph = trace(_map_network(w), x)
    found = calibrate(graph, norm_method("max/channel"), _batches(x))
    expected = a.max((0, 1, 2))
    assert expected[2] == 0
    expected[2] = a.max()
    assert found[graph.neurons[0].name].shape == (OUT,)
    np.testing.assert_allclose(found[graph.neurons[0].name], expected, rtol=1e-5)
    assert np.ndim(found[graph.output.name]) == 0, "counts of spikes of unlike amplitude"


@pytest.mark.parametrize("percent", [10, 50, 75, 99.9, 100])
def test_a_percentile_of_a_channel_is_numpy_s(percent, maps):
    x, w, a = maps
    graph = trace(_map_network(w), x)
    layer, found = (
        calibrate(graph, norm_method(f"percentile:{percent}{suffix}"), _batches(x))[
            graph.neurons[0].name
        ]
        for suffix in ("", "/channel")
    )
    assert found[2] == layer, "a channel that is never active"
    for channel in {*range(OUT)} - {2}:
        of_channel = a[..., channel]
        exact = np.percentile(of_channel, percent, method="inverted_cdf")
        if exact == 0:
            exact = np.percentile(of_channel[of_channel > 0], percent, method="inverted_cdf")
        assert found[channel] == pytest.approx(exact, rel=1e-5)


# --- From weights ---------------------------------------------------------------------------


def test_model_based_by_hand():
    # The first input lies in [0, 1], the second in [-1, 2].
    x = jnp.asarray([[0.0, 2.0], [1.0, -1.0], [0.5, 0.0]])
    w1, w2 = jnp.asarray([[1.0, -2.0], [-3.0, 1.0]]), jnp.asarray([[2.0, -1.0], [1.0, 3.0]])
    b2 = jnp.asarray([0.5, -1.0])
    graph = trace(implicit()(lambda x: jax.nn.relu(jax.nn.relu(x @ w1) @ w2 + b2)), x)
    first, second = (n.name for n in graph.neurons)
    # 1·1 + (-3)·(-1) = 4 and -2·0 + 1·2 = 2; then with 4 for all, or with 4 and 2.
    layers = calibrate(graph, norm_method("model_based"), lambda: [x])
    assert (layers[first], layers[second]) == (4.0, max(2 * 4 + 1 * 4 + 0.5, 3 * 4 - 1))
    channels = calibrate(graph, norm_method("model_based/channel"), lambda: [x])
    assert channels[first].tolist() == [4.0, 2.0]
    assert channels[second].tolist() == [2 * 4 + 1 * 2 + 0.5, 3 * 2 - 1]


def test_model_based_is_the_paper_s_for_images_from_0_to_1(weights, rng):
    x = rng.uniform(0, 1, (IMAGES, WIDTH)).astype(np.float32)
    x[0], x[-1] = 0, 1
    graph = trace(_relu_network(weights), x)
    norms = calibrate(graph, norm_method("model_based"), _batches(x))
    bound = 1.0
    for neurons, w in zip(graph.neurons, weights, strict=False):
        bound *= np.maximum(w, 0).sum(0).max()
        assert norms[neurons.name] == pytest.approx(bound, rel=1e-5)


def _every_kind(rng):
    def draw(*shape):
        return jnp.asarray(rng.normal(0, 0.5, shape), jnp.float32)

    w1, w2, w3, w4 = draw(3, 3, 2, 4), draw(3, 3, 2, 4), draw(36, 5), draw(4, 4)
    bias, at_position = draw(4), draw(6, 6, 1)

    def conv(x, w, groups):
        return jax.lax.conv_general_dilated(
            x, w, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"),
            feature_group_count=groups,
        )  # fmt: skip

    @implicit()
    def network(x):
        x = jax.nn.relu((conv(x, w1, 1) + bias) * at_position)
        y = jax.nn.relu(conv(x, w2, 2) - x)
        z = jax.lax.reduce_window(y, 0.0, jax.lax.add, (1, 2, 2, 1), (1, 2, 2, 1), "VALID") / -4
        z = jax.nn.relu((z + 1.0).transpose(0, 3, 1, 2).reshape(z.shape[0], -1) @ w3)
        return z @ w3[:5, :4] + jax.nn.relu(y.mean((1, 2)) @ w4)

    return network


@pytest.mark.parametrize("norm", ["model_based", "model_based/channel"])
@given(seed=st.integers(0, 2**32 - 1))
def test_no_image_in_range_exceeds_what_weights_allow(norm, seed):
    rng = np.random.default_rng(seed)
    low, high = np.sort(rng.normal(0, 1, (2, 2)), axis=0).astype(np.float32)
    size = (64, 6, 6, 2)
    inside = rng.uniform(low, high, size).astype(np.float32)
    corners = np.where(rng.uniform(size=size) < 0.5, low, high)
    images = jnp.asarray(np.concatenate([inside, corners]))
    graph = trace(_every_kind(rng), images)
    kinds = {type(n.op).__name__ for n in graph.nodes}
    assert kinds >= {"Conv", "Dense", "Scale", "Pool", "Sum", "Reshape", "Transpose", "Add"}
    seen = {}
    evaluate(graph, images, lambda name, a: seen.__setitem__(name, np.asarray(a)))
    # Two images tell the range.
    ends = jnp.stack([jnp.broadcast_to(end, size[1:]) for end in (low, high)])
    norms = norm_method(norm).norm_factors(graph, lambda: [ends], {})
    for neurons in graph.neurons:
        # Sums of positive and of negative parts are rounded apart.
        assert np.all(seen[neurons.name] <= norms[neurons.name] * (1 + 1e-5))


def test_a_bound_beyond_float32_is_refused():
    def network(x):
        for _ in range(10):
            x = jax.nn.relu(1e4 * x - 9999.0 * x)
        return x

    x = jnp.asarray([[0.0], [1.0]])
    with pytest.raises(InputError, match="is beyond float32: the network is too deep"):
        calibrate(trace(network, x), norm_method("model_based"), lambda: [x])


# --- Every method ---------------------------------------------------------------------------

DATA = ["max", "percentile:90", "spike_norm", "spike_norm:0.5", "model_based"]
EVERY = [norm + suffix for norm in DATA for suffix in ("", "/channel")]


@pytest.mark.parametrize("norm", EVERY)
def test_norm_factors_do_not_depend_on_batches(norm, eighths):
    w, x = eighths(4, 6, 6), eighths(12, 6)

    def network(x):
        x = jax.nn.relu(x @ w[0])
        return jax.nn.relu(jax.nn.relu(x @ w[1]) @ w[2] + x) @ w[3]

    graph = trace(network, x)
    whole, parts = (
        calibrate(graph, norm_method(norm), lambda b=b: b)
        for b in ([jnp.asarray(x)], [jnp.asarray(x[:5]), jnp.asarray(x[5:])])
    )
    assert whole.keys() == parts.keys() == {n.name for n in graph.spiking}
    for name, lam in whole.items():
        np.testing.assert_array_equal(lam, parts[name])


@pytest.mark.parametrize("norm", EVERY)
@pytest.mark.parametrize("lam", [0.5, [0.25, 4.0, 0.5, 0.125, 1.0, 2.0]], ids=["layer", "channel"])
def test_a_trained_clip_stays(lam, norm, eighths):
    w, x = eighths(2, 6, 6), eighths(12, 6)
    lam = np.asarray(lam, np.float32)
    graph = trace(lambda x: clip(jax.nn.relu(x @ w[0]), lam) @ w[1], x)
    (neurons,) = graph.neurons
    norms = calibrate(graph, norm_method(norm), lambda: [jnp.asarray(x)])
    assert np.all(norms[neurons.name] <= lam) and np.any(norms[neurons.name] == lam)
    if norm.startswith(("max", "model_based")):
        logits = np.clip(x @ w[0], 0, lam) @ w[1]
        bounded = limit(with_norms(graph, norms))
        np.testing.assert_array_equal(evaluate(bounded, jnp.asarray(x)), logits)


# --- Their names ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text, expected",
    [
        ("tcl", Trained()),
        ("max", Max()),
        ("max/channel", Max(channel=True)),
        ("percentile:99.9", Percentile(99.9)),
        ("percentile:99.99999", Percentile(99.99999)),
        ("percentile:100/channel", Percentile(100, channel=True)),
        ("spike_norm", SpikeNorm()),
        ("spike_norm:0.8", SpikeNorm(0.8)),
        ("spike_norm:0.7,images=20/channel", SpikeNorm(0.7, images=20, channel=True)),
        ("spike_norm:timesteps=50", SpikeNorm(timesteps=50)),
        ("model_based", ModelBased()),
        ("model_based/channel", ModelBased(channel=True)),
    ],
)
def test_methods_are_read_and_written(text, expected):
    assert norm_method(text) == expected
    assert str(expected) == text


@pytest.mark.parametrize(
    "text, complaint",
    [
        ("", "unknown norm ''"),
        ("mean", r"unknown norm 'mean': choose from max\[/channel\]; .*; percentile:PERCENT\["),
        ("mean/channel", "unknown norm 'mean'"),
        ("max:3", r"'max:3': '3' is no option of it; write max\[/channel\]"),
        ("max/layer", "'/layer' is no suffix of it"),
        ("max/channel/channel", "'/channel' is no suffix of it"),
        ("tcl/channel", "'tcl/channel': '/channel' is no suffix of it; write tcl$"),
        ("percentile", "'percentile': it needs its percent; write percentile:PERCENT"),
        ("percentile:x", "'percentile:x': its percent is a number, not 'x'"),
        ("percentile:0", "0.0 is no percentile: .* percentile:99.9"),
        ("percentile:101/channel", "101.0 is no percentile"),
        ("percentile:nan", "nan is no percentile"),
        ("spike_norm:", r"its scaling is a number, not ''; write spike_norm\[:SCALING,timesteps="),
        ("spike_norm:0.5,0.5", "'0.5' is no option of it"),
        ("spike_norm:images=2,images=3", "'images=3' is no option of it"),
        ("spike_norm:images=2.5", "its images is a whole number, not '2.5'"),
        ("spike_norm:0", "0.0 is no scaling"),
        ("spike_norm:1.5", "1.5 is no scaling .* at most 1, as in spike_norm:0.8"),
        ("model_based:2", "'2' is no option of it"),
    ],
)
def test_other_methods_are_refused(text, complaint):
    with pytest.raises(InputError, match=complaint):
        norm_method(text)
