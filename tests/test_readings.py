"""Values and classes from the output neurons, of any shape, from the start or after a delay."""

import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toys
from hypothesis import given
from hypothesis import strategies as st

from tcl_jax import InputError, clip, convert, simulation
from tcl_jax.promotion import implicit
from tcl_jax.simulation import READOUTS, Simulation, adaptive


def _graph(weights, bias, x):
    """Neurons that fire at the rates x, in [0, 1], and a linear map of them."""
    return convert(implicit()(lambda _, x: clip(jax.nn.relu(x), 1.0) @ weights + bias), None, [x])


def _batch(x, labels):
    return {"image": x, "label": labels, "mask": jnp.ones(len(x), bool)}


# --- Values -------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(), (1,), (3,), (5, 2), (2, 3, 4)])
def test_values_of_any_shape_converge_to_the_function(shape, rng):
    x = jnp.asarray(rng.uniform(0, 1, (6, 8)), jnp.float32)
    w = jnp.asarray(rng.normal(0, 1, (8, *shape)), jnp.float32)

    def function(_, x):
        return jnp.tensordot(clip(jax.nn.relu(x), 1.0), w, 1) - 2.0

    graph = convert(function, None, [x])
    for t, delay in ((200, 0), (2000, 0), (2000, 700)):
        state = simulation.simulate(graph, x, t, Simulation(delay=delay))
        found = simulation.logits(graph, state, t, Simulation(delay=delay))
        assert found.shape == (6, *shape)
        # Each input is a spike at most from its rate, at both ends of the time that is read.
        bound = 2 * np.abs(w).sum(0).max() / (t - delay) + 1e-3
        np.testing.assert_allclose(found, function(None, x), atol=bound)


def test_values_at_every_step(rng):
    x = jnp.asarray([[0.25, 0.5]])
    graph = _graph(jnp.eye(2), -1.0, x)

    @jax.jit
    def values(graph, x):
        found, t = [], 0
        state, constant = simulation.init_state(graph, 1), simulation.constant_values(graph, x)
        for t in range(1, 5):
            state, _ = simulation.step(graph, state, constant)
            found.append(simulation.logits(graph, state, t)[0])
        return jnp.stack(found)

    rates = np.array([[0, 0], [0, 1 / 2], [0, 1 / 3], [1 / 4, 2 / 4]])
    np.testing.assert_allclose(values(graph, x), rates - 1, atol=1e-6)


# --- Classes ------------------------------------------------------------------------------------


@pytest.mark.parametrize("readout", ["spikes", "membrane"])
def test_classes_are_right_in_the_end_with_every_logit_negative(readout):
    """Although a wrong one fires at first: its input is there from the start, another's is not."""
    x = jnp.asarray([[0.95, 0.125], [0.95, 0.25]])
    w = jnp.asarray([[-2.0, 2.0], [0.0, -24.0]])
    graph = _graph(w, jnp.asarray([-1.0, -0.25]), x)
    function = clip(jax.nn.relu(x), 1.0) @ w + jnp.asarray([[-1.0, -0.25]])
    assert (function < 0).all()

    counts = simulation.simulate(graph, x, 200).output.counts
    assert (counts.argmax(-1) != function.argmax(-1)).any(), "spikes alone would do"
    how = Simulation(readout=READOUTS.read(readout))
    classes = simulation.classify(graph, simulation.simulate(graph, x, 200, how), how)
    np.testing.assert_array_equal(classes, function.argmax(-1))


@pytest.mark.parametrize("readout", ["spikes", "membrane"])
@pytest.mark.parametrize("squeezed", [False, True])
def test_one_logit_is_told_from_0(readout, squeezed, rng):
    x = jnp.asarray(rng.uniform(0, 1, (40, 4)), jnp.float32)
    w = jnp.asarray([1.0, -1.0, 0.5, -0.5])

    def function(_, x):
        logit = clip(jax.nn.relu(x), 1.0) @ w
        return logit if squeezed else logit[:, None]

    graph = convert(function, None, [x])
    labels = function(None, x).reshape(-1) > 0
    assert 10 < labels.sum() < 30
    far = np.abs(function(None, x).reshape(-1)) > 0.02
    how = Simulation(readout=READOUTS.read(readout))
    found = simulation.classify(graph, simulation.simulate(graph, x, 400, how), how)
    np.testing.assert_array_equal(found[far], labels[far])
    (top,) = simulation.latency_curve(graph, [_batch(x, labels)], 400, how)[-1:]
    assert top >= 0.9


