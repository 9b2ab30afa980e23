"""What is silent, or not finite: norm-factors, or the reason why there are none."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tcl_jax import InputError, clip, convert, simulation
from tcl_jax.conversion import calibrate, evaluate, norm_method, trace
from tcl_jax.promotion import implicit

_NORMS = ("max", "percentile:99.9", "spike_norm", "model_based")


@pytest.mark.parametrize("norm", [*_NORMS, *(f"{name}/channel" for name in _NORMS)])
def test_a_silent_layer_without_clip_has_no_norm_factor(norm):
    """From data, that is: of what can never be active, as the weights tell, any will do."""
    x = jnp.ones((2, 3))
    graph = trace(lambda x: jax.nn.relu(x - 2.0) + jax.nn.relu(x), x)
    if norm.startswith("model_based"):
        silent, active, _ = calibrate(graph, norm_method(norm), lambda: [x]).values()
        assert np.all(silent == 1.0) and np.all(active == 1.0)
        return
    says = "receives no current above 0" if "spike" in norm else "is 0 on every calibration image"
    with pytest.raises(InputError, match=f"^layer 'relu' {says}") as refused:
        calibrate(graph, norm_method(norm), lambda: [x])
    assert "learn" not in str(refused.value)


@pytest.mark.parametrize("norm", [*_NORMS, *(f"{name}/channel" for name in _NORMS)])
def test_a_silent_layer_keeps_its_trained_clip(norm):
    x = jnp.ones((2, 3))
    lam = np.array([0.5, 0.75, 1.0], np.float32)
    graph = trace(lambda x: clip(jax.nn.relu(x - 2.0), lam) + jax.nn.relu(x), x)
    found = calibrate(graph, norm_method(norm), lambda: [x])
    np.testing.assert_array_equal(found[graph.neurons[0].name], lam)


@pytest.mark.parametrize(
    ("logits", "norm_factor"), [([-3.0, -2.0], 3.0), ([0.0, 0.0], 1.0), ([-3.0, 0.5], 0.5)]
)
def test_an_output_that_is_never_above_0_has_a_norm_factor(logits, norm_factor):
    x = jnp.ones((4, 2))
    graph = trace(implicit()(lambda x: clip(jax.nn.relu(x), 2.0) * jnp.asarray(logits)), x)
    assert calibrate(graph, norm_method("tcl"), lambda: [x]) == {"output": norm_factor}


@pytest.mark.parametrize("norm", ["tcl", "max"])
def test_what_is_not_finite_is_refused_for_its_own_reason(norm):
    x = jnp.ones((2, 3))
    graph = trace(lambda x: clip(jax.nn.relu(x), 2.0) * 1e30 * 1e30, x)
    with pytest.raises(InputError, match="'output' exceeds float32 on the calibration images"):
        calibrate(graph, norm_method(norm), lambda: [x])
    with pytest.raises(InputError, match="batch 2 holds values that are not finite"):
        calibrate(graph, norm_method(norm), lambda: [x, x.at[1, 2].set(jnp.nan)])


# --- From the calibration images to the spikes ----------------------------------------------------


def _act(z):
    return clip(jax.nn.relu(z), 2.0)


@pytest.fixture
def weights(rng):
    shapes = {"a": (8, 16), "b": (16, 16), "c": (16, 16), "d": (16, 4)}
    return {k: jnp.asarray(rng.normal(0, 0.4, s), jnp.float32) for k, s in shapes.items()}


def _dead_layer(w, x):
    return _act(_act(x @ w["a"] - 100.0) @ w["b"] + 0.5) @ w["d"]


def _dead_branch(w, x):
    x = _act(x @ w["a"])
    return _act(x + _act(x @ w["b"] - 100.0) @ w["c"]) @ w["d"]


@implicit()
def _dead_channels(w, x):
    return _act(_act(x @ w["a"] - 100.0 * (jnp.arange(16) % 3 > 0)) @ w["b"]) @ w["d"]


def _negative(w, x):
    return _act(_act(x @ w["a"]) @ w["b"]) @ w["d"] - 40.0


@pytest.mark.parametrize("network", [_dead_layer, _dead_branch, _dead_channels, _negative])
def test_what_is_silent_converts_with_trained_bounds(network, weights, rng):
    x = jnp.asarray(rng.normal(0, 1, (32, 8)), jnp.float32)
    graph = convert(network, weights, x)
    logits = network(weights, x)
    np.testing.assert_allclose(evaluate(graph, x), logits, rtol=1e-5, atol=1e-5)
    state = simulation.simulate(graph, x, timesteps=1000)
    output = graph.output.op
    charge = state.output.membrane + state.output.counts * output.threshold
    found = charge * output.unit / 1000
    np.testing.assert_allclose(found, logits, atol=0.02 * float(jnp.abs(logits).max()))


@pytest.mark.parametrize("bias", [0.0, 0.5])
def test_a_black_image_is_enough_for_trained_bounds(bias, weights):
    def network(w, x):
        return _act(x @ w["a"] + bias) @ w["b"]

    black = jnp.zeros((1, 8))
    graph = convert(network, weights, black)
    np.testing.assert_allclose(evaluate(graph, black), network(weights, black), atol=1e-5)


def test_a_black_image_is_named_where_norm_factors_are_read_from_it(weights):
    def network(w, x):
        return jax.nn.relu(x @ w["a"]) @ w["b"]

    with pytest.raises(InputError, match='is 0 on every calibration image, so that norm="max"'):
        convert(network, weights, jnp.zeros((1, 8)), norm="max")
