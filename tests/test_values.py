"""Error against latency of values of any shape, against sums in NumPy; and frames as input."""

import csv
import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cli import converted as converted
from cli import succeed
from cli import trained as trained
from hypothesis import given
from hypothesis import strategies as st

from tcl_jax import InputError, clip, convert, simulation
from tcl_jax.conversion import evaluate
from tcl_jax.promotion import implicit
from tcl_jax.runs.converted import open_converted
from tcl_jax.simulation import CODINGS, READOUTS, Blocked, Frames, Scan, Simulation
from tcl_jax.simulation.settings import PAPER

T = 12


def _network(shape, rng):
    """Hidden neurons, and an output of some shape: the graph, the function and images."""
    hidden = jnp.asarray(rng.normal(0, 0.5, (5, 8)), jnp.float32)
    w = jnp.asarray(rng.normal(0, 1, (8, *shape)), jnp.float32)

    @implicit()
    def function(_, x):
        return jnp.tensordot(clip(jax.nn.relu(x @ hidden), 1.0), w, 1) - 0.5

    x = jnp.asarray(rng.uniform(0, 1, (7, 5)), jnp.float32)
    return convert(function, None, [x]), function, x


SOME = (1, 3, T)


def _by_hand(graph, x, how):
    """Values at some steps, each from a simulation of its own."""
    return np.stack(
        [simulation.logits(graph, simulation.simulate(graph, x, t, how), t, how) for t in SOME]
    ).astype(np.float64)


# --- Values -------------------------------------------------------------------------------------


@pytest.mark.parametrize("readout", ["spikes", "membrane"])
@pytest.mark.parametrize("shape", [(), (1,), (2, 3)])
def test_error_is_that_of_every_value(shape, readout, rng):
    graph, function, x = _network(shape, rng)
    how = Simulation(readout=READOUTS.read(readout), delay=2, executor=Scan())
    values = np.asarray(rng.normal(0, 1, (7, *shape)), np.float32)
    batches = [
        {"image": x[:4], "value": values[:4], "mask": np.ones(4, bool)},
        {"image": x[3:], "value": values[3:], "mask": np.array([False, True, True, True])},
    ]
    found = simulation.error_curve(graph, batches, T, how)
    assert found.rms.shape == found.largest.shape == (T,)
    error = (_by_hand(graph, x, how) - values).reshape(len(SOME), -1)
    at = np.array(SOME) - 1
    np.testing.assert_allclose(found.rms[at], np.sqrt(np.mean(error**2, 1)), rtol=1e-5)
    np.testing.assert_allclose(found.largest[at], np.abs(error).max(1), rtol=1e-5)
    np.testing.assert_allclose(found.scale, np.sqrt(np.mean(values**2)), rtol=1e-6)
    analog = np.asarray(function(None, x) - values)
    np.testing.assert_allclose(found.analog, np.sqrt(np.mean(analog**2)), rtol=1e-5)
    assert found.accuracy is None


def test_without_targets_it_is_the_error_of_conversion(rng):
    graph, function, x = _network((3,), rng)
    found = simulation.error_curve(graph, [{"image": x, "mask": np.ones(7, bool)}], 1000)
    exact = np.asarray(function(None, x), np.float64)
    assert found.analog == 0
    np.testing.assert_allclose(found.scale, np.sqrt(np.mean(exact**2)), rtol=1e-5)
    assert found.rms[99] / 5 > found.rms[-1] > 0  # as 1/T


@pytest.mark.parametrize("places", [(), (4,)])
def test_accuracy_stands_beside(places, rng):
    graph, function, x = _network((*places, 3), rng)
    labels = np.asarray(function(None, x)).argmax(-1)
    batch = {"image": x, "label": labels, "mask": np.arange(7) < 5}
    found = simulation.error_curve(graph, [batch], T, top=(1, 2))
    expected = simulation.latency_curve(graph, [batch], T, top=(1, 2))
    np.testing.assert_array_equal(found.accuracy, expected)
    assert expected[-1, 1] > expected[0, 0]


