"""Weights of fewer bits: which network they make, and what converting a run says of it."""

import json
import re
from functools import cache

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import wiring
from cli import (
    DigitsRun,
    succeed,
    trained,  # noqa: F401
)

from tcl_jax import InputError, clip, convert, simulation
from tcl_jax import graph as g
from tcl_jax.conversion import Artifact, evaluate, load, save
from tcl_jax.graph.synapses import WEIGHTS, in_bfloat16
from tcl_jax.promotion import implicit
from tcl_jax.runs.converted import open_converted
from tcl_jax.runs.report import report_run

LATENCY = 25


@implicit()
def _network(w, x):
    """Convolutions, one of them depthwise, a pool and two linear maps."""
    dims = ("NHWC", "HWIO", "NHWC")
    for kernel, groups in ((w["full"], 1), (w["depthwise"], 4)):
        x = jax.lax.conv_general_dilated(
            x, kernel, (1, 1), "SAME", dimension_numbers=dims, feature_group_count=groups
        )
        x = clip(jax.nn.relu(x + 0.1), 0.9)
    x = jax.lax.reduce_window(x, 0.0, jax.lax.add, (1, 2, 2, 1), (1, 2, 2, 1), "VALID") / 4
    x = clip(jax.nn.relu(x.reshape(x.shape[0], -1) @ w["hidden"]), 1.3)
    return x @ w["last"]


@pytest.fixture
def weights(rng):
    shapes = {"full": (3, 3, 2, 4), "depthwise": (3, 3, 1, 4), "hidden": (36, 9), "last": (9, 5)}
    return {k: jnp.asarray(rng.normal(0, 0.4, s), jnp.float32) for k, s in shapes.items()}


@pytest.fixture
def images(rng):
    return jnp.asarray(rng.integers(-128, 128, (7, 6, 6, 2)) / 64, jnp.float32)


@pytest.fixture
def graph(weights, images):
    return convert(_network, weights, images)


def _kernels(graph):
    return [n.op.kernel for n in graph.nodes if isinstance(n.op, g.Conv | g.Dense)]


# --- bfloat16 -------------------------------------------------------------------------------


def test_kernels_alone_are_rounded_to_the_nearest_bfloat16(graph, images):
    found = in_bfloat16(graph)
    for kernel, exact in zip(_kernels(found), _kernels(graph), strict=True):
        assert kernel.dtype == jnp.bfloat16
        np.testing.assert_array_equal(kernel, np.asarray(exact).astype(ml_dtypes.bfloat16))
        assert np.any(np.asarray(kernel, np.float32) != np.asarray(exact)), "nothing to round"
    others = [x for x in jax.tree.leaves(found) if x.dtype != jnp.bfloat16]
    assert len(others) == len(jax.tree.leaves(graph)) - 4
    assert {x.dtype for x in others} == {np.dtype("float32")} and found.dtype == jnp.float32


def test_it_is_the_float32_network_of_those_weights(graph, images):
    """Images are not rounded, nor are averages.  Spikes are the same bit by bit, for their sums are
    exact in any order."""
    found = in_bfloat16(graph)
    exact = jax.tree.map(lambda x: x.astype(jnp.float32), found)
    logits = evaluate(exact, images)
    np.testing.assert_allclose(evaluate(found, images), logits, rtol=0, atol=1e-6)
    expected = simulation.simulate(exact, images, LATENCY)
    assert np.sum(expected.output.counts) > 50
    executors = (simulation.Scan(), simulation.Blocked(4))
    for other in (found, simulation.lower(found, "tpu")):
        for executor in executors:
            how = simulation.Simulation(executor=executor)
            state = simulation.simulate(other, images, LATENCY, how)
            jax.tree.map(np.testing.assert_array_equal, state.output.counts, expected.output.counts)


