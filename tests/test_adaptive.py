"""Adaptive latency: every image stops when and as the simulation of all to the end says."""

import json
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cli import converted as converted
from cli import succeed
from cli import trained as trained

from tcl_jax import InputError, clip, cluster, convert
from tcl_jax.runs.simulate import simulate_run
from tcl_jax.simulation import IF, MARGINS, Blocked, Membrane, Scan, Simulation, quantise, simulate
from tcl_jax.simulation.adaptive import Record, _fewer, calibrate, decide, read, record
from tcl_jax.simulation.margins import Charge, Counts
from tcl_jax.simulation.settings import PAPER

T = 30


@pytest.fixture(scope="module")
def network():
    """Numbers that are exact in float32 in any order, and images that take their time."""
    rng = np.random.default_rng(1)
    w = [jnp.asarray(rng.integers(-8, 9, s) / 8, jnp.float32) for s in ((6, 16), (16, 4))]

    def forward(w, x):
        return clip(jax.nn.relu(x @ w[0]), 2.0) @ w[1]

    x = rng.integers(-8, 9, (23, 6)) / 16
    labels = rng.integers(0, 4, 23)
    return convert(forward, w, [jnp.ones((1, 6))], norm="tcl"), x.astype(np.float32), labels


def _batches(x, labels, size):
    """With padding of images that would fire a lot."""
    for i in range(0, len(x), size):
        kept = len(x[i : i + size])
        image = np.full((size, 6), 3.0, np.float32)
        label = np.zeros(size, np.int32)
        image[:kept], label[:kept] = x[i : i + size], labels[i : i + size]
        yield {"image": image, "label": label, "mask": np.arange(size) < kept}


SETTINGS = {
    "as it is": Simulation(),
    "by membrane": Simulation(readout=Membrane()),
    "delayed": Simulation(delay=5),
    "other neurons": Simulation(IF(v0=0.5, refractory=1)),
}


@pytest.mark.parametrize("slots", [1, 5, 32])
@pytest.mark.parametrize("name", [*SETTINGS, "counted"])
def test_decisions_are_those_of_the_whole_simulation(network, name, slots):
    graph, x, labels = network
    how, margin = SETTINGS.get(name, PAPER), MARGINS["counts" if name == "counted" else "charge"]()
    # In the same order, for a margin may meet the bound but for its last bits.
    full = record(graph, _batches(x, labels, 8), T, replace(how, executor=Scan()), margin)
    blocked = replace(how, executor=Blocked(8))
    in_blocks = record(graph, _batches(x, labels, 8), T, blocked, margin)
    np.testing.assert_array_equal(in_blocks.classes, full.classes)
    np.testing.assert_allclose(in_blocks.margins, full.margins, rtol=0, atol=1e-5)
    assert full.labels.tolist() == labels.tolist()
    bound = float(np.quantile(full.margins[np.isfinite(full.margins)], 0.6))
    expected = full.stopped(bound)
    assert len(set(expected.steps.tolist())) > 3 and expected.steps.max() == T, "no test"
    told = []
    found = decide(
        graph, _batches(x, labels, 7), bound, T, how, margin, slots=slots, done=told.append
    )
    np.testing.assert_array_equal(found.steps, expected.steps)
    np.testing.assert_array_equal(found.classes, expected.classes)
    np.testing.assert_array_equal(found.labels, labels)
    assert sum(told) == len(x)
    assert found.steps.min() > how.delay


@pytest.mark.parametrize(
    "taken, slots, devices, expected",
    [
        *[(100, 100, 1, 100), (26, 100, 1, 100), (25, 100, 1, 25), (7, 100, 1, 7), (1, 100, 1, 1)],
        *[(25, 100, 4, 28), (29, 112, 4, 112), (28, 112, 4, 28), (5, 112, 4, 8), (1, 4, 4, 4)],
    ],
)
def test_slots_shrink_to_what_is_left(taken, slots, devices, expected):
    assert _fewer(taken, slots, devices) == expected


def test_slots_over_devices(network):
    graph, x, labels = network
    four = cluster.everywhere()
    found = decide(
        four.replicate(graph),
        _batches(x, labels, 8),
        1.0,
        T,
        slots=8,
        cluster=four,
    )
    expected = record(graph, _batches(x, labels, 8), T).stopped(1.0)
    np.testing.assert_array_equal(found.steps, expected.steps)
    np.testing.assert_array_equal(found.classes, expected.classes)


def test_margins_are_of_charges(network):
    graph, x, labels = network
    full = record(graph, _batches(x, labels, 23), T)
    for t in (1, 7, T):
        state = simulate(graph, jnp.asarray(x), t)
        charge = np.asarray(state.output.counts + state.output.membrane)
        for i in range(len(x)):
            own = full.classes[t - 1, i]
            margin = charge[i, own] - np.delete(charge[i], own).max()
            assert full.margins[t - 1, i] == margin
        summed = Simulation(readout=Membrane())
        state = simulate(graph, jnp.asarray(x), t, summed)
        by_charge, margin = read(graph, state, summed)
        charge = np.asarray(state.output)
        np.testing.assert_array_equal(by_charge, charge.argmax(-1))
        np.testing.assert_array_equal(margin, np.diff(np.sort(charge, -1)[:, -2:])[:, 0])


def test_margins_of_counts(network):
    graph, x, labels = network
    full = record(graph, _batches(x, labels, 23), T, margin=Counts())
    for t in (1, 7, T):
        counts = np.asarray(simulate(graph, jnp.asarray(x), t).output.counts)
        for i in range(len(x)):
            own = full.classes[t - 1, i]
            assert full.margins[t - 1, i] == counts[i, own] - np.delete(counts[i], own).max()
    with pytest.raises(InputError, match="readout membrane counts no spikes: give margin=charge"):
        record(graph, _batches(x, labels, 23), T, Simulation(readout=Membrane()), Counts())