@pytest.mark.parametrize("executor", [Blocked(5), Blocked(6)])
def test_blocks_of_steps_find_the_same(executor, rng):
    graph, _, x = _network((2,), rng)
    batch = {"image": x, "mask": np.ones(7, bool)}
    one = simulation.error_curve(graph, [batch], T, Simulation(executor=Scan()))
    other = simulation.error_curve(graph, [batch], T, Simulation(executor=executor))
    np.testing.assert_allclose(other.rms, one.rms, rtol=1e-5)
    np.testing.assert_allclose(other.largest, one.largest, rtol=1e-5)


def test_values_of_whole_numbers_are_compared_too(rng):
    graph, _, x = _network((2,), rng)
    batch = {"image": x, "mask": np.ones(7, bool)}
    whole = simulation.error_curve(simulation.quantise(graph, x), [batch], 200)
    assert 0 < whole.rms[-1] < 0.03 * whole.scale


def test_a_lowered_network_is_compared_with_what_it_was(rng):
    graph, _, x = _network((2,), rng)
    batch = {"image": x, "mask": np.ones(7, bool)}
    lowered = simulation.lower(graph, platform="tpu", neurons=simulation.IF())
    found = simulation.error_curve(lowered, [batch], T, analog=graph)
    np.testing.assert_allclose(found.rms, simulation.error_curve(graph, [batch], T).rms, rtol=1e-4)


@pytest.mark.usefixtures("unchecked")
def test_what_does_not_fit_is_refused(rng):
    graph, _, x = _network((2,), rng)
    batch = {"image": x, "mask": np.ones(7, bool)}

    def refused(*batches, says, how=PAPER):
        with pytest.raises(InputError, match=re.escape(says)):
            simulation.error_curve(graph, batches, T, how)

    refused(says="there are no images to simulate")
    refused(batch | {"mask": np.zeros(7, bool)}, says="there are no images to simulate")
    refused(
        batch | {"value": np.zeros((7, 3), np.float32)},
        says="the values of a batch of 7 images have shape (7, 3), but the network's have (7, 2)",
    )
    values = batch | {"value": np.zeros((7, 2), np.float32)}
    refused(values, batch, says="some batches have values or labels and others none")
    film = batch | {"image": np.zeros((7, T, 5), np.float32)}
    refused(film, says="frames have no analog values", how=Simulation(coding=Frames()))


# --- Frames -------------------------------------------------------------------------------------