def test_a_class_a_pixel(rng):
    x = jnp.asarray(rng.uniform(0, 1, (4, 6, 4, 3)), jnp.float32)
    graph = convert(lambda _, x: clip(jax.nn.relu(x), 1.0) @ jnp.eye(3), None, [x])
    labels = x.argmax(-1)
    found = {}
    for size in (4, 3, 1):
        batches = [_batch(x[i : i + size], labels[i : i + size]) for i in range(0, 4, size)]
        found[size] = simulation.latency_curve(graph, batches, 30)
    by_hand = [
        np.mean(simulation.classify(graph, simulation.simulate(graph, x, t)) == labels)
        for t in (1, 15, 30)
    ]
    np.testing.assert_allclose(found[4][[0, 14, 29]], by_hand, rtol=1e-6)
    assert found[4][-1] > 0.9
    np.testing.assert_array_equal(found[3], found[4])
    np.testing.assert_array_equal(found[1], found[4])
    curve, _ = simulation.measure(graph, [_batch(x, labels)], 30)
    np.testing.assert_array_equal(curve, found[4])
    masked = _batch(x, labels) | {"mask": jnp.arange(4) < 3}
    np.testing.assert_array_equal(
        simulation.latency_curve(graph, [masked], 30),
        simulation.latency_curve(graph, [_batch(x[:3], labels[:3])], 30),
    )


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    "pixels, labels",
    [
        *((False, shape) for shape in [(4, 1), (3,), (4, 3), ()]),
        *((True, shape) for shape in [(4,), (4, 4, 6), (4, 6, 4, 3)]),
    ],
)
def test_labels_of_another_shape_are_refused(pixels, labels, rng):
    x = jnp.asarray(rng.uniform(0, 1, (4, 6, 4, 3)), jnp.float32)

    def network(_, x):
        x = clip(jax.nn.relu(x), 1.0)
        return x if pixels else x.mean((1, 2))

    graph = convert(network, None, [x])
    batch = _batch(x, jnp.zeros(labels, int))
    where, right = ("each of 6×4 places of an image", (4, 6, 4)) if pixels else ("each image", (4,))
    says = re.escape(
        f"the labels of a batch of 4 images have shape {labels}, but the network gives a class to "
        f"{where}: give shape {right}"
    )
    for read in (simulation.latency_curve, simulation.measure):
        with pytest.raises(InputError, match=says):
            read(graph, [batch], 5)
    if pixels:
        says = "a class to each of its 6×4 places: simulate it to fixed T"
    for read in (simulation.record, partial(simulation.decide, bound=1.0)):
        with pytest.raises(InputError, match=says):
            read(graph, [batch], timesteps=5)


def test_labels_may_be_lists(rng):
    x = jnp.asarray(rng.uniform(0, 1, (4, 3)), jnp.float32)
    graph = _graph(jnp.eye(3), 0.0, x)
    labels = x.argmax(-1)
    lists = {"image": x.tolist(), "label": labels.tolist(), "mask": [True, True, False, True]}
    arrays = _batch(x, labels) | {"mask": jnp.asarray(lists["mask"])}
    for read in (simulation.latency_curve, simulation.measure):
        found, expected = (jax.tree.leaves(read(graph, [b], 5))[0] for b in (lists, arrays))
        np.testing.assert_array_equal(found, expected)
    for read in (simulation.record, partial(simulation.decide, bound=1.0)):
        found, expected = (read(graph, [b], timesteps=5) for b in (lists, arrays))
        np.testing.assert_array_equal(found.classes, expected.classes)


@pytest.mark.usefixtures("unchecked")
def test_a_mask_of_another_shape_is_refused(rng):
    x = jnp.asarray(rng.uniform(0, 1, (4, 3)), jnp.float32)
    graph = _graph(jnp.eye(3), 0.0, x)
    batch = _batch(x, jnp.zeros(4, int)) | {"mask": jnp.ones((4, 1), bool)}
    with pytest.raises(InputError, match=r"the masks of a batch of 4 images have shape \(4, 1\)"):
        simulation.latency_curve(graph, [batch], 5)