def test_margins_of_whole_numbers(network):
    """They have no charge but in thresholds, which are whole numbers too."""
    graph, x, labels = network
    least, most = jnp.full((1, 6), -1.0), jnp.full((1, 6), 1.0)
    whole = quantise(graph, jnp.concatenate([least, most]))
    for margin in (Counts(), Charge()):
        full = record(whole, _batches(x, labels, 23), T, margin=margin)
        state = simulate(whole, jnp.asarray(x), T)
        assert full.margins.dtype == np.float32
        expected = np.array(margin.amounts(PAPER.readout, state.output, whole.output.op))
        own = expected[np.arange(23), full.classes[-1]]
        expected[np.arange(23), full.classes[-1]] = -np.inf
        np.testing.assert_array_equal(full.margins[-1], own - expected.max(-1))


def _record(rng):
    """Decisions that become right, and margins that grow, but not always."""
    labels = rng.integers(0, 3, 200)
    right = rng.uniform(size=(T, 200)) < np.linspace(0.3, 0.98, T)[:, None]
    margins = np.abs(rng.normal(0, 1, (T, 200))).cumsum(0) * 0.1
    return Record(np.where(right, labels, (labels + 1) % 3), margins, labels)


@pytest.mark.parametrize("loss", [0.005, 0.02, 0.3])
def test_the_bound_keeps_the_loss_and_is_the_lowest_that_does(rng, loss):
    held_out = _record(rng)
    bound = calibrate(held_out, loss)
    right = held_out.classes == held_out.labels

    def spoiled(bound):  # image by image
        stops = [next((t for t in range(T) if m[t] >= bound), T - 1) for m in held_out.margins.T]
        return sum(bool(right[-1, i] and not right[t, i]) for i, t in enumerate(stops))

    # Of 201 images, one that is not there counted as spoiled.
    allowed = np.floor(loss * 201) - 1
    bounds = np.quantile(held_out.margins, np.linspace(0, 1, 1001), method="nearest")[::-1]
    first_bad = next(i for i, b in enumerate(bounds) if spoiled(b) > allowed)
    assert bound == (bounds[first_bad - 1] if first_bad else np.inf)
    lost = right[-1].mean() - held_out.stopped(bound).accuracy
    assert lost <= loss


def test_more_loss_is_less_time(rng):
    held_out = _record(rng)
    means = [held_out.stopped(calibrate(held_out, a)).mean_steps for a in (0.005, 0.01, 0.1, 0.5)]
    assert means == sorted(means, reverse=True) and means[-1] < means[0]


def test_where_nothing_is_safe_all_run_to_the_end():
    classes = np.array([[1], [0]])
    held_out = Record(classes, np.array([[5.0], [-1.0]]), np.array([0]))
    assert calibrate(held_out, 0.5) == float("inf")
    assert held_out.stopped(float("inf")).steps.tolist() == [2]


def test_mistakes_are_refused(network):
    graph, x, labels = network
    with pytest.raises(InputError, match="no images"):
        decide(graph, [], 1.0, T)
    with pytest.raises(InputError, match="no images"):
        record(graph, [], T)
    with pytest.raises(InputError, match="slots must be at least 1, got 0"):
        decide(graph, _batches(x, labels, 8), 1.0, T, slots=0)
    with pytest.raises(InputError, match="at least 1, got 0"):
        decide(graph, _batches(x, labels, 8), 1.0, 0)
    held_out = _record(np.random.default_rng(0))
    with pytest.raises(InputError, match="between 0 and 100 points, got 100"):
        calibrate(held_out, 1.0)
    with pytest.raises(
        InputError,
        match=r"0\.1 points cannot be told from 200 images: .* give calibration_images=999 or",
    ):
        calibrate(held_out, 0.001)


def test_simulate_adaptively(trained, converted, tmp_path):
    options = ("--snn", converted, "--timesteps", 40, "--images", 90, "--batch-size", 20)
    options = (*options, "--adaptive", "--calibration-images", 130, "--output", tmp_path)
    printed = succeed("simulate", trained.folder, *options, "--max-loss", 1.0)
    content = json.loads((tmp_path / "adaptive.json").read_text())
    assert content["images"] == sum(content["stopped_at"]) == 90
    assert content["held_out"]["images"] == 130
    assert content["differ_from_fixed_simulation"] == 0
    assert content["mean_steps"] < 20 and content["percentiles"]["50"] <= 20
    at = np.arange(1, 41)
    assert content["mean_steps"] == pytest.approx(np.average(at, weights=content["stopped_at"]))
    held_out = content["held_out"]
    assert held_out["accuracy_fixed"] - held_out["accuracy"] <= 0.01 + 1e-9
    for figure in (f"{content['accuracy']:.2%}", f"{content['mean_steps']:.2f}"):
        assert figure in printed.out
    curve = simulate_run(trained.folder, 40, snn=converted, output=tmp_path / "fixed", images=90)
    for of in ("accuracy_fixed_at_mean", "fixed_as_accurate"):
        at = content[of]
        assert at["accuracy"] == curve.curve[at["T"] - 1] and at["seconds"] > 0
    assert content["accuracy_fixed_at_mean"]["T"] == round(content["mean_steps"])
    as_good = content["fixed_as_accurate"]
    assert as_good["accuracy"] >= content["accuracy"] > max(curve.curve[: as_good["T"] - 1])
    assert f"the first fixed T as accurate is {as_good['T']}, which takes" in printed.out
    assert (tmp_path / "adaptive.png").read_bytes().startswith(b"\x89PNG")
    assert not (tmp_path / "curve.csv").exists()
