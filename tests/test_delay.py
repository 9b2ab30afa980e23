"""When to start reading: the delay is the one that currents of single steps tell."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cli import converted as converted
from cli import succeed
from cli import trained as trained

from tcl_jax import InputError, clip, convert, simulation
from tcl_jax.runs import delay as delays
from tcl_jax.runs import sweep
from tcl_jax.runs.delay import AutoDelay
from tcl_jax.runs.simulate import Curves, simulate_run
from tcl_jax.runs.sweep import Network, sweep_runs
from tcl_jax.simulation import IF, Blocked, Membrane, Poisson, Scan, Simulation
from tcl_jax.simulation.delay import estimate_delay

T = 40


@pytest.fixture(scope="module")
def network():
    """Six layers, whose first spikes take their time, and images of three classes."""
    rng = np.random.default_rng(3)
    prototypes = rng.uniform(0, 1, (3, 12))
    labels = rng.choice(3, 60, p=(0.5, 0.3, 0.2))
    x = np.clip(prototypes[labels] + rng.normal(0, 0.05, (60, 12)), 0, 1) * 0.3
    mix = [jnp.asarray(np.roll(np.eye(12), k, 0) * 0.9, jnp.float32) for k in range(5)]
    last = jnp.asarray(prototypes.T - prototypes.mean(), jnp.float32)

    def forward(w, x):
        for kernel in w[:-1]:
            x = clip(jax.nn.relu(x @ kernel), 1.0)
        return x @ w[-1]

    x = jnp.asarray(x, jnp.float32)
    order = np.roll(np.arange(12), sum(range(5)))
    return convert(forward, [*mix, last[order]], [x], norm="tcl"), x, labels


def _batches(x, labels, size=25):
    """With padding that is of the commonest class."""
    for i in range(0, len(x), size):
        kept = len(x[i : i + size])
        image, label = np.ones((size, 12), np.float32), np.zeros(size, np.int32)
        image[:kept], label[:kept] = x[i : i + size], labels[i : i + size]
        yield {"image": image, "label": label, "mask": np.arange(size) < kept}


def _expected(graph, x, labels, how):
    """The same from sums of current, step by step."""
    summed = dataclasses.replace(how, readout=Membrane(), delay=0)
    _, sums = simulation.run(graph, x, T, lambda state, *_: state.output, summed)
    currents = np.diff(np.asarray(sums, np.float64), axis=0, prepend=0)
    right = [np.mean(current.argmax(-1) == labels) for current in currents]
    chance = np.bincount(labels).max() / labels.size
    half = (chance + np.mean(right[-T // 4 :])) / 2
    return next(t for t, a in enumerate(right) if a >= half)


@pytest.mark.parametrize("executor", [Scan(), Blocked(8)])
@pytest.mark.parametrize("how", [Simulation(), Simulation(IF(v0=0.5), delay=7)])
def test_the_delay_is_where_single_currents_tell_classes(network, how, executor):
    graph, x, labels = network
    how = dataclasses.replace(how, executor=executor)
    expected = _expected(graph, x, labels, how)
    told = []
    assert estimate_delay(graph, _batches(x, labels), T, how, done=told.append) == expected
    assert sum(told) == 60


def test_membranes_that_start_half_full_need_less(network):
    graph, x, labels = network
    slow, fast = (
        estimate_delay(graph, _batches(x, labels), T, Simulation(IF(v0=v0))) for v0 in (0.0, 0.5)
    )
    assert slow > fast + 3


def test_what_is_drawn_is_drawn_alike(network):
    graph, x, labels = network
    how = Simulation(coding=Poisson(), seed=3)
    assert estimate_delay(graph, _batches(x, labels), T, how) == _expected(graph, x, labels, how)


def test_an_output_that_tells_nothing_has_no_delay(network):
    graph, x, labels = network
    with pytest.raises(InputError, match="no step up to T = 2 tells classes better"):
        estimate_delay(graph, _batches(x, labels), 2)
    with pytest.raises(InputError, match="no images"):
        estimate_delay(graph, [], T)


def test_an_estimated_delay_is_printed_and_is_as_one_that_is_given(trained, converted, tmp_path):
    options = ("--snn", converted, "--timesteps", 20, "--images", 40, "--batch-size", 20)
    options = (*options, "--delay", "auto", "--output", tmp_path / "auto")
    done = succeed("simulate", trained.folder, *options)
    auto = json.loads((tmp_path / "auto" / "summary.json").read_text())
    delay = auto["delay"]
    assert 0 < delay < 10 and auto["delay_estimated"]
    said = f"from step {delay + 1} on the output carries information: delay {delay}"
    assert said in done.out
    how = {"snn": converted, "images": 40, "batch_size": 20, "output": tmp_path / "given"}
    given = simulate_run(trained.folder, 20, Simulation(delay=delay), **how)
    lines = (tmp_path / "auto" / "curve.csv").read_text().splitlines()[1:]
    assert [float(line.split(",")[1]) for line in lines] == pytest.approx(given.curve, abs=1 / 40)
    assert "delay_estimated" not in given.summary
    assert auto["settings"] != given.summary["settings"]


def test_sweeps_name_what_was_estimated(trained, converted, tmp_path, monkeypatch):
    def curves(converted, timesteps, settings, **_):
        return Curves(np.arange(timesteps) / (timesteps + settings.delay), None)

    estimates = []

    def estimated(*_, **__):
        estimates.append(5)
        return 5

    monkeypatch.setattr(sweep, "curves", curves)
    monkeypatch.setattr(delays, "estimate_delay", estimated)
    ways = [Simulation(), AutoDelay(Simulation())]
    where = [Network(trained.folder, converted)]
    found = sweep_runs(where, 20, ways, images=40, batch_size=20, output=tmp_path)
    assert [row.label for row in found.rows] == ["delay 0", "delay auto"]
    assert found.rows[1].estimated == (5,)
    assert found.rows[1].accuracy[0].tolist() == (np.arange(20) / 25).tolist()
    again = sweep_runs(where, 10, ways[::-1], images=40, batch_size=20, output=tmp_path)
    assert again.known == 2 and again.rows[0].estimated == (5,) and estimates == [5]
