"""Executors: whatever the order, the same spikes; a long simulation takes no more memory."""

from dataclasses import replace
from functools import cache
from itertools import product

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toys as toys
from hypothesis import given
from hypothesis import strategies as st
from networks import LAM_OUT, Dyadic, Layers, flat, images, tcl

from tcl_jax import cluster, simulation
from tcl_jax.conversion import Graph, fold, normalise, trace, with_norms
from tcl_jax.errors import InputError
from tcl_jax.graph import shapes
from tcl_jax.promotion import implicit
from tcl_jax.simulation import CODINGS, EXECUTORS, NEURONS, READOUTS, Blocked, Scan, Simulation
from tcl_jax.simulation.costs import COSTS
from tcl_jax.simulation.executors import _dividing

TIMESTEPS = 11
BLOCKED = ("blocked:4", "blocked:11", "blocked:100", "blocked")
SIMPLEST = (BLOCKED[0], "if", "analog")


@cache
def _graph() -> Graph:
    """A layer that sees the image and spikes, one that sees spikes of two; all sums exact."""

    @implicit()
    def network(x: jax.Array) -> jax.Array:
        to = Layers(Dyadic(0), tcl)
        first = to.act(to.conv(x, 4) + 0.25, 4)
        second = to.act(to.conv(first, 4) + to.conv(x, 4), 4)
        return to.dense(flat(jnp.concatenate([first + second, second], -1)), 3)

    graph = fold(trace(network, jnp.asarray(images(1), jnp.float32)))
    return normalise(with_norms(graph, {"output": LAM_OUT}))


def _everything(state, spikes, t):
    return state, spikes


@pytest.mark.parametrize(
    "executor, neurons, coding",
    [
        # Each with the simplest of the others; all of them by `make test-long`.
        pytest.param(
            *row, marks=() if sum(map(str.__ne__, row, SIMPLEST)) < 2 else pytest.mark.long
        )
        for row in product(
            BLOCKED,
            ("if", "if:leak=0.25,v0=0.5,floor=1", "if:reset=zero,refractory=2", "burst"),
            ("analog", "rate", "poisson", "flicker"),
        )
    ],
)
def test_states_and_spikes_are_those_of_single_steps(executor, neurons, coding, monkeypatch):
    """At every step, also where the last block is shorter, and reading starts within one."""
    monkeypatch.setitem(COSTS, "cpu", replace(COSTS["cpu"], block=0))  # tiny as it is
    assert EXECUTORS.read(executor).block(_graph(), 3, TIMESTEPS) > 1
    x = jnp.asarray(images(3), jnp.float32)
    how = Simulation(
        NEURONS.read(neurons), CODINGS.read(coding), READOUTS.read("every"), delay=3, seed=5
    )
    expected = _run(x, replace(how, executor=Scan()))
    found = _run(x, replace(how, executor=EXECUTORS.read(executor)))
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for one, other in zip(jax.tree.leaves(expected), jax.tree.leaves(found), strict=True):
        assert one.dtype == other.dtype
        np.testing.assert_array_equal(other, one)
    _, (_, spikes) = expected
    assert all(np.mean(train != 0) > 0 for train in spikes.values())


def _run(x, how):
    return simulation.run(_graph(), x, TIMESTEPS, _everything, how)


def test_every_executor_is_tested():
    assert {EXECUTORS.read(text).name for text in (*BLOCKED, "scan")} == set(EXECUTORS)
    for text in (*BLOCKED, "blocked:2,memory=0.5", "blocked:platform=tpu", "scan"):
        assert str(EXECUTORS.read(text)) == text


def test_what_is_read_is_that_of_the_curve():
    x, labels = jnp.asarray(images(8), jnp.float32), jnp.arange(8) % 3
    batch = {"image": x, "label": labels, "mask": np.arange(8) < 7}
    curves, activities = zip(
        *(
            simulation.measure(_graph(), [batch], TIMESTEPS, Simulation(executor=executor))
            for executor in (Scan(), Blocked(4))
        ),
        strict=True,
    )
    np.testing.assert_array_equal(*curves)
    for one, other in zip(*(a.layers for a in activities), strict=True):
        np.testing.assert_array_equal(other.spikes, one.spikes)