@pytest.mark.parametrize("platform", ["cpu", "tpu"])
def test_lowered_weights_are_float32_once_and_not_at_every_step(platform, graph):
    lowered = simulation.lower(in_bfloat16(graph), platform)
    assert {x.dtype for x in jax.tree.leaves(lowered)} == {np.dtype("float32")}


def test_it_is_saved_and_loaded(graph, tmp_path):
    found = in_bfloat16(graph)
    save(Artifact(found, {}), tmp_path / "snn")
    for one, other in zip(
        jax.tree.leaves(load(tmp_path / "snn").graph), jax.tree.leaves(found), strict=True
    ):
        assert one.dtype == other.dtype
        np.testing.assert_array_equal(one, other)


# --- int8, read as an analog network --------------------------------------------------------


def test_activations_of_whole_numbers_are_those_that_rates_tend_to(graph, images):
    whole = simulation.quantise(graph, images)
    seen: dict = {}
    logits = evaluate(whole, images, seen.__setitem__)
    np.testing.assert_allclose(logits, evaluate(whole, images), rtol=0, atol=1e-6)
    exact: dict = {}
    evaluate(graph, images, exact.__setitem__)
    state, trains = (
        of(whole, images, 4000) for of in (simulation.simulate, simulation.spike_trains)
    )
    for neuron in whole.neurons:
        rates = np.mean(trains[neuron.name], 0)
        np.testing.assert_allclose(seen[neuron.name], rates, rtol=0, atol=0.01)
        np.testing.assert_allclose(seen[neuron.name], exact[neuron.name], rtol=0, atol=0.05)
        assert np.max(np.abs(seen[neuron.name] - exact[neuron.name])) > 1e-4, "nothing rounded"
    found = simulation.logits(whole, state, 4000)
    np.testing.assert_allclose(found, logits, rtol=0, atol=0.02 * np.abs(logits).max())


def test_they_are_those_of_numpy(rng):
    """A linear map of rounded images, in float64."""
    w = jnp.asarray(rng.normal(0, 1, (6, 4)), jnp.float32)
    x = jnp.asarray(rng.normal(0, 1, (3, 6)), jnp.float32)
    graph = convert(lambda w, x: clip(jax.nn.relu(x @ w - 0.2), 1.1) @ jnp.eye(4), w, x)
    whole = simulation.quantise(graph, x)
    (quantise,) = wiring.operations(whole, g.Quantise)
    hidden, _ = wiring.operations(whole, g.Dense)
    (neuron,) = whole.neurons
    current = np.rint(np.asarray(x) * np.asarray(quantise.rate)) @ np.asarray(hidden.kernel, float)
    expected = (current + np.asarray(hidden.bias)) / np.asarray(neuron.op.threshold)
    seen: dict = {}
    evaluate(whole, x, seen.__setitem__)
    np.testing.assert_allclose(seen[neuron.name], expected.clip(0, 1), rtol=1e-6, atol=1e-7)


def test_whole_numbers_are_decided_adaptively_like_any(graph, images):
    """Images that run to the end are given the class of that time."""
    whole = simulation.quantise(graph, images)
    batch = {"image": images, "label": np.arange(7) % 5, "mask": np.ones(7, bool)}
    found = simulation.decide(whole, [batch], np.inf, LATENCY, slots=3)
    state = simulation.simulate(whole, images, LATENCY)
    np.testing.assert_array_equal(found.classes, simulation.classify(whole, state))
    assert set(found.steps) == {LATENCY}
    early = simulation.decide(whole, [batch], 2.0, LATENCY, slots=3)
    assert early.steps.min() < LATENCY


# --- Runs -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def rounded(trained: DigitsRun):  # noqa: F811
    """A run, and what `convert.py` prints of it by type of weights, which is the network's name."""

    @cache
    def printed(weights: str) -> str:
        options = ("--weights", weights, "--snn", weights, "--report-images", 0)
        return succeed("convert", trained.folder, *options).out

    return trained.folder, printed


TYPES = pytest.mark.parametrize(
    "weights", [pytest.param("bfloat16", marks=pytest.mark.long), "int8"]
)


