"""Kinds of neurons and codings of the input, against scalar loops in NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toys
from hypothesis import given
from hypothesis import strategies as st

from tcl_jax import InputError, clip, convert, simulation
from tcl_jax.conversion import normalise, trace, with_norms
from tcl_jax.simulation import CODINGS, IF, NEURONS, Poisson, Rate, Simulation
from tcl_jax.simulation.coding import key_of

KEY = key_of(0)
poisson = jax.jit(Poisson().encode)


def _one_neuron(lam=1.0):
    graph = trace(lambda x: clip(jax.nn.relu(x), lam), jnp.zeros((1, 1)))
    return normalise(with_norms(graph, {"output": 1.0}))


def _train(neurons: IF, currents: list[float]) -> list[int]:
    """Spikes of one neuron of threshold 1, from its definition."""
    v, rest, spikes = np.float32(neurons.v0), 0, []
    for z in np.asarray(currents, np.float32):
        v = v * np.float32(1 - neurons.leak) if neurons.leak else v
        v = v + (np.float32(0) if rest else z)
        fires = v >= 1 and not rest
        rest = neurons.refractory if fires else max(rest - 1, 0)
        if fires:
            v = v - np.float32(1) if neurons.reset == "subtract" else np.float32(0)
        if neurons.floor is not None:
            v = max(v, np.float32(-neurons.floor))
        spikes.append(int(fires))
    return spikes


kinds = st.builds(
    IF,
    v0=st.sampled_from([0.0, 0.5]),
    reset=st.sampled_from(["subtract", "zero"]),
    leak=st.sampled_from([0.0, 0.25]),
    floor=st.sampled_from([None, 0.0, 0.5]),
    refractory=st.integers(0, 3),
)


# Eighths: no rounding can make a difference.
@given(kinds, st.lists(st.integers(-12, 20).map(lambda n: n / 8), min_size=1, max_size=20))
def test_every_kind_of_neuron(neurons, currents):
    state, spikes = neurons.init(jnp.ones((1, 1))), []
    for z in currents:
        state, spike = neurons.step(state, jnp.full((1, 1), z), jnp.array(1.0))
        spikes.append(int(spike.item()))
    assert spikes == _train(neurons, currents)


@pytest.mark.parametrize(
    "neurons",
    [
        IF(v0=0.5),
        IF(reset="zero"),
        IF(leak=0.25),
        IF(refractory=2),
    ],
)
def test_the_kind_reaches_the_simulation(neurons):
    trains = simulation.spike_trains(_one_neuron(), jnp.full((1, 1), 0.75), 12, Simulation(neurons))
    (name, _) = trains
    assert trains[name].ravel().tolist() == _train(neurons, [0.75] * 12)
    plain = simulation.spike_trains(_one_neuron(), jnp.full((1, 1), 0.75), 12)[name]
    assert (trains[name] != plain).any()


def test_the_floor_reaches_the_simulation():
    """It matters to a neuron that is first inhibited and then excited, as by spikes of two others.

    Weights are dyadic and every λ is 1, so that the loop in NumPy has the same numbers.
    """
    weights, x = np.array([[-1.0], [1.5]], np.float32), [0.75, 0.5]

    def network(w, x):
        return clip(jax.nn.relu(clip(jax.nn.relu(x), 1.0) @ w), 1.0)

    graph = convert(network, weights, [jnp.ones((1, 2))])
    found = {}
    for neurons in (IF(), IF(floor=0.0)):
        first = np.array([_train(neurons, [current] * 12) for current in x])
        found[neurons.floor] = _train(neurons, (first.T @ weights).ravel().tolist())
        trains = simulation.spike_trains(graph, jnp.array([x]), 12, Simulation(neurons))
        first_name, second_name = (n.name for n in graph.neurons)
        assert trains[first_name][:, 0].T.tolist() == first.tolist()
        assert trains[second_name].ravel().tolist() == found[neurons.floor]
    assert sum(found[0.0]) > sum(found[None])


def test_refractory_neurons_fire_at_most_at_their_rate():
    graph = _one_neuron()
    neurons = IF(refractory=3)
    trains = simulation.spike_trains(graph, jnp.full((1, 1), 5.0), 40, Simulation(neurons))
    assert trains[graph.neurons[0].name].sum() == 10


def test_the_output_counts_as_ever():
    """Output neurons are reset by subtraction from 0: what hidden neurons are is not theirs."""
    graph = convert(lambda w, x: clip(jax.nn.relu(x), 1.0) @ w, jnp.eye(1), [jnp.ones((1, 1))])
    neurons = IF(v0=0.5, reset="zero", leak=0.5, refractory=1)
    # In the hidden layer every second step: 1.0 at t = 1, rest, 1.0 at t = 3, ...
    state = simulation.simulate(graph, jnp.full((1, 1), 1.0), 10, Simulation(neurons))
    assert state.output.counts.item() == 5
    assert state.output.membrane.item() == 0


# --- Coding -------------------------------------------------------------------------------------


@given(st.lists(st.integers(-16, 16), min_size=1, max_size=6), st.integers(1, 60))
def test_regular_spikes_are_within_one_of_the_rate(values, timesteps):
    x = jnp.asarray([values], jnp.float32)
    size = max(map(abs, values))
    total = sum(Rate().encode(x, t, KEY) for t in range(1, timesteps + 1))
    assert np.all(np.abs(np.asarray(total) - timesteps * np.asarray(values)) <= max(size, 0))


def test_poisson_spikes_have_the_mean_of_the_image():
    x = jnp.asarray([[2.0, -1.0, 0.0, 0.5], [0.1, 0.1, -0.1, 0.05]])
    steps = 4000
    trains = jax.vmap(lambda t: Poisson().encode(x, t, KEY))(jnp.arange(1, steps + 1))
    sizes = np.abs(x).max(1, keepdims=True)
    assert set(np.unique(np.abs(trains[:, 0]))) == {0.0, 2.0}
    p = np.abs(x) / sizes
    # Five standard errors of a mean of Bernoulli draws.
    bound = 5 * sizes * np.sqrt(p * (1 - p) / steps) + 1e-6
    assert np.all(np.abs(np.asarray(trains, np.float64).mean(0) - x) <= bound)


def test_poisson_spikes_are_those_of_the_seed():
    x = jnp.linspace(0, 1, 50)[None]
    one, same, other = (Poisson().encode(x, 3, key_of(seed)) for seed in (1, 1, 2))
    assert (one == same).all() and not (one == other).all()
    assert not (one == Poisson().encode(x, 4, key_of(1))).all()


@given(st.permutations(range(7)), st.integers(1, 7), st.integers(1, 1000))
def test_poisson_spikes_do_not_depend_on_the_batch(order, size, t):
    # Two images differ in one value, two in the places of their values; two are the same.
    x = np.tile(np.linspace(0.1, 1, 10, dtype=np.float32), (7, 1))
    x[1, 3], x[2], x[3], x[4] = 0.45, x[0, ::-1], -x[0], 2 * x[0]
    x[5] = np.eye(10, dtype=np.float32)[4] / 2 + 0.5
    whole = np.asarray(poisson(jnp.asarray(x), t, key_of(5)))
    chosen = list(order)[:size]
    some = np.asarray(poisson(jnp.asarray(x[chosen]), t, key_of(5)))
    np.testing.assert_array_equal(some, whole[chosen])
    np.testing.assert_array_equal(whole[6], whole[0])


def test_poisson_spikes_of_different_images_are_independent():
    x = np.tile(np.float32([[0.5] * 19 + [1.0]]), (3, 1))
    x[1, 0] = x[2, 1] = 0.49
    steps = 4000
    trains = jax.vmap(lambda t: Poisson().encode(jnp.asarray(x), t, KEY))(jnp.arange(1, steps + 1))
    fired = np.asarray(trains[..., 2:19] > 0, np.float64) - 0.5
    for a, b in ((0, 1), (0, 2), (1, 2)):
        # Five standard errors of a mean of products of fair coins.
        assert abs(np.mean(fired[:, a] * fired[:, b])) < 5 * 0.25 / np.sqrt(fired[:, 0].size)


@pytest.mark.parametrize("coding", ["poisson", "rate"])
def test_a_black_image_sends_no_spikes(coding):
    assert not CODINGS.read(coding).encode(jnp.zeros((2, 3)), 1, KEY).any()


@pytest.mark.parametrize("coding", ["analog", "poisson", "rate"])
def test_every_coding_converges_to_the_same_rates(coding):
    rng = np.random.default_rng(0)
    w = jnp.asarray(rng.normal(0, 0.5, (6, 5)), jnp.float32)
    x = jnp.asarray(rng.normal(0.3, 1, (4, 6)), jnp.float32)

    def network(_, x):
        return clip(jax.nn.relu(x @ w), 1.5) @ w.T

    graph = convert(network, None, [x])
    state = simulation.simulate(graph, x, 3000, Simulation(coding=CODINGS.read(coding)))
    mean = (state.output.counts + state.output.membrane) / 3000 * graph.output.op.unit
    # A spike more or less; and, for Poisson, five standard errors of sums over six inputs.
    error = 0.2 if coding == "poisson" else 0.01
    np.testing.assert_allclose(mean, network(None, x), atol=error)


# --- What is refused ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "make, says",
    [
        (lambda: IF(v0=1.0), "^v0 must be in"),
        (lambda: IF(reset="none"), "^reset must be subtract or zero"),
        (lambda: IF(leak=1.0), "^leak must be in"),
        (lambda: IF(floor=-0.1), "^floor must not be negative"),
        (lambda: IF(refractory=-1), "^refractory must not be negative"),
        (
            lambda: CODINGS.read("spikes"),
            "unknown coding 'spikes': choose from analog; rate; poisson",
        ),
        (lambda: NEURONS.read("if:v0=2"), "neuron model 'if:v0=2': v0 must be in"),
        (
            lambda: NEURONS.read("if:reset=none"),
            "its reset is subtract or zero, not 'none'; write if",
        ),
        (lambda: NEURONS.read("if:0.5"), "'0.5' is no option of it; write if"),
        (lambda: IF(v0=jnp.asarray([0.5, 2.0])), "^v0 must be in"),
        (lambda: Simulation(seed=-1), "^seed must be from 0"),
        (lambda: Simulation(seed=2**31), "^seed must be from 0"),
        (lambda: Simulation(delay=-1), "^delay must not be negative"),
        (
            lambda: Simulation(executor="scan"),
            r"^executor is the text 'scan': give simulation.EXECUTORS.read\('scan'\)$",
        ),
        (lambda: Simulation("if:v0=0.5"), r"give simulation.NEURONS.read\('if:v0=0.5'\)$"),
    ],
)
def test_settings_out_of_range_are_refused(make, says):
    with pytest.raises(InputError, match=says):
        make()


def test_bursts_are_as_many_events_and_have_no_place_in_whole_networks():
    graph = convert(
        lambda w, x: clip(jax.nn.relu(x), 1.0) @ w, jnp.ones((1, 2)), [jnp.ones((1, 1))]
    )
    how, x = Simulation(toys.Burst(most=3)), jnp.full((1, 1), 2.5)
    (name, _) = trains = simulation.spike_trains(graph, x, 4, how)
    assert trains[name].ravel().tolist() == [2.0, 3.0, 2.0, 3.0]
    batch = {"image": x, "label": jnp.zeros(1, int), "mask": jnp.ones(1, bool)}
    _, activity = simulation.measure(graph, [batch], 4, how)
    assert activity.operations().tolist() == [4.0, 10.0, 14.0, 20.0], "each spike at two synapses"
    whole = simulation.quantise(graph, x)
    with pytest.raises(InputError, match="fire several times in a step"):
        simulation.simulate(whole, x, 4, how)
