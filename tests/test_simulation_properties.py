"""Properties that hold for any network: rates, prefixes, readouts, masks, devices."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tcl_jax import InputError, clip, cluster, simulation
from tcl_jax.conversion import Graph, fold, normalise, trace, with_norms
from tcl_jax.promotion import implicit
from tcl_jax.simulation.latency import lowered
from tcl_jax.simulation.readout import Counted

LATENCY = 40


@implicit()
def _network(weights, x):
    x = clip(jax.nn.relu(x @ weights["w1"] + weights["b1"]), 2.0)
    return clip(jax.nn.relu(x @ weights["w2"]), 0.5) @ weights["w3"]


@pytest.fixture(scope="module")
def images() -> jax.Array:
    return jnp.asarray(np.random.default_rng(1).integers(-6, 7, (16, 6)) / 4, jnp.float32)


@pytest.fixture(scope="module")
def labels() -> jax.Array:
    return jnp.asarray(np.random.default_rng(2).integers(0, 4, 16))


@pytest.fixture(scope="module")
def network(images) -> Graph:
    # Dyadic numbers: sums are exact in any order, so that no comparison needs a tolerance.
    rng = np.random.default_rng(0)
    shapes = {"w1": (6, 12), "b1": (12,), "w2": (12, 12), "w3": (12, 4)}
    weights = {k: jnp.asarray(rng.integers(-6, 7, s) / 8, jnp.float32) for k, s in shapes.items()}
    folded = fold(trace(partial(_network, weights), images))
    return normalise(with_norms(folded, {folded.output.name: 4.0}))


# --- One neuron -----------------------------------------------------------------------------


@jax.jit
def _counts_over_time(lam, currents):
    graph = trace(lambda x: clip(jax.nn.relu(x), 1.0), jax.ShapeDtypeStruct((1, 8), jnp.float32))
    (neuron,) = graph.neurons
    graph = with_norms(graph, {neuron.name: lam, graph.output.name: jnp.float32(1.0)})
    trains = simulation.spike_trains(graph, currents, LATENCY)
    return jnp.cumsum(trains[neuron.name] / lam, 0)[:, 0]


@given(st.floats(2**-6, 50, width=32), st.lists(st.floats(0, 1), min_size=8, max_size=8))
def test_a_neuron_fires_within_one_of_its_rate_times_the_time(lam, fractions):
    a = np.minimum(np.float32(fractions) * np.float32(lam), np.float32(lam))
    counts = np.asarray(_counts_over_time(jnp.float32(lam), jnp.asarray(a)[None]))
    times = np.arange(1, LATENCY + 1)[:, None]
    # A step rounds a potential below 2λ once: V - λ is exact, as V is between λ and 2λ.
    rounded = times * 2**-23
    assert np.all(np.abs(counts - times * a.astype(np.float64) / lam) <= 1 + rounded)


@given(
    st.integers(-3, 4).map(lambda n: 2.0**n),
    st.lists(st.integers(-64, 64), min_size=8, max_size=8),
)
def test_a_neuron_s_spikes_are_the_floor_of_the_accumulated_current(lam, numerators):
    # 64ths of λ: exact in float32.  A negative current never fires.
    numerators = np.asarray(numerators)
    currents = jnp.asarray(numerators / 64 * lam, jnp.float32)[None]
    times = np.arange(1, LATENCY + 1)[:, None]
    expected = np.maximum(times * numerators // 64, 0)
    np.testing.assert_array_equal(_counts_over_time(jnp.float32(lam), currents), expected)


def test_a_current_above_the_threshold_fires_at_every_step():
    counts = _counts_over_time(jnp.float32(2.0), jnp.full((1, 8), 7.0))
    np.testing.assert_array_equal(counts[:, 0], np.arange(1, LATENCY + 1))


@pytest.mark.parametrize("v0, first", [(0.0, 4), (0.25, 3), (0.5, 2), (0.75, 1)])
def test_the_initial_potential_is_a_fraction_of_the_threshold(v0, first):
    graph = trace(lambda x: clip(jax.nn.relu(x), 2.0), jnp.zeros((1, 1)))
    graph = with_norms(graph, {graph.output.name: 1.0})
    how = simulation.Simulation(simulation.IF(v0=v0))
    for form in (graph, normalise(graph)):
        trains = simulation.spike_trains(form, jnp.full((1, 1), 0.5), 4, how)
        train = trains[form.neurons[0].name]
        assert np.flatnonzero(train.ravel())[0] + 1 == first
        assert simulation.init_state(form, 1, how).output.membrane.item() == 0.0


# --- Time -----------------------------------------------------------------------------------


def test_simulate_is_repeated_steps_and_counts_are_summed_trains(network, images):
    timesteps = 17
    found = simulation.simulate(network, images, timesteps)
    state, constant = (
        simulation.init_state(network, 16),
        simulation.constant_values(network, images),
    )
    one_step = jax.jit(simulation.step)
    for _ in range(timesteps):
        state, _ = one_step(network, state, constant)
    trains = simulation.spike_trains(network, images, timesteps)
    summed = np.sum(trains[network.output.name], 0)
    assert summed.max() > 0
    np.testing.assert_array_equal(found.output.counts, summed)
    np.testing.assert_array_equal(found.output.counts, state.output.counts)
    jax.tree.map(np.testing.assert_array_equal, found, state)


@pytest.mark.parametrize("readout", ["spikes", "membrane"])
def test_a_curve_is_the_prefix_of_any_longer_one(network, images, labels, readout):
    batch = {"image": images, "label": labels, "mask": jnp.ones(16, bool)}
    how = simulation.Simulation(readout=simulation.READOUTS.read(readout))
    curves = [
        simulation.latency_curve(network, [batch], timesteps, how) for timesteps in (1, 6, 19)
    ]
    for curve in curves:
        np.testing.assert_array_equal(curve, curves[-1][: len(curve)])
    assert len(set(curves[-1])) > 1


def test_a_curve_s_points_are_simulations_of_that_length(network, images, labels):
    batch = {"image": images, "label": labels, "mask": jnp.ones(16, bool)}
    curve = simulation.latency_curve(network, [batch], 9)
    for timesteps in (1, 4, 9):
        state = simulation.simulate(network, images, timesteps)
        found = np.mean(simulation.classify(network, state) == labels)
        assert curve[timesteps - 1] == found


def test_time_that_is_not_positive_is_refused(network, images, labels):
    mask = jnp.ones(16, bool)
    for call in (
        partial(simulation.simulate, network, images, 0),
        partial(simulation.spike_trains, network, images, -1),
        partial(simulation.correct_by_latency, network, images, labels, mask, timesteps=0),
        partial(simulation.latency_curve, network, [], 0),
    ):
        with pytest.raises(InputError, match="at least 1"):
            call()


def test_images_of_another_shape_are_refused(network):
    with pytest.raises(InputError, match=r"takes images of shape \(6,\), got \(5,\)"):
        simulation.simulate(network, jnp.zeros((2, 5)), 3)


# --- Readouts -------------------------------------------------------------------------------


@st.composite
def _states(draw):
    size = draw(st.integers(1, 3)), 4
    counts = draw(st.lists(st.integers(0, 3), min_size=size[0] * 4, max_size=size[0] * 4))
    low = draw(st.sampled_from([-3, -60]))  # in sixteenths: at most three spikes are owed, or more
    potential = draw(st.permutations(range(low, size[0] * 4 + low)))
    return np.reshape(counts, size).astype(np.float32), np.reshape(potential, size) / np.float32(16)


@given(_states(), st.sampled_from([1.0, 4.0]))
def test_readouts_are_what_they_say(case, threshold):
    counts, potential = case
    graph = trace(lambda x: x @ jnp.eye(4), jnp.zeros((1, 4)))
    graph = with_norms(graph, {graph.output.name: threshold})
    state = Counted(jnp.asarray(potential), jnp.asarray(counts))
    by_membrane = np.argmax(potential + threshold * counts, -1)
    orders = [_order(v, n, threshold) for v, n in zip(potential, counts, strict=True)]
    output = graph.output.op
    charge = simulation.Spikes().charge(state, output)
    assert simulation.Spikes().classify(state, output).tolist() == [order[0] for order in orders]
    assert simulation.Membrane().classify(charge, output).tolist() == by_membrane.tolist()
    for label in range(4):
        ranks = simulation.Spikes().rank(state, output, jnp.full(len(counts), label, jnp.int16))
        assert ranks.tolist() == [order.index(label) for order in orders]
    for label in (-1, 4):  # no class
        ranks = simulation.Spikes().rank(state, output, jnp.full(len(counts), label))
        assert ranks.tolist() == [4] * len(counts)
    unknown = jnp.array([[2.0, jnp.nan, 1.0, 3.0]])
    for label, place in enumerate([2, 4, 3, 1]):  # after what is no number, which no label meets
        assert simulation.Membrane().rank(unknown, output, jnp.array([label])).item() == place


def _order(potential, counts, threshold):
    """Classes as spikes rank them."""
    # More than nothing first; of these the most spikes, then the highest potential.
    rank = [
        (True, n, v) if v + threshold * n >= 0 else (False, v + threshold * n)
        for v, n in zip(potential, counts, strict=True)
    ]
    return sorted(range(len(rank)), key=rank.__getitem__, reverse=True)  # stable: the first first


@pytest.mark.parametrize("executor", ["scan", "blocked:4"])
def test_a_class_may_be_right_among_several(network, images, labels, executor):
    how = simulation.Simulation(executor=simulation.EXECUTORS.read(executor))
    batch = {"image": images, "label": labels, "mask": jnp.arange(16) < 13}
    curves = simulation.latency_curve(network, [batch], 9, how, top=(1, 2, 3))
    assert curves.shape == (9, 3) and np.all(np.diff(curves, axis=1) > 0)
    for timesteps in (1, 4, 9):
        state = simulation.simulate(network, images, timesteps, how).output
        orders = [
            _order(np.asarray(v), np.asarray(n), float(network.output.op.threshold))
            for v, n in zip(state.membrane, state.counts, strict=True)
        ]
        for k, found in zip((1, 2, 3), curves[timesteps - 1], strict=True):
            right = [int(labels[i]) in order[:k] for i, order in enumerate(orders[:13])]
            assert found == np.mean(right)
    second = simulation.latency_curve(network, [batch], 9, how, top=2)
    measured, _ = simulation.measure(network, [batch], 9, how, top=2)
    np.testing.assert_array_equal(second, curves[:, 1])
    np.testing.assert_array_equal(measured, second)
    program = lowered(network, (6,), 16, 9, how, top=(1, 2, 3)).compile()
    right = program(network, images, labels, batch["mask"], how)
    np.testing.assert_array_equal(np.asarray(right) / 13, curves)
    with pytest.raises(InputError, match=r"^top must be at least 1, got 0"):
        simulation.latency_curve(network, [batch], 9, how, top=0)


def test_the_membrane_readout_is_the_accumulated_current(network, images):
    # All that arrived at an output neuron is either still there or has been fired.
    state = simulation.simulate(network, images, 12)
    trains = simulation.spike_trains(network, images, 12)
    last = network.nodes[network.output.inputs[0]]
    before = network.nodes[last.inputs[0]].name
    arrived = np.asarray(trains[before]).sum(0) @ np.asarray(last.op.kernel)
    np.testing.assert_array_equal(state.output.membrane + state.output.counts, arrived)
    summed = simulation.Simulation(readout=simulation.Membrane())
    np.testing.assert_array_equal(simulation.simulate(network, images, 12, summed).output, arrived)


def test_an_unknown_readout_is_refused():
    with pytest.raises(InputError, match="unknown readout 'spike': did you mean 'spikes'"):
        simulation.READOUTS.read("spike")


# --- Batches --------------------------------------------------------------------------------


def test_masked_images_do_not_count(network, images, labels):
    whole = {"image": images, "label": labels, "mask": jnp.arange(16) < 11}
    real = {"image": images[:11], "label": labels[:11], "mask": jnp.ones(11, bool)}
    unmasked = whole | {"mask": jnp.ones(16, bool)}
    masked, alone, wrong = (
        simulation.latency_curve(network, [batch], 8) for batch in (whole, real, unmasked)
    )
    np.testing.assert_array_equal(masked, alone)
    assert not np.array_equal(masked, wrong)


def test_batches_of_any_size_give_the_same_curve(network, images, labels):
    def batches(*sizes):
        for part in np.split(np.arange(16), np.cumsum(sizes)[:-1]):
            yield {"image": images[part], "label": labels[part], "mask": np.ones(len(part), bool)}

    seen = []
    one = simulation.latency_curve(network, batches(16), 8)
    other = simulation.latency_curve(network, batches(5, 5, 6), 8, done=seen.append)
    np.testing.assert_array_equal(one, other)
    assert seen == [5, 5, 6]


def test_four_devices_count_as_one_does(network, images, labels):
    count = partial(simulation.correct_by_latency, timesteps=12)
    mask = jnp.arange(16) < 13
    four = cluster.everywhere()
    assert four.mesh.size == 4
    batch = four.put(
        {"image": np.asarray(images), "label": np.asarray(labels), "mask": np.asarray(mask)}
    )
    assert len(batch["image"].sharding.device_set) == 4
    split = count(four.replicate(network), batch["image"], batch["label"], batch["mask"])
    one = count(network, images, labels, mask)
    assert len(set(one.tolist())) > 1
    np.testing.assert_array_equal(split, one)