def test_adaptive_latency_of_one_logit(rng):
    x = jnp.asarray([[0.9, 0.1], [0.1, 0.9], [0.5, 0.45]])
    graph = _graph(jnp.asarray([[1.0], [-1.0]]), 0.0, x)
    batch = _batch(x, jnp.asarray([1, 0, 1]))
    kept = simulation.record(graph, [batch], 100)
    found = simulation.decide(graph, [batch], 3.0, 100, slots=2)
    expected = kept.stopped(3.0)
    np.testing.assert_array_equal(found.classes, expected.classes)
    np.testing.assert_array_equal(found.steps, expected.steps)
    assert found.classes.tolist() == [1, 0, 1]
    assert found.steps[2] > max(found.steps[:2])


# --- Delay --------------------------------------------------------------------------------------


@given(
    st.lists(st.integers(0, 16), min_size=3, max_size=3),
    st.sampled_from([1, 6, 15]),
    st.sampled_from([1, 16]),
)
def test_what_is_read_after_a_delay_is_what_arrived_after_it(rates, delay, more):
    """Sixteenths, so that no sum is rounded; against a scalar neuron that starts then."""
    x = jnp.asarray([rates]) / 16
    w = np.array([[2.0, 0.5, -1.0], [-1.0, 1.0, 0.25], [0.5, -2.0, 1.0]], np.float32)
    graph = _graph(jnp.asarray(w), jnp.asarray([-0.5, 0.25, 0.125]), jnp.ones((1, 3)))
    kernel = graph.nodes[graph.output.inputs[0]].op
    timesteps = delay + more
    trains = simulation.spike_trains(graph, x, timesteps)
    hidden = np.asarray(trains[graph.neurons[0].name])[:, 0]
    currents = hidden @ np.asarray(kernel.kernel) + np.asarray(kernel.bias)
    threshold = float(graph.output.op.threshold)
    potential, counts = np.zeros(3, np.float32), np.zeros(3)
    for z in currents[delay:]:
        potential = potential + z
        fired = potential >= threshold
        potential = np.where(fired, potential - threshold, potential)
        counts += fired
    how = Simulation(readout=toys.Every(), delay=delay)
    found = simulation.simulate(graph, x, timesteps, how).output
    np.testing.assert_array_equal(found["spikes"].counts[0], counts)
    np.testing.assert_array_equal(found["spikes"].membrane[0], potential)
    arrived = currents[delay:].sum(0)
    np.testing.assert_array_equal(found["membrane"][0], arrived)
    membrane = how.readout.classes(found, graph.output.op)["membrane"].item()
    assert arrived[membrane] == arrived.max()


def test_nothing_is_read_before_a_delay_has_passed():
    x = jnp.full((1, 2), 0.75)
    graph = _graph(jnp.eye(2), 0.5, x)

    def charge(state, *_):
        return state.output.counts + state.output.membrane

    found = simulation.run(graph, x, 8, charge, Simulation(delay=5))[1]
    assert (found[:5] == 0).all() and (found[5:] != 0).all()


@pytest.mark.parametrize("readout", ["spikes", "membrane"])
def test_adaptive_latency_reads_after_a_delay_as_the_curve_does(readout, rng):
    x = jnp.asarray(rng.uniform(0, 1, (12, 5)), jnp.float32)
    w = jnp.asarray(rng.normal(0, 1, (5, 3)), jnp.float32)
    graph = _graph(w, jnp.asarray([2.0, 0.0, -1.0]), x)
    batch = _batch(x, jnp.zeros(12, int))
    how = Simulation(readout=READOUTS.read(readout), delay=9)
    curve = simulation.latency_curve(graph, [batch], 40, how)
    kept = simulation.record(graph, [batch], 40, how)
    np.testing.assert_allclose(kept.accuracy[9:], curve[9:])
    found = adaptive.decide(graph, [batch], 1.0, 40, how, slots=5)
    expected = kept.stopped(1.0)
    np.testing.assert_array_equal(found.classes, expected.classes)
    np.testing.assert_array_equal(found.steps, expected.steps)
