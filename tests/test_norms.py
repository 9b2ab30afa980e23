"""Norm-factors from activations, against NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tcl_jax import InputError, clip
from tcl_jax.conversion import calibrate, method, trace

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
    found = calibrate(graph, method("max"), _batches(x))
    names = [n.name for n in (*graph.neurons, graph.output)]
    assert found.keys() == set(names)
    # NumPy's products may be summed in another order.
    expected = [a.max() for a in _activations(weights, x)]
    np.testing.assert_allclose([found[name] for name in names], expected, rtol=1e-5)


@pytest.mark.parametrize("percent", [10, 50, 75, 99.9, 100])
def test_a_percentile_is_at_most_a_bin_above_numpy_s(percent, weights, x):
    graph = trace(_relu_network(weights), x)
    found = calibrate(graph, method(f"percentile:{percent}"), _batches(x))
    *hidden, logits = _activations(weights, x)
    for neurons, a in zip(graph.neurons, hidden, strict=True):
        exact = np.percentile(a, percent, method="inverted_cdf")
        rounding = 1e-5 * a.max()
        bin_width = a.max() / 2**14
        assert exact - rounding <= found[neurons.name] <= exact + bin_width + rounding
        # A silent majority leaves the first bin, not 0.
        assert found[neurons.name] > 0
    assert found[graph.output.name] == pytest.approx(logits.max(), rel=1e-5)


def test_zeros_count_among_the_activations():
    # Of eight activations six are 0: the 75th percentile is 0, and so the smallest λ there is.
    x = jnp.asarray([[0.0, 0, 0, 0], [0, 0, 1, 4]])
    graph = trace(jax.nn.relu, x)
    (neurons,) = graph.neurons
    for percent, expected in ((75, 4 / 2**14), (80, 1.0), (87.5, 1.0), (88, 4.0), (100, 4.0)):
        assert calibrate(graph, method(f"percentile:{percent}"), lambda: [x])[neurons.name] == (
            expected
        )


def test_percentiles_do_not_depend_on_batches(weights, x):
    graph = trace(_relu_network(weights), x)
    how = method("percentile:99")
    whole = calibrate(graph, how, lambda: [jnp.asarray(x)])
    parts = calibrate(graph, how, _batches(x))
    assert whole == pytest.approx(parts, rel=1 / 2**14)


def test_tcl_is_refused_for_a_bare_relu(weights, x):
    def network(x):
        x = clip(jax.nn.relu(x @ weights[0]), 1.0)
        return jax.nn.relu(x @ weights[1]) @ weights[2]

    with pytest.raises(InputError, match=r"has no trained λ .nor have 0 others.: convert"):
        calibrate(trace(network, x), method("tcl"), _batches(x))


def test_tcl_reads_the_output_alone(weights, x):
    graph = trace(lambda x: clip(jax.nn.relu(x @ weights[0]), 1.0) @ weights[1], x)
    found = calibrate(graph, method("tcl"), _batches(x))
    logits = np.clip(x @ weights[0], 0, 1) @ weights[1]
    assert found == {graph.output.name: pytest.approx(logits.max(), rel=1e-5)}


def test_a_silent_layer_is_refused():
    x = jnp.ones((2, 3))
    graph = trace(lambda x: clip(jax.nn.relu(x - 2.0), 1.0) + x, x)
    with pytest.raises(InputError, match="is 0 on every calibration image"):
        calibrate(graph, method("max"), lambda: [x])


def test_no_images_are_refused(weights, x):
    with pytest.raises(InputError, match="no calibration images"):
        calibrate(trace(_relu_network(weights), x), method("max"), list)


@pytest.mark.parametrize("text, name", [("tcl", "tcl"), ("max", "max")])
def test_methods_are_read(text, name):
    assert method(text).name == name and str(method(text)) == text
    assert str(method("percentile:99.9")) == "percentile:99.9"


@pytest.mark.parametrize(
    "text", ["", "mean", "max:3", "percentile", "percentile:0", "percentile:101", "percentile:x",
             "percentile:nan"]
)  # fmt: skip
def test_other_methods_are_refused(text):
    with pytest.raises(InputError, match=r"percentile:99.9|the norms are tcl, max and percentile"):
        method(text)