# Eighths, and weights that are powers of two: no rounding can make a difference.
@given(
    st.lists(
        st.lists(st.integers(-8, 12).map(lambda n: n / 8), min_size=2, max_size=2),
        min_size=T,
        max_size=T,
    ),
    st.sampled_from([1, 2, 5]),
    st.sampled_from([Scan(), Blocked(4), Blocked(5)]),
)
def test_frames_are_currents_that_change(frames, hold, executor):
    graph = convert(_two_layers, None, [jnp.ones((1, 2))])
    how = Simulation(coding=Frames(hold), executor=executor)
    trains = simulation.spike_trains(graph, jnp.asarray([frames], jnp.float32), T, how)
    found = trains[graph.neurons[0].name][:, 0]
    v, expected = np.zeros(2), []
    for t in range(T):
        v = v + np.asarray(frames[t // hold])
        fires = v >= 1
        v = v - fires
        expected.append(fires)
    np.testing.assert_array_equal(found, np.asarray(expected))


@implicit()
def _two_layers(_, x):
    return clip(jax.nn.relu(x), 1.0) @ jnp.asarray([[1.0, -0.5], [0.5, 2.0]])


def test_the_same_frame_again_and_again_is_an_image(rng):
    graph, _, x = _network((3,), rng)
    labels = np.arange(7) % 3
    batch = {"image": x, "label": labels, "mask": np.arange(7) < 6}
    film = batch | {"image": np.repeat(np.asarray(x)[:, None], 4, 1)}
    as_film = Simulation(coding=Frames(hold=3))
    still, activity = simulation.measure(graph, [batch], T)
    moving, of_film = simulation.measure(graph, [film], T, as_film)
    np.testing.assert_array_equal(moving, still)
    np.testing.assert_array_equal(simulation.latency_curve(graph, [film], T, as_film), still)
    np.testing.assert_array_equal(of_film.by_image, activity.by_image)
    macs, _ = of_film.total()
    assert activity.total()[0].tolist() == [5 * 8] * T
    assert macs.tolist() == [n * 5 * 8 for n in (1, 2, 3, 4) for _ in range(3)]
    added = of_film.energy() - activity.energy()
    np.testing.assert_allclose(added, 4.6 * (macs - 5 * 8), rtol=1e-6)
    np.testing.assert_allclose(of_film.energies().mean(1), of_film.energy(), rtol=1e-6)


def test_values_of_a_film_are_compared_with_targets(rng):
    graph, function, x = _network((2,), rng)
    film = np.stack([x, x[::-1]] * 6, 1)
    mean = np.asarray(function(None, x) + function(None, x[::-1])) / 2
    batch = {"image": film, "value": mean, "mask": np.ones(7, bool)}
    found = simulation.error_curve(graph, [batch], T, Simulation(coding=Frames()))
    assert found.analog is None and found.rms.shape == (T,)


def test_a_film_is_written_as_text():
    assert CODINGS.read("frames:3") == Frames(3) and str(Frames(hold=3)) == "frames:3"
    with pytest.raises(InputError, match="hold must be at least 1, got 0"):
        Frames(0)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    "shape, steps, says",
    [
        (
            (7, 5),
            4,
            "takes frames of shape (5,), so that a batch of films has shape (films, frames, 5)",
        ),
        ((7, 3, 4), 4, "a batch of films has shape (films, frames, 5), got (7, 3, 4)"),
        (
            (7, 4, 5),
            9,
            "is 9, but 4 frames with hold=2 last for 8 steps: give fewer steps, more frames",
        ),
        ((7, 4, 5), 9, "or Frames(hold=3)"),
    ],
)
@pytest.mark.parametrize("executor", [Scan(), Blocked(2)])
def test_films_that_do_not_fit_are_refused(shape, steps, says, executor, rng):
    graph, _, _ = _network((2,), rng)
    how = Simulation(coding=Frames(hold=2), executor=executor)
    with pytest.raises(InputError, match=re.escape(says)):
        simulation.simulate(graph, np.zeros(shape, np.float32), steps, how)


# --- The command line ---------------------------------------------------------------------------


def test_simulate_prints_and_writes_how_far_values_are(trained, converted, tmp_path):
    options = ("--snn", converted, "--timesteps", 20, "--images", 50, "--batch-size", 20)
    succeed("simulate", trained.folder, *options, "--output", tmp_path / "plain")
    printed = succeed(
        "simulate", trained.folder, *options, "--error", "--output", tmp_path / "with"
    )
    plain, beside = (_columns(tmp_path / name / "curve.csv") for name in ("plain", "with"))
    assert beside.keys() - plain.keys() == {"rms_error", "largest_error"}
    assert beside["accuracy"] == plain["accuracy"]

    snn = open_converted(trained.folder, converted)
    (batch,) = snn.batches("test", 50, limit=50)
    state = simulation.simulate(snn.artifact.graph, batch["image"], 20)
    values = np.asarray(simulation.logits(snn.artifact.graph, state, 20))
    error = values - np.asarray(evaluate(snn.artifact.graph, batch["image"]))
    rms = np.sqrt(np.mean(error**2))
    assert float(beside["rms_error"][19]) == pytest.approx(rms, rel=1e-4)
    assert float(beside["largest_error"][19]) == pytest.approx(np.abs(error).max(), rel=1e-4)
    summary = json.loads((tmp_path / "with" / "summary.json").read_text())
    assert summary["rms_error"]["20"] == float(beside["rms_error"][19])
    assert f"{rms / summary['rms_value']:.2%}" in printed.out
    assert (tmp_path / "with" / "curve.png").read_bytes().startswith(b"\x89PNG")


def _columns(path):
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    return {name: [row[name] for row in rows] for name in rows[0]}
