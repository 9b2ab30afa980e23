"""Spike-Norm against NumPy, one population after the other and one step after the other."""

import itertools
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tcl_jax import InputError
from tcl_jax.calibration import SpikeNorm
from tcl_jax.conversion import calibrate, norm_method, trace
from tcl_jax.promotion import implicit


def _spike_norm(network, x, populations, timesteps, scaling, per_channel) -> list[np.ndarray]:
    """One population after the other, one step after the other."""
    thresholds: list[np.ndarray] = []
    while len(thresholds) < populations:
        potentials = [np.float32(0)] * len(thresholds)
        currents = []
        for _ in range(timesteps):
            index = itertools.count()

            def neurons(z, index=index, potentials=potentials, currents=currents):
                k = next(index)
                if k == len(thresholds):
                    currents.append(z)
                if k >= len(thresholds):
                    return np.zeros_like(z)
                spikes = thresholds[k] * (potentials[k] + z >= thresholds[k])
                potentials[k] = potentials[k] + z - spikes
                return spikes.astype(np.float32)

            network(x, neurons)
        # [t, b, c]
        found = np.max(currents, axis=(0, 1)) if per_channel else np.max(currents)
        thresholds.append(np.float32(scaling) * found)
    return thresholds


def _chain(w):
    @implicit()
    def network(x, act):
        return act(act(act(x @ w[0] + w[4][0]) @ w[1] - w[4][1]) @ w[2]) @ w[3]

    return network, 3


def _residual(w):
    @implicit()
    def network(x, act):
        x = act(x @ w[0])
        x = act(act(x @ w[1]) @ w[2] + x)
        return x @ w[3]

    return network, 3


def _branches(w):
    @implicit()
    def network(x, act):
        x = act(act(x @ w[0]) @ w[1] + act(x @ w[2] + w[4][0]))
        return x @ w[3]

    return network, 3


SPIKING = {"chain": _chain, "residual": _residual, "branches": _branches}


@pytest.mark.parametrize("norm", ["spike_norm", "spike_norm:0.5", "spike_norm:0.5/channel"])
@pytest.mark.parametrize("kind", SPIKING)
def test_spike_norm_is_the_largest_current_step_by_step(kind, norm, eighths):
    network, populations = SPIKING[kind](eighths(5, 6, 6))
    x, how = eighths(9, 6), replace(norm_method(norm), timesteps=12)
    graph = trace(lambda x: network(x, jax.nn.relu), x)
    parts = [jnp.asarray(x[:4]), jnp.asarray(x[4:])]
    found = calibrate(graph, how, lambda: parts)
    expected = _spike_norm(network, x, populations, 12, how.scaling, how.channel)
    analog = calibrate(graph, norm_method("max"), lambda: parts)
    names = [n.name for n in graph.neurons]
    for name, own in zip(names, expected, strict=True):
        # A channel without current takes its layer's.
        np.testing.assert_array_equal(found[name], np.where(own > 0, own, own.max()))
    if not how.channel:
        first, *_, last = names
        assert found[first] == analog[first] * how.scaling, "its currents are the images' own"
        assert found[last] != analog[last] * how.scaling
    assert found[graph.output.name] == analog[graph.output.name]


def test_spike_norm_simulates_the_first_images_alone(eighths):
    network, _ = _chain(eighths(5, 6, 6))
    x = eighths(12, 6)
    x[-1] *= 4
    graph = trace(lambda x: network(x, jax.nn.relu), x)

    def found(batches, **options):
        norms = calibrate(graph, SpikeNorm(timesteps=5, **options), lambda: batches)
        return [norms[n.name] for n in graph.neurons]

    parts = [jnp.asarray(x[:5]), jnp.asarray(x[5:])]
    assert found(parts, images=7) == found([jnp.asarray(x[:7])]) != found(parts)


def test_spike_norm_wants_steps_enough():
    # λ is 4; of (4, 2) the first fires in the first step, and the second only in the second.
    x = jnp.asarray([[4.0, 2.0]])
    w = jnp.asarray([[-0.25], [1.0]])
    graph = trace(lambda x: jax.nn.relu(jax.nn.relu(x) @ w), x)
    first, second = (n.name for n in graph.neurons)
    with pytest.raises(InputError, match="no current above 0 in 1 steps"):
        calibrate(graph, SpikeNorm(timesteps=1), lambda: [x])
    norms = calibrate(graph, SpikeNorm(timesteps=2), lambda: [x])
    assert (norms[first], norms[second]) == (4.0, 4.0 - 0.25 * 4.0)
    with pytest.raises(InputError, match="at least 1, got 0"):
        SpikeNorm(timesteps=0)
    with pytest.raises(InputError, match="images to simulate must be at least 1, got 0"):
        SpikeNorm(images=0)
