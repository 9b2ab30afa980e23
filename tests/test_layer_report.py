"""The report by layer, against its definitions computed anew in NumPy."""

import json
from dataclasses import asdict

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tcl_jax import InputError, clip, convert, explain, simulation
from tcl_jax.conversion import UnsupportedOperation
from tcl_jax.report.layers import PARTS, _of_batch, as_json, layer_report

TIMES = (3, 20)


def _network(clipped, whole=False):
    rng = np.random.default_rng(0)
    w = [jnp.asarray(rng.normal(0, 0.7, s), jnp.float32) for s in ((4, 6), (6, 5), (5, 3))]

    def network(_, x):
        for layer, lam in zip(w[:2], (0.8, 1.1), strict=True):
            x = jax.nn.relu(x @ layer)
            x = clip(x, lam) if clipped else x
        return x @ w[2]

    # A percentile is an activation of the calibration images: of the same images, one potential
    # would reach its threshold or not as rounding has it.
    x, calibration = jnp.asarray(rng.normal(0, 1, (2, 9, 4)), jnp.float32)
    graph = convert(network, None, [calibration], norm="tcl" if clipped else "percentile:90")
    return simulation.quantise(graph, x) if whole else graph, x


def _reference(graph, x, clipped, timesteps, v0):
    """Activations, and in spikes potentials, counts, charges and what potentials began with."""
    ops = {type(n.op).__name__: n.op for n in graph.nodes}
    kernels = [n.op.kernel for n in graph.nodes if type(n.op).__name__ == "Dense"]
    dense = [np.asarray(kernel, np.float64) for kernel in kernels[:2]]
    theta = [np.asarray(n.op.threshold, np.float64) for n in graph.neurons]
    x = np.asarray(x, np.float64)
    whole = "Quantise" in ops
    if whole:
        x = np.rint(x * float(ops["Quantise"].rate))
    a, signal = [], x
    for w, at in zip(dense, theta, strict=True):
        signal = np.maximum(signal @ w / at, 0)
        signal = np.minimum(signal, 1) if clipped else signal
        a.append(signal)
    began = [np.rint(v0 * at) if whole else v0 * at for at in theta]
    v = [np.full(layer.shape, start) for layer, start in zip(a, began, strict=True)]
    counts = [np.zeros(layer.shape) for layer in a]
    charge = [np.zeros(layer.shape) for layer in a]
    for _ in range(timesteps):
        signal = x
        for i, w in enumerate(dense):
            current = signal @ w
            charge[i] += current
            v[i] = v[i] + current
            signal = (v[i] >= theta[i]).astype(np.float64)
            v[i] = v[i] - signal * theta[i]
            counts[i] += signal
    v, charge, began = (
        [q / at for q, at in zip(s, theta, strict=True)] for s in (v, charge, began)
    )
    return a, v, counts, charge, began


@pytest.mark.parametrize("clipped", [True, False])
@pytest.mark.parametrize("v0", [0.0, 0.5])
@pytest.mark.parametrize("whole", [False, True])
def test_rates_and_errors(clipped, v0, whole):
    graph, x = _network(clipped, whole)
    layers = layer_report(graph, [(x, jnp.ones(len(x), bool))], TIMES, v0=v0)
    assert [layer.name for layer in layers] == [n.name for n in graph.neurons]
    for t in TIMES:
        a, v, counts, charge, began = _reference(graph, x, clipped, t, v0)
        for i, layer in enumerate(layers):
            at = layer.at[t]
            bounded = np.minimum(a[i], 1)
            ideal = np.clip(np.floor(bounded * t + began[i]), 0, t) / t
            # The mean current itself, where the report goes by the membrane potential.
            given = np.clip(np.floor(charge[i] + began[i]), 0, t) / t
            assert at.rate == pytest.approx(counts[i].mean() / t, rel=1e-5)
            assert at.saturated == pytest.approx((v[i] >= 1).mean(), rel=1e-5)
            assert at.error == pytest.approx(np.abs(a[i] - counts[i] / t).mean(), rel=1e-4)
            assert at.clipping == pytest.approx(np.abs(a[i] - bounded).mean(), rel=1e-4, abs=1e-7)
            assert at.quantisation == pytest.approx(np.abs(bounded - ideal).mean(), rel=1e-4)
            assert at.inherited == pytest.approx(np.abs(ideal - given).mean(), rel=1e-4, abs=1e-7)
            uneven = np.abs(given - counts[i] / t).mean()
            assert at.unevenness == pytest.approx(uneven, rel=1e-4, abs=1e-7)
            assert at.error <= sum(getattr(at, part) for part in PARTS) + 1e-6
    first, second = layers
    assert first.at[TIMES[1]].inherited == first.at[TIMES[1]].unevenness == 0
    if not v0:  # where the paper's neurons start; from the middle both are small
        assert second.at[TIMES[1]].inherited > 0
    assert (first.at[TIMES[1]].clipping == 0) == clipped


