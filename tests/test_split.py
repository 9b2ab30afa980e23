"""Which values bfloat16 holds, and products of them that are exact."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toys
import wiring
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from tcl_jax import clip, convert, simulation
from tcl_jax import graph as g
from tcl_jax.graph.counts import Multiples, multiples
from tcl_jax.graph.synapses import in_bfloat16
from tcl_jax.promotion import implicit
from tcl_jax.simulation.split import Split, _parts

LATENCY = 20


def _conv(x, kernel, strides=(1, 1)):
    dims = ("NHWC", "HWIO", "NHWC")
    return jax.lax.conv_general_dilated(x, kernel, strides, "SAME", dimension_numbers=dims)


@implicit()
def _network(w, x):
    """An identity shortcut, a pool, branches side by side, an average over all places."""
    x = clip(jax.nn.relu(_conv(x, w["first"])), 1.0)
    y = clip(jax.nn.relu(_conv(x, w["second"]) + x), 1.0)
    y = jax.lax.reduce_window(y, 0.0, jax.lax.add, (1, 2, 2, 1), (1, 2, 2, 1), "VALID") / 4
    z = clip(jax.nn.relu(_conv(y, w["third"])), 1.0)
    y = clip(jax.nn.relu(_conv(jnp.concatenate([y, z], -1), w["fourth"]) + 0.125), 1.0)
    return y.mean((1, 2)) @ w["last"]


@pytest.fixture
def weights(rng):
    """Of which float32 holds all sums: multiples of 2^-12 that need two parts."""
    shapes = {
        "first": (3, 3, 2, 4),
        "second": (3, 3, 4, 4),
        "third": (3, 3, 4, 4),
        "fourth": (1, 1, 8, 6),
        "last": (6, 5),
    }
    return {
        name: jnp.asarray(rng.integers(-2500, 2500, shape) / 2**12, jnp.float32)
        for name, shape in shapes.items()
    }


@pytest.fixture
def images(rng):
    return jnp.asarray(rng.integers(-64, 64, (6, 6, 6, 2)) / 32, jnp.float32)


@pytest.fixture
def graph(weights, images):
    return convert(_network, weights, images)


# --- Which values ---------------------------------------------------------------------------


def test_values_are_multiples_of_what_is_said(graph, images, rng):
    found = multiples(graph, spikes=1)
    known: dict = {graph.input.name: images}
    for kind in (rng.integers(0, 2, (50, 6, 6, 6)), np.ones((1, 6, 6, 6))):
        for neuron in graph.neurons:
            shape = g.shapes(graph)[neuron.name]
            some = np.resize(kind, (len(images), *shape)) * np.asarray(neuron.op.threshold)
            known[neuron.name] = jnp.asarray(some, jnp.float32)
        values = g.walk(graph, known, g.apply, lambda node, z: z)
        for name, of in found.items():
            times = np.asarray(values[name], np.float64) / of.step
            np.testing.assert_allclose(times, np.rint(times), rtol=0, atol=1e-5)
            assert np.abs(times).max() <= of.most + 1e-5
            if (kind == 1).all():  # where all fire, it is as large as it can be
                assert np.abs(times).max() == pytest.approx(of.most)
    assert Multiples(0.25, 4) in found.values(), "the pool"
    assert 9 in {of.most for of in found.values()}, "the average"


def test_weights_and_unlike_thresholds_are_of_nothing(graph):
    found = multiples(graph, spikes=1)
    assert not {n.name for n in graph.nodes if isinstance(n.op, g.Conv | g.Dense)} & found.keys()
    assert graph.input.name not in found
    first = graph.neurons[0].name
    unlike = graph.with_thresholds({first: jnp.array([1.0, 1.0, 1.0, 0.5])})
    assert first not in multiples(unlike, spikes=1)
    assert multiples(graph, spikes=3)[first] == Multiples(1.0, 3)


@pytest.mark.parametrize(
    ("step", "most", "held"),
    [(1.0, 1, True), (0.25, 256, True), (0.25, 257, False), (0.75, 1, False), (1 / 49, 1, False)],
)
def test_whether_bfloat16_holds_them(step, most, held):
    assert Multiples(step, most).in_bits(8) == held
    values = (np.arange(most + 1) * step).astype(np.float32)
    as_such = values.astype(jnp.bfloat16).astype(np.float32)
    # Of 0.75 it holds some multiples, too: steps other than powers of 2 are not looked into.
    assert not held or np.array_equal(values, as_such)


# --- Parts ----------------------------------------------------------------------------------


@given(
    arrays.arrays(
        np.float32,
        7,
        elements=st.floats(-1e6, 1e6, width=32).filter(lambda x: x == 0 or abs(x) > 1e-20),
    )
)
def test_weights_are_the_sum_of_three_parts(kernel):
    parts = list(_parts(kernel))
    assert len(parts) <= 3 and {part.dtype for part in parts} == {jnp.dtype(jnp.bfloat16)}
    np.testing.assert_array_equal(sum(part.astype(np.float64) for part in parts), kernel)


def test_weights_of_more_digits_stay_as_they_are(rng):
    assert len(list(_parts(rng.normal(size=9)))) == 4


# --- Graphs ---------------------------------------------------------------------------------


def _counts(graph, x):
    return simulation.simulate(graph, x, LATENCY).output.counts


def _products(graph, x):
    text = jax.jit(_counts).trace(graph, x).lower(lowering_platforms=("tpu",)).as_text()
    lines = re.findall(r".*stablehlo\.(?:dot_general|convolution).*", text)
    types = [re.findall(r"x(bf16|f32)>", line.split(" : (")[1]) for line in lines]
    assert all(line.count("HIGHEST") == 2 for line in lines)
    return [tuple(of) for of in types]


def test_spikes_are_multiplied_in_bfloat16(graph, images):
    exact, once = ("f32", "f32", "f32"), ("bf16", "bf16", "f32")
    lowered = simulation.lower(graph, "tpu", simulation.IF())
    products = _products(lowered, images)
    # Images, and an average over nine places, are no numbers of bfloat16.
    assert products.count(exact) == 2 and products.count(once) == len(products) - 2
    parts = [len(split.parts) for split in wiring.operations(lowered, Split)]
    assert len(parts) == 3 and sum(parts) == products.count(once) and set(parts) <= {2, 3}
    rounded = _products(simulation.lower(in_bfloat16(graph), "tpu", simulation.IF()), images)
    assert rounded.count(exact) == 2 and rounded.count(once) == 3


def test_weights_of_one_place_stay_whole(rng):
    """Three parts take longer to read; one part takes half as long."""
    w = [jnp.asarray(rng.normal(0, 1, (5, 5)), jnp.float32) for _ in range(2)]
    x = jnp.asarray(rng.normal(0, 1, (3, 5)), jnp.float32)
    graph = convert(lambda w, x: clip(jax.nn.relu(x @ w[0]), 1.0) @ w[1], w, x)
    assert not wiring.operations(simulation.lower(graph, "tpu", simulation.IF()), Split)
    (op,) = wiring.operations(simulation.lower(in_bfloat16(graph), "tpu", simulation.IF()), Split)
    assert len(op.parts) == 1


def test_spikes_are_the_same(graph, images):
    for network in (graph, in_bfloat16(graph)):
        lowered = simulation.lower(network, "tpu", simulation.IF())
        assert wiring.operations(lowered, Split)
        expected = _counts(network, images)
        assert np.sum(expected) > 50
        np.testing.assert_array_equal(_counts(lowered, images), expected)
        blocks = simulation.Simulation(executor=simulation.Blocked(4))
        state = simulation.simulate(lowered, images, LATENCY, blocks)
        np.testing.assert_array_equal(state.output.counts, expected)


@pytest.mark.parametrize("neurons", [None, toys.Burst()])
def test_where_spikes_are_not_known_nothing_is_split(graph, neurons):
    assert not wiring.operations(simulation.lower(graph, "tpu", neurons), Split)


def test_other_platforms_and_whole_numbers_are_left_alone(graph, images):
    neurons = simulation.IF()
    for platform in ("cpu", "gpu"):
        assert not wiring.operations(simulation.lower(graph, platform, neurons), Split)
    whole = simulation.quantise(graph, images)
    assert not wiring.operations(simulation.lower(whole, "tpu", neurons), Split)