def test_devices_have_their_images_in_every_block():
    """Four devices exchange nothing, and count what one does."""
    four, x = cluster.everywhere(), images(8).astype(np.float32)
    how = Simulation(executor=Blocked(4))
    simulate = jax.jit(simulation.simulate, static_argnums=2)
    arguments = four.replicate(_graph()), four.put(x), TIMESTEPS, how
    program = simulate.lower(*arguments).compile().as_text()
    assert "while" in program
    for exchange in ("all-gather", "all-to-all", "all-reduce", "collective-permute"):
        assert exchange not in program
    np.testing.assert_array_equal(
        simulate(*arguments).output.counts,
        simulation.simulate(_graph(), jnp.asarray(x), TIMESTEPS, how).output.counts,
    )


@pytest.mark.parametrize("executor", [Scan(), Blocked(4)])
def test_memory_does_not_grow_with_time(executor):
    x, how = jnp.asarray(images(8), jnp.float32), Simulation(executor=executor)
    simulate = jax.jit(simulation.simulate, static_argnums=2)

    def taken(timesteps):
        return simulate.lower(_graph(), x, timesteps, how).compile().memory_analysis()

    few, many = taken(10), taken(1000)
    grown = many.temp_size_in_bytes - few.temp_size_in_bytes
    assert grown <= 8 * 990 < 0.2 * few.temp_size_in_bytes  # the numbers of the steps


@given(st.integers(1, 400), st.integers(1, 40), st.integers(0, 40))
def test_blocks_leave_no_steps_over_where_that_takes_no_other_length(timesteps, near, room):
    found = _dividing(timesteps, near, most=near + room)
    like = [
        k
        for k in range(1, near + room + 1)
        if timesteps % k == 0 and max(k, near) ** 2 <= 2 * min(k, near) ** 2
    ]
    apart = {k: max(k / near, near / k) for k in like}
    assert apart.get(found) == min(apart.values()) if like else found == near


def test_a_block_is_as_long_as_memory_and_time_allow():
    graph = _graph()
    sizes = {name: np.prod(shape) for name, shape in shapes(graph).items()}
    step = 4 * sum(int(sizes[n.name]) for n in graph.spiking) / 2**30
    assert Blocked(8, memory=5.5 * step).block(graph, 1, 100) == 5
    assert Blocked(8, memory=5.5 * step).block(graph, 5, 100) == 1
    assert Blocked(8, memory=1e-9).block(graph, 1, 100) == 1
    assert Blocked(8).block(graph, 1, 5) == 5
    assert Scan().block(graph, 1, 100) == 1


def test_costs_decide_how_long_a_block_is():
    """The more images, the less a block gains; it is a step of what is tiny, or not measured."""
    rng = np.random.default_rng(0)
    w = [jnp.asarray(rng.normal(size=s), jnp.float32) for s in ((6, 1000), (1000, 600), (600, 3))]

    @implicit()
    def network(x: jax.Array) -> jax.Array:
        return tcl(tcl(x @ w[0], LAM_OUT) @ w[1], LAM_OUT) @ w[2]

    graph = with_norms(trace(network, jnp.zeros((1, 6))), {"output": LAM_OUT})
    lengths = [Blocked(platform="cpu").block(graph, batch, 1000) for batch in (1, 30, 10_000)]
    assert lengths[0] > lengths[1] > lengths[2] == 1
    assert all(1000 % length == 0 for length in lengths)
    assert Blocked(platform="tpu").block(graph, 1, 1000) == 1
    assert Blocked(platform="cpu").block(_graph(), 1, 1000) == 1


def test_what_cannot_be_is_refused():
    for text, what in (
        ("blocked:0", "steps must be at least 1, got 0"),
        ("blocked:memory=0", "memory must be above 0 GiB, got 0"),
        ("blocked:platform=abacus", "its platform is cpu or gpu or tpu, not 'abacus'"),
    ):
        with pytest.raises(InputError, match=what):
            EXECUTORS.read(text)