@TYPES
def test_converting_says_what_rounding_changes(rounded, weights):
    folder, converted = rounded
    assert "weights of" not in converted("float32")
    printed = converted(weights)
    exact = open_converted(folder, "float32")
    artifact = load(folder / weights)
    about = artifact.about
    assert about["weights"] == weights and about["rounding"]["images"] == 359
    assert exact.artifact.about["weights"] == "float32"
    assert exact.artifact.about["rounding"] is None
    assert {str(k.dtype) for k in _kernels(artifact.graph)} == {weights}
    a: dict = {}
    b: dict = {}
    classes, labels, sums = [], [], {}
    for batch in exact.batches("test", 359):
        logits = [
            np.asarray(evaluate(graph, batch["image"], seen.__setitem__))
            for graph, seen in ((exact.artifact.graph, a), (artifact.graph, b))
        ]
        classes, labels = [found.argmax(-1) for found in logits], np.asarray(batch["label"])
        sums = {n.name: np.abs(np.asarray(a[n.name]) - b[n.name]) for n in artifact.graph.neurons}
    rounding = about["rounding"]
    assert rounding["same_class"] == np.sum(classes[0] == classes[1]) > 340
    for kind, found in zip(("exact", "rounded"), classes, strict=True):
        assert rounding["accuracy"][kind] == pytest.approx(np.mean(found == labels), abs=1e-6)
    for name, change in sums.items():
        assert rounding["layers"][name] == pytest.approx(change.mean(), rel=1e-4)
        assert 1e-5 < rounding["layers"][name] < 0.02
    out = " ".join(printed.split())
    assert f"what weights of {weights} change" in out
    told = f"the same class on {rounding['same_class']} of 359 test images, accuracy"
    assert f"{told} {rounding['accuracy']['rounded']:.2%} instead of" in out
    for name, change in rounding["layers"].items():
        shown = name.removeprefix("CNET/").removesuffix("/tcl/neuron")
        assert re.search(rf"│ {shown} +│ +[\d.]+ │ +{100 * change:.3f} │", printed)


@pytest.mark.long
@pytest.mark.parametrize("weights", ["bfloat16", "int8"])
def test_layers_of_a_rounded_network_are_reported_like_any(rounded, weights):
    folder, converted = rounded
    converted("float32"), converted(weights)
    exact, report = (
        report_run(open_converted(folder, name), images=40, timesteps=[50])
        for name in ("float32", weights)
    )
    for one, other in zip(report, exact, strict=True):
        at, expected = one.at[50], other.at[50]
        assert at.rate == pytest.approx(expected.rate, abs=0.01)
        assert at.error == pytest.approx(expected.error, abs=0.01)


@TYPES
def test_a_rounded_network_is_simulated_like_any(rounded, weights):
    folder, converted = rounded
    converted(weights)
    printed = succeed("simulate", folder, "--snn", weights, "--timesteps", 40, "--energy")
    summary = json.loads((folder / weights / "summary.json").read_text())
    assert summary["weights"] == weights
    assert summary["dtype"] == {"int8": "int32"}.get(weights, "float32")
    assert summary["snn_accuracy"]["40"] > summary["ann_accuracy"] - 0.03
    assert f"{summary['snn_accuracy']['40']:.2%}" in printed.out
    assert f"weights of {weights}" in " ".join(printed.out.split())
    adaptive = ("--adaptive", "--max-loss", 5, "--calibration-images", 200, "--timesteps", 20)
    succeed("simulate", folder, "--snn", weights, *adaptive)
    found = json.loads((folder / weights / "adaptive.json").read_text())
    assert 1 <= found["mean_steps"] <= 20 and found["weights"] == weights


def test_an_unknown_type_of_weights_is_refused():
    with pytest.raises(InputError, match="type of weights 'bfloat': did you mean 'bfloat16'"):
        WEIGHTS.find("bfloat")
