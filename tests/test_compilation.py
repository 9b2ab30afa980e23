"""What is simulated again is not compiled again, and what has changed is not taken for the same."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tcl_jax import clip, convert, simulation
from tcl_jax import graph as g
from tcl_jax.conversion import evaluate
from tcl_jax.promotion import implicit
from tcl_jax.registry import Choices
from tcl_jax.simulation import (
    CODINGS,
    IF,
    NEURONS,
    READOUTS,
    Membrane,
    Poisson,
    Simulation,
)

T = 7
TABLES = NEURONS, CODINGS, READOUTS


@pytest.fixture
def nets(rng):
    """Two networks of one structure, and images."""
    x = jnp.asarray(rng.uniform(0, 1, (3, 4)), jnp.float32)

    def network(w, x):
        return clip(jax.nn.relu(x @ w[0]), 1.0) @ w[1]

    def weights():
        return [jnp.asarray(rng.normal(0, 1, shape), jnp.float32) for shape in ((4, 5), (5, 2))]

    return convert(network, weights(), [x]), convert(network, weights(), [x]), x


def _batches(x):
    return [{"image": x, "label": jnp.zeros(len(x), int), "mask": jnp.ones(len(x), bool)}]


def _counts(state, *_):
    return state.output.counts


CALLS = {
    "simulate": lambda g, x, *how: simulation.simulate(g, x, T, *how),
    "run": lambda g, x, *how: simulation.run(g, x, T, _counts, *how),
    "latency_curve": lambda g, x, *how: simulation.latency_curve(g, _batches(x), T, *how),
    "measure": lambda g, x, *how: simulation.measure(g, _batches(x), T, *how)[0],
    "spike_trains": lambda g, x, *how: simulation.spike_trains(g, x, T, *how),
    "record": lambda g, x, *how: simulation.record(g, _batches(x), T, *how).margins,
    "decide": lambda g, x, *how: simulation.decide(g, _batches(x), 1.0, T, *how, slots=2).steps,
}


@pytest.mark.parametrize("name", CALLS)
def test_a_call_of_the_same_shapes_compiles_nothing(name, nets, compilations):
    one, other, x = nets
    call, dark = CALLS[name], jnp.zeros_like(x)
    jax.block_until_ready(call(one, x))
    assert compilations
    compilations.clear()
    jax.block_until_ready([call(one, x), call(other, x), call(one, dark)])
    assert not compilations


@pytest.mark.parametrize("name", ["simulate", "latency_curve", "spike_trains"])
def test_a_call_of_the_same_shapes_traces_nothing(name, nets):
    graph, other, x = nets
    traced = []

    @Choices("neuron model").register("told")
    @dataclass(frozen=True, kw_only=True)
    class Told(IF):
        def step(self, *arguments):
            traced.append(self)
            return super().step(*arguments)

    jax.block_until_ready(CALLS[name](graph, x, Simulation(Told())))
    assert traced
    traced.clear()
    for net, v0 in ((graph, 0.0), (other, 0.0), (graph, 0.5)):
        jax.block_until_ready(CALLS[name](net, x, Simulation(Told(v0=v0))))
    assert not traced


@pytest.mark.parametrize("name", CALLS)
def test_other_numbers_compile_nothing(name, nets, compilations):
    graph, _, x = nets
    kinds = [
        Simulation(),
        Simulation(IF(v0=0.5)),
        Simulation(IF(v0=0, leak=0.25)),
        Simulation(IF(v0=np.float32(0.25), leak=0.5)),
        Simulation(delay=2),
        Simulation(delay=5),
    ]
    jax.block_until_ready(CALLS[name](graph, x, kinds[0]))
    compilations.clear()
    found = [np.asarray(jax.tree.leaves(CALLS[name](graph, x, how))[0]) for how in kinds]
    assert not compilations
    assert len({f.tobytes() for f in found}) > 1 or name in ("latency_curve", "measure", "decide")


def test_another_floor_compiles_nothing(nets, compilations):
    graph, _, x = nets
    simulation.simulate(graph, x, T, Simulation(IF(floor=1)))
    compilations.clear()
    simulation.simulate(graph, x, T, Simulation(IF(floor=0.5)))
    assert not compilations


def test_another_seed_compiles_nothing(nets, compilations):
    graph, _, x = nets
    first = simulation.simulate(graph, x, 50, Simulation(coding=Poisson()))
    compilations.clear()
    for seed in (1, 2**31 - 1):
        other = simulation.simulate(graph, x, 50, Simulation(coding=Poisson(), seed=seed))
        assert np.any(np.asarray(other.output.counts) != np.asarray(first.output.counts))
    assert not compilations


def test_what_is_observed_may_change(nets, compilations):
    """By what a function reads beside its arguments: `jax.jit` would take it for the same."""
    graph, other, x = nets
    scale = 1.0

    @implicit()
    def observe(state, spikes, t):
        return state.output.membrane * scale

    first = simulation.run(graph, x, T, observe)[1]
    scale = 2.0
    np.testing.assert_array_equal(simulation.run(graph, x, T, observe)[1], 2 * first)
    compilations.clear()

    def scaled_by(factor):
        return simulation.run(graph, x, T, implicit()(lambda s, *_: s.output.membrane * factor))

    np.testing.assert_array_equal(2 * scaled_by(1.0)[1], scaled_by(2.0)[1])
    simulation.run(other, x, T, observe)
    assert not compilations
    for array in (np.arange(2.0, dtype=np.float32), np.ones(2, np.float32)):
        compilations.clear()
        state, found = scaled_by(jnp.asarray(array))
        np.testing.assert_array_equal(found[-1], np.asarray(state.output.membrane) * array)
    assert not compilations, "arrays that are read are arguments"


def test_what_is_called_back_may_change(nets):
    """Programs that call other Python functions read alike."""
    graph, _, x = nets
    seen = []

    def told(word):
        def observe(state, spikes, t):
            jax.debug.callback(lambda c: seen.append((word, float(c))), state.output.counts.sum())

        simulation.run(graph, x, T, observe)
        jax.effects_barrier()

    def scaled(by):
        def observe(state, spikes, t):
            like = jax.ShapeDtypeStruct(state.output.counts.shape, state.output.counts.dtype)
            return jax.pure_callback(lambda c: np.asarray(c) * by, like, state.output.counts)

        return simulation.run(graph, x, T, observe)[1]

    told("one")
    told("other")
    assert [word for word, _ in seen] == ["one"] * T + ["other"] * T
    np.testing.assert_array_equal(scaled(np.float32(2)), 2 * scaled(np.float32(1)))


def test_a_simulation_is_part_of_the_caller_s_program(nets):
    graph, _, x = nets
    alone = simulation.run(graph, x, T, lambda s, *_: s.output.counts)[1]

    def scaled(x, by):
        return simulation.run(graph, x, T, lambda s, *_: s.output.counts * by)[1]

    factors = jnp.asarray([1.0, 3.0])
    np.testing.assert_array_equal(jax.jit(scaled)(x, 3.0), 3 * alone)
    np.testing.assert_array_equal(jax.jit(lambda by: scaled(x, by))(3.0), 3 * alone)
    by_factor = jax.vmap(lambda by: scaled(x, by))(factors)
    np.testing.assert_array_equal(by_factor, [alone, 3 * alone])
    by_image = jax.vmap(lambda x: scaled(x[None], 1.0)[:, 0], out_axes=1)(x)
    np.testing.assert_array_equal(by_image, alone)


def test_many_initial_potentials_at_once(nets):
    graph, _, x = nets
    values = jnp.asarray([0.0, 0.25, 0.5])
    found = jax.vmap(lambda v0: simulation.simulate(graph, x, T, Simulation(IF(v0=v0))))(values)
    for i, v0 in enumerate(values.tolist()):
        alone = simulation.simulate(graph, x, T, Simulation(IF(v0=v0)))
        for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(alone), strict=True):
            np.testing.assert_array_equal(a[i], b)


def test_evaluation_is_one_program(nets, compilations):
    one, other, x = nets
    x = jnp.asarray(np.asarray(x)[:2])  # of all three it was compiled when these were converted
    compilations.clear()
    evaluate(one, x)
    assert len(compilations) == 1
    evaluate(other, x)
    assert len(compilations) == 1


def test_structures_tell_classes_apart():
    """JAX takes programs for the same where the structures of their arguments are equal."""
    found = [
        *(choices[name]() for choices in TABLES for name in choices),
        *(g.Reshape((1, 0)), g.Transpose((1, 0)), g.Add(), g.Concat(1)),
        *(g.Dense(jnp.eye(2), None), g.Scale(jnp.ones(2), None), Simulation()),
    ]
    structures = [jax.tree.structure(value) for value in found]
    for number, one in enumerate(structures):
        assert one == one and one not in structures[:number]
    assert jax.tree.structure(Simulation()) != jax.tree.structure(Simulation(readout=Membrane()))