def test_images_are_cut_to_what_memory_allows(monkeypatch):
    graph, x = _network(clipped=True)
    sizes = []

    def of_batch(graph, x, *mask, **how):
        sizes.append(len(x))
        return _of_batch(graph, x, *mask, **how)

    def report(room):
        monkeypatch.setattr("tcl_jax.report.layers._ROOM", room)
        return layer_report(graph, [(x, jnp.arange(9) < 7)], TIMES)

    monkeypatch.setattr("tcl_jax.report.layers._of_batch", of_batch)
    whole, cut = report(2**30), report(3 * 4 * 11 * 3)  # of three images, with 11 neurons each
    assert sizes == [9, 3, 3, 3]
    for one, other in zip(whole, cut, strict=True):
        assert other.histogram == one.histogram and other.dead == one.dead
        assert len(one.points["activation"]) == 7 * one.neurons
        assert len(other.points["3"]) == 3 * one.neurons
        for t in TIMES:
            assert asdict(other.at[t]) == pytest.approx(asdict(one.at[t]), rel=1e-5, abs=1e-7)


@pytest.mark.parametrize("clipped", [True, False])
def test_histogram_and_dead_neurons(clipped):
    graph, x = _network(clipped)
    layers = layer_report(graph, [(x, jnp.ones(len(x), bool))], TIMES)
    a, _, counts, _, _ = _reference(graph, x, clipped, TIMES[-1], 0.0)
    for i, layer in enumerate(layers):
        assert sum(layer.histogram) == a[i].size
        expected, _ = np.histogram(a[i], layer.edges)
        # A value on the edge of a bin may round into its neighbour.
        assert np.abs(np.cumsum(layer.histogram) - np.cumsum(expected)).max() <= 1
        assert layer.dead == pytest.approx((counts[i].sum(0) == 0).mean())
        assert layer.edges[-1] == pytest.approx(max(1, a[i].max()), rel=1e-6)


def test_batches_and_masks_change_nothing():
    graph, x = _network(False)
    whole = layer_report(graph, [(x, jnp.ones(9, bool))], TIMES)
    padded = jnp.concatenate([x[5:], jnp.full((1, 4), 50.0)])
    parts = [(x[:5], jnp.ones(5, bool)), (padded, jnp.arange(5) < 4)]
    for one, other in zip(whole, layer_report(graph, parts, TIMES), strict=True):
        assert one.dead == other.dead
        for t in TIMES:
            for name, value in vars(one.at[t]).items():
                assert getattr(other.at[t], name) == pytest.approx(value, rel=1e-5, abs=1e-7)


def test_what_is_written_is_json():
    graph, x = _network(True)
    layers = layer_report(graph, [(x, jnp.ones(9, bool))], TIMES)
    written = json.loads(json.dumps(as_json(layers, graph, images=9)))
    assert written["images"] == 9
    assert [np.float32(entry["lambda"]) for entry in written["layers"]] == [*np.float32([0.8, 1.1])]
    assert "points" not in written["layers"][0]


def test_no_images_and_no_time_are_refused():
    graph, x = _network(True)
    with pytest.raises(InputError, match="no images"):
        layer_report(graph, [], TIMES)
    with pytest.raises(InputError, match="at least 1"):
        layer_report(graph, [(x, jnp.ones(9, bool))], (0, 3))


def test_explain_counts(capsys):
    def network(w, x):
        x = jax.lax.conv_general_dilated(
            x, w, (2, 2), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"), feature_group_count=2
        )
        x = jax.nn.relu(clip(jax.nn.relu(x * 2.0 + 1.0), jnp.arange(1.0, 7.0)))
        return x.sum((1, 2))

    explain(network, jnp.ones((3, 3, 2, 6)), jnp.zeros((1, 8, 8, 4)))
    printed = capsys.readouterr().out
    assert "4×4×6" in printed and "neuron_2" not in printed
    # 16 positions, 9 places, 2 channels a group, 6 features; batch norm folded into the bias.
    assert f"{16 * 9 * 2 * 6:,}" in printed and f"{9 * 2 * 6 + 6}" in printed
    assert "1–6" in printed and "96 neurons" in printed
    with pytest.raises(UnsupportedOperation, match="tanh"):
        explain(lambda w, x: jnp.tanh(x), None, jnp.zeros((1, 8)))
