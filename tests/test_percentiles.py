"""Percentiles of activations, exact whatever the data, against sorted values."""

import math

import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from tcl_jax.conversion import calibrate, norm_method, trace


def test_zeros_count_among_the_activations():
    # Of eight activations six are 0: the 75th percentile is 0, and so that of the other two stands.
    x = jnp.asarray([[0.0, 0, 0, 0], [0, 0, 1, 4]])
    graph = trace(jax.nn.relu, x)
    (neurons,) = graph.neurons
    for percent, expected in ((50, 1.0), (75, 4.0), (80, 1.0), (87.5, 1.0), (88, 4.0), (100, 4.0)):
        assert calibrate(graph, norm_method(f"percentile:{percent}"), lambda: [x])[
            neurons.name
        ] == (expected)


# Of any size that float32 has, and many of them alike; subnormal ones are 0 to XLA on a CPU.
_values = st.one_of(
    st.floats(-1e3, 1e3, width=32, allow_subnormal=False),
    st.floats(-3.4028234663852886e38, 3.4028234663852886e38, width=32, allow_subnormal=False),
    st.sampled_from([0.0, -1.0, 1.0, 1e-30]),
)


@given(
    st.lists(st.tuples(_values, _values, _values), min_size=12, max_size=12),
    st.one_of(st.floats(0, 100, exclude_min=True), st.sampled_from([50.0, 99.9, 100.0])),
    st.booleans(),
)
def test_a_percentile_is_an_activation_exactly(rows, percent, per_channel):
    x = np.asarray(rows, np.float32)
    graph = trace(jax.nn.relu, x)
    if x.max() <= 0:
        return
    how = norm_method(f"percentile:{percent!r}" + "/channel" * per_channel)
    (found, _) = calibrate(graph, how, lambda: np.split(x, 3)).values()

    def expected(values):
        active = np.sort(values[values > 0])
        ordered = np.sort(np.maximum(values, 0))
        at = ordered[max(math.ceil(values.size * (percent / 100)), 1) - 1]
        return at if at > 0 else active[max(math.ceil(active.size * (percent / 100)), 1) - 1]

    layer = expected(x.ravel())
    if per_channel:
        channels = [expected(c) if c.max() > 0 else layer for c in x.T]
        np.testing.assert_array_equal(found, channels)
    else:
        assert found == layer


def test_one_hot_value_moves_a_percentile_as_any_other_would():
    x = np.abs(np.random.default_rng(0).normal(0, 1, (2000, 64))).astype(np.float32)
    graph = trace(jax.nn.relu, x[:1])
    for hot in (1e6, 1e30):
        x[7, 3] = hot
        found = calibrate(graph, norm_method("percentile:99.9"), lambda: [x])[graph.neurons[0].name]
        assert found == np.percentile(x, 99.9, method="inverted_cdf") < 4
