"""Data-normalisation changes no spike: thresholds λ with spikes of size λ, or 1 and 1.

In float64, where a rounding differs from a tie by ten orders of magnitude: the weights are random,
so that no membrane potential meets its threshold exactly.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tcl_jax import clip
from tcl_jax.conversion import fold, normalise, trace, with_norms
from tcl_jax.simulation import spike_trains

TIMESTEPS = 60


def _conv(x, w, stride=1, groups=1):
    return jax.lax.conv_general_dilated(
        x,
        w,
        (stride, stride),
        "SAME",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=groups,
    )


def _tcl(x, lam):
    return clip(jax.nn.relu(x), lam)


def _residual(x, w):
    x = _tcl(_conv(x, w((3, 3, 2, 4))), 0.7)
    y = _tcl(_conv(x, w((3, 3, 4, 4))), 1.3)
    x = _tcl(_conv(y, w((3, 3, 4, 4))) + x, 2.1)
    y = _tcl(_conv(x, w((3, 3, 4, 6)), stride=2), 0.4)
    return _tcl(_conv(y, w((3, 3, 6, 6))) + _conv(x, w((1, 1, 4, 6)), stride=2), 0.9)


def _concat(x, w):
    x = _tcl(_conv(x, w((3, 3, 2, 4))), 0.7)
    parts = (
        _tcl(_conv(x, w((1, 1, 4, 2))), 0.3),
        _tcl(_conv(x, w((3, 3, 4, 3))), 1.9),
        jax.lax.reduce_window(x, 0.0, jax.lax.add, (1, 3, 3, 1), (1, 1, 1, 1), "SAME") / 9,
    )
    return _tcl(_conv(jnp.concatenate(parts, -1), w((3, 3, 9, 5))), 1.1)


def _depthwise(x, w):
    x = _tcl(_conv(x, w((3, 3, 2, 4))), jnp.asarray([0.5, 0.8, 1.1, 1.4]))
    x = _tcl(_conv(x, w((3, 3, 1, 4)) * 2, groups=4), jnp.asarray([1.2, 0.9, 0.6, 0.3]))
    return _tcl(_conv(x, w((1, 1, 4, 6))), 0.8)


def _strided(x, w):
    x = _tcl(_conv(x, w((3, 3, 2, 4)), stride=2), 0.6)
    x = jax.lax.reduce_window(x, 0.0, jax.lax.add, (1, 2, 2, 1), (1, 2, 2, 1), "VALID") / 4
    return _tcl(_conv(x, w((2, 2, 4, 5)), stride=2), 1.2)


@pytest.mark.parametrize("body", [_residual, _concat, _depthwise, _strided])
def test_the_same_spikes(body):
    with jax.enable_x64(True):

        def network(x):
            rng = np.random.default_rng(5)  # the same weights at every call

            def weights(shape):
                return jnp.asarray(rng.normal(0, (2.5 / np.prod(shape[:-1])) ** 0.5, shape))

            x = body(x, weights)
            return x.mean((1, 2)) @ weights((x.shape[-1], 3))

        x = jnp.asarray(np.random.default_rng(1).normal(0.3, 1.0, (3, 8, 8, 2)))
        thresholds = with_norms(fold(trace(network, x)), {"output": 0.6})
        before = spike_trains(thresholds, x, TIMESTEPS)
        after = spike_trains(normalise(thresholds), x, TIMESTEPS)
    assert before.keys() == after.keys()
    for node in thresholds.spiking:
        expected = np.asarray(before[node.name]) > 0
        assert 0.01 < expected.mean() < 0.99, node.name
        assert set(np.unique(after[node.name])) == {0.0, 1.0}
        np.testing.assert_array_equal(np.asarray(after[node.name]) > 0, expected)
