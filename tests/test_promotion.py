"""Whether JAX may promote types and ranks, as for most users, or not, as for every other test."""

import contextlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tcl_jax import clip, convert, simulation
from tcl_jax.promotion import implicit


def _network(weights, x):
    """Full and depthwise convolution, a clip by channel, an average, a dense layer."""
    dims = ("NHWC", "HWIO", "NHWC")
    for kernel, groups, lam in ((weights["full"], 1, weights["lam"]), (weights["each"], 4, 1.0)):
        x = jax.lax.conv_general_dilated(
            x, kernel, (1, 1), "SAME", dimension_numbers=dims, feature_group_count=groups
        )
        x = clip(jax.nn.relu(x + weights["bias"].reshape(1, 1, 1, -1)), lam)
    return x.mean((1, 2)) @ weights["dense"]


@pytest.fixture
def weights(eighths):
    shapes = {"full": (3, 3, 2, 4), "each": (3, 3, 1, 4), "bias": (4,), "dense": (4, 3)}
    return {k: eighths(*s) for k, s in shapes.items()} | {"lam": np.float32([0.5, 1, 2, 4])}


@pytest.mark.parametrize("norm", ["tcl", "max", "percentile:99.9/channel", "spike_norm"])
def test_conversion_and_simulation(weights, eighths, norm):
    images = jnp.asarray(eighths(5, 6, 6, 2))
    found = []
    for setting in (contextlib.nullcontext, implicit):
        with setting():
            graph = convert(_network, weights, [images], norm=norm)
            lowered = simulation.lower(graph, "cpu")
            state = simulation.simulate(lowered, images, timesteps=20)
            values = simulation.logits(lowered, state, t=20)
        found.append((values, state.output.counts, simulation.classify(lowered, state)))
    jax.tree.map(np.testing.assert_array_equal, *found)


@pytest.mark.parametrize(
    "neurons", [simulation.IF(leak=0.25, floor=0.5), simulation.IF(v0=0.5, refractory=1)]
)
@pytest.mark.parametrize("coding", ["analog", "poisson", "rate"])
def test_neurons_and_codings(weights, eighths, neurons, coding):
    graph = convert(_network, weights, [jnp.asarray(eighths(5, 6, 6, 2))])
    batch = {"image": eighths(4, 6, 6, 2), "label": np.arange(4) % 3, "mask": np.ones(4, bool)}
    how = simulation.Simulation(neurons, simulation.CODINGS.read(coding))
    expected = simulation.latency_curve(graph, [batch], 10, how)
    with implicit():
        found = simulation.latency_curve(graph, [batch], 10, how)
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_the_clip_and_its_gradients(eighths, dtype):
    a, lam = jnp.asarray(eighths(3, 4), dtype), jnp.asarray([0.25, 0.5, 0.75, 1])

    def gradients():
        return jax.value_and_grad(lambda a, lam: clip(a, lam).sum(), (0, 1))(a, lam)

    expected = gradients()
    with implicit():
        jax.tree.map(np.testing.assert_array_equal, gradients(), expected)


def test_counting_deciding_and_whole_numbers(weights, eighths):
    images = jnp.asarray(eighths(6, 6, 6, 2))
    graph = convert(_network, weights, [images])
    batch = {"image": images, "label": np.arange(6) % 3, "mask": np.arange(6) < 5}
    found = []
    for setting in (contextlib.nullcontext, implicit):
        with setting():
            accuracy, activity = simulation.measure(graph, [batch], 10)
            decided = simulation.decide(graph, [batch], 2.0, 10, slots=6)
            integer = simulation.quantise(graph, images)
            counts = simulation.simulate(integer, images, timesteps=10).output.counts
        found.append((accuracy, activity.operations(), decided.classes, decided.steps, counts))
    jax.tree.map(np.testing.assert_array_equal, *found)


def test_what_breaks_the_user_s_own_setting_is_said_to():
    """Not that it took one image at a time, for which it would work."""
    with pytest.raises(ValueError, match="jax_numpy_rank_promotion"):
        convert(lambda w, x: x @ w + w[0], jnp.eye(3), [jnp.ones((2, 3))], norm="max")
