"""Integer networks: int8 weights and int32 potentials, the same spikes wherever computed."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import wiring
from hypothesis import given, settings
from hypothesis import strategies as st
from jax import export
from numpy.lib.stride_tricks import sliding_window_view

from tcl_jax import InputError, clip, cluster, convert, models, simulation
from tcl_jax import graph as g
from tcl_jax.conversion import Artifact, load, save
from tcl_jax.graph.convolution import convolve, weigh
from tcl_jax.promotion import implicit

LATENCY = 30


def _conv(x, kernel, strides=(1, 1), groups=1):
    return jax.lax.conv_general_dilated(
        x,
        kernel,
        strides,
        "SAME",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=groups,
    )


def _pool(x, size):
    shape = (1, size, size, 1)
    return jax.lax.reduce_window(x, 0.0, jax.lax.add, shape, shape, "VALID") / size**2


@implicit()
def _network(w, x):
    """A strided convolution, a pool, a depthwise one, a shortcut and a dense layer."""
    x = clip(jax.nn.relu(_conv(x, w["a"], (2, 2)) + w["bias"]), 1.5)
    x = _pool(x, 2)
    y = clip(jax.nn.relu(_conv(x, w["b"], groups=8)), 0.8)
    y = clip(jax.nn.relu(_conv(y, w["c"]) + y), 1.2)
    return y.reshape(y.shape[0], -1) @ w["d"]


@pytest.fixture
def weights(rng):
    shapes = {"a": (3, 3, 2, 8), "bias": (8,), "b": (3, 3, 1, 8), "c": (3, 3, 8, 8), "d": (32, 5)}
    return {k: jnp.asarray(rng.normal(0, 0.4, s), jnp.float32) for k, s in shapes.items()}


@pytest.fixture
def images(rng):
    return jnp.asarray(rng.normal(0, 1, (8, 8, 8, 2)), jnp.float32)


# --- NumPy, in 64 bits ----------------------------------------------------------------------


def _convolved(x, node):
    kernel = np.asarray(node.kernel, np.int64)
    x = np.pad(x, ((0, 0), *node.padding, (0, 0)))
    windows = sliding_window_view(x, kernel.shape[:2], (1, 2))
    windows = windows[:, :: node.strides[0], :: node.strides[1]]  # b h w c i j
    outs = kernel.shape[-1] // node.groups
    ins = kernel.shape[-2]
    parts = []
    for k in range(node.groups):
        part = windows[..., k * ins : (k + 1) * ins, :, :]
        own = kernel[..., k * outs : (k + 1) * outs]
        parts.append(np.einsum("bhwcij,ijco->bhwo", part, own))
    return np.concatenate(parts, -1)


def _step(graph, potentials, image):
    values, spikes = [], {}
    for node in graph.nodes:
        ins = [values[i] for i in node.inputs]
        op = node.op
        match op:
            case g.Input():
                value = image
            case g.Quantise():
                value = np.rint(ins[0] * np.float32(op.rate)).clip(-127, 127).astype(np.int64)
            case g.Conv():
                value = _convolved(ins[0], op)
                value = value + (0 if op.bias is None else np.asarray(op.bias))
            case g.Dense():
                value = ins[0] @ np.asarray(op.kernel, np.int64)
                value = value + (0 if op.bias is None else np.asarray(op.bias))
            case g.Pool():
                b, h, w, c = ins[0].shape
                k = op.window[0]
                value = ins[0].reshape(b, h // k, k, w // k, k, c).sum((2, 4))
            case g.Scale():
                value = ins[0] * np.asarray(op.scale) + np.asarray(op.shift)
            case g.Add():
                value = ins[0] + ins[1]
            case g.Reshape():
                value = ins[0].reshape(ins[0].shape[0], *op.shape)
            case g.Population() | g.Output():
                potential = potentials.get(node.name, 0) + ins[0]
                value = (potential >= np.asarray(op.threshold)).astype(np.int64)
                potentials[node.name] = potential - value * np.asarray(op.threshold)
                spikes[node.name] = value
        values.append(value)
    return spikes


def test_spikes_are_those_of_numpy(weights, images):
    graph = simulation.quantise(convert(_network, weights, images), images)
    trains = simulation.spike_trains(graph, images, LATENCY)
    potentials: dict = {}
    fired = 0
    for t in range(LATENCY):
        for name, expected in _step(graph, potentials, np.asarray(images)).items():
            np.testing.assert_array_equal(trains[name][t], expected)
            fired += expected.sum()
    assert fired > 1000


# --- What is rounded ------------------------------------------------------------------------


def test_weights_are_rounded_in_units_of_their_channel(rng):
    w = jnp.asarray(rng.normal(0, 1, (6, 4)) * [1, 2, 3, 0.1], jnp.float32)
    x = jnp.asarray(rng.normal(0, 1, (3, 6)), jnp.float32)

    def network(w, x):
        x = clip(jax.nn.relu(x), 2.0)
        return clip(jax.nn.relu(x @ w + 0.5), 1.0) @ jnp.eye(4)

    graph = convert(network, w, x)
    hidden = wiring.operations(simulation.quantise(graph, x), g.Dense)[0]
    found = simulation.quantise(graph, x)
    neuron = found.neurons[1].op
    unit = np.abs(np.asarray(w, np.float64) * 2).max(0) / 127  # the layer before has λ = 2
    np.testing.assert_array_equal(hidden.kernel, np.rint(np.asarray(w, np.float64) * 2 / unit))
    np.testing.assert_array_equal(hidden.bias, np.rint(0.5 / unit))
    np.testing.assert_array_equal(neuron.threshold, np.rint(1 / unit))
    assert hidden.kernel.dtype == jnp.int8
    assert hidden.bias.dtype == neuron.threshold.dtype == jnp.int32
    assert (neuron.clip, neuron.unit) == (1, 1) and found.neurons[0].op.unit == 2


@pytest.mark.parametrize("name", ["cnet", pytest.param("resnet20", marks=pytest.mark.long)])
def test_logits_are_nearly_those_of_the_float_network(name, rng, randomised):
    x = jnp.asarray(rng.normal(0, 1, (4, 16, 16, 3)), jnp.float32)
    model = models.create(name, image_shape=x.shape[1:], num_classes=5)
    variables = randomised(jax.eval_shape(model.init, jax.random.key(0), x))
    graph = convert(model.apply, variables, x)
    logits = {}
    for key, network in {"float": graph, "int": simulation.quantise(graph, x)}.items():
        state = jax.jit(simulation.simulate, static_argnums=2)(simulation.lower(network), x, 100)
        out = network.output
        held, counts = state.output
        total = np.asarray(held) + np.asarray(counts * out.op.threshold)
        logits[key] = total * np.asarray(out.op.unit)
    error = np.abs(logits["int"] - logits["float"]).max() / np.abs(logits["float"]).max()
    assert 0 < error < 0.1


def test_a_pool_beside_neurons_is_counted_in_common_units(rng):
    w = jnp.asarray(rng.normal(0, 0.5, (4, 3)), jnp.float32)
    x = jnp.asarray(rng.uniform(0, 1, (4, 4, 4, 2)), jnp.float32)

    def network(w, x):
        x = clip(jax.nn.relu(x), 1.0)
        both = jnp.concatenate([_pool(x, 2), x[:, ::2, ::2]], -1)
        return jnp.sum(both @ w, (1, 2))

    graph = convert(network, w, x)
    found = simulation.simulate(simulation.quantise(graph, x), x, 200).output.counts
    expected = simulation.simulate(graph, x, 200).output.counts
    np.testing.assert_allclose(found, expected, atol=0.02 * 200)
    assert np.max(expected) > 100


def test_a_scale_below_zero_before_weights(rng):
    """As where what is between was never folded: what 1 stands for is then below 0."""
    w = jnp.asarray(rng.normal(-0.2, 0.3, (4, 3)), jnp.float32)
    x = jnp.asarray(rng.uniform(0, 1, (5, 4)), jnp.float32)
    one = jnp.ones(())
    graph = wiring.graph(
        x=(g.Input((4,)),),
        n=(g.Population.clipped(one), "x"),
        negative=(g.Scale(-one, 0 * one), "n"),
        d=(g.Dense(w, None), "negative"),
        m=(g.Population.clipped(one), "d"),
        y=(g.Output(one, one), "m"),
    )
    whole = simulation.quantise(graph, x)
    (dense,) = wiring.operations(whole, g.Dense)
    unit = np.abs(np.asarray(w, np.float64)).max(0) / 127
    np.testing.assert_array_equal(dense.kernel, np.rint(-np.asarray(w, np.float64) / unit))
    counts = [simulation.simulate(n, x, 200).output.counts for n in (graph, whole)]
    assert np.max(counts[0]) > 50
    np.testing.assert_allclose(*counts, atol=4)


# --- Exactness ------------------------------------------------------------------------------


def test_a_cpu_sums_in_float_what_others_sum_in_int(rng):
    x = jnp.asarray(rng.integers(0, 2, (4, 5000)), jnp.int8)
    kernel = jnp.asarray(rng.integers(-127, 128, (5000, 7)), jnp.int8)

    exact = jnp.matmul(x, kernel, preferred_element_type=jnp.int32)
    np.testing.assert_array_equal(weigh(x, kernel, jnp.matmul), exact)
    assert weigh(x, kernel, jnp.matmul).dtype == jnp.int32


def _built_for(platform, function, *arguments):
    """What a platform's program gives; a CPU runs it."""
    program = export.export(
        jax.jit(function),
        platforms=[platform],
        disabled_checks=[export.DisabledSafetyCheck.platform()],
    )(*arguments)
    return program.mlir_module(), program.call(*arguments)


@settings(max_examples=20)
@given(
    st.integers(1, 3),
    st.tuples(*[st.integers(1, 3)] * 3),
    st.tuples(*[st.integers(1, 2)] * 3),
    st.tuples(*[st.tuples(st.integers(-1, 2), st.integers(-1, 2))] * 3),
    st.tuples(*[st.integers(1, 2)] * 3),
    st.sampled_from([(1, 2, 3), (2, 2, 3), (4, 1, 2)]),
)
def test_a_gpu_convolves_whole_numbers_place_by_place(
    rank, window, strides, padding, dilation, channels
):
    """It has no convolution of int8, and its fast ones of floats are not exact."""
    groups, ins, outs = channels
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.integers(-127, 128, (2, *(7, 6, 5)[:rank], groups * ins)), jnp.int8)
    kernel = jnp.asarray(rng.integers(-127, 128, (*window[:rank], ins, groups * outs)), jnp.int8)
    how = strides[:rank], padding[:rank], dilation[:rank]
    space = "DHW"[3 - rank :]
    exact = jax.lax.conv_general_dilated(
        x,
        kernel,
        *how[:2],
        rhs_dilation=how[2],
        dimension_numbers=(f"N{space}C", f"{space}IO", f"N{space}C"),
        feature_group_count=groups,
        preferred_element_type=jnp.int32,
    )
    text, found = _built_for("cuda", lambda x, k: convolve(x, k, *how, groups), x, kernel)
    np.testing.assert_array_equal(found, exact)
    assert found.dtype == jnp.int32
    kernels = re.findall(r"stablehlo.convolution.*tensor<([0-9x]*)xf32>\) ->", text)
    assert len(kernels) == np.prod(window[:rank])
    assert set(kernels) == {"x".join(map(str, (*(1,) * rank, ins, groups * outs)))}


def test_a_gpu_and_a_tpu_are_given_the_same_spikes(weights, images):
    graph = simulation.quantise(convert(_network, weights, images), images)

    def counts(graph, x):
        return simulation.simulate(graph, x, LATENCY).output.counts

    expected = counts(graph, images)
    for platform in ("cuda", "tpu"):
        text, found = _built_for(platform, counts, graph, images)
        np.testing.assert_array_equal(found, expected)
        convolves_int8 = re.search(r"stablehlo.convolution.*xi8>\) ->", text) is not None
        assert convolves_int8 == (platform == "tpu")


def test_devices_and_batches_do_not_matter(weights, images):
    graph = simulation.quantise(convert(_network, weights, images), images)
    simulate = jax.jit(simulation.simulate, static_argnums=2)
    whole = simulate(graph, images, LATENCY)
    four = cluster.everywhere()
    assert four.mesh.size == 4
    spread = simulate(four.replicate(graph), four.put(np.asarray(images)), LATENCY)
    lowered = simulate(simulation.lower(graph, "cpu"), images, LATENCY)
    single = [simulate(graph, x[None], LATENCY) for x in images]
    alone = jax.tree.map(lambda *states: np.concatenate(states), *single)
    for other in (alone, spread, lowered):
        jax.tree.map(np.testing.assert_array_equal, whole, other)
    assert {potential.dtype for potential in jax.tree.leaves(whole)} == {np.dtype("int32")}


def test_an_integer_network_is_saved_and_loaded(tmp_path, weights, images):
    graph = simulation.quantise(convert(_network, weights, images), images)
    save(Artifact(graph, {}), tmp_path / "snn")
    found = load(tmp_path / "snn").graph
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(graph), strict=True):
        assert one.dtype == other.dtype
        np.testing.assert_array_equal(one, other)


def test_initial_potential_floor_and_membrane_readout_are_whole(weights, images):
    graph = simulation.quantise(convert(_network, weights, images), images)
    how = simulation.Simulation(simulation.IF(v0=0.5, floor=1.0))
    state = simulation.init_state(graph, 1, how)
    first = graph.neurons[0]
    np.testing.assert_array_equal(
        state.neurons[first.name][0, 0, 0], np.rint(first.op.threshold / 2)
    )
    state = simulation.simulate(graph, images, LATENCY, how)
    for neuron in graph.neurons:
        assert np.all(np.asarray(state.neurons[neuron.name]) >= -np.asarray(neuron.op.threshold))
    for readout in (simulation.Spikes(), simulation.Membrane()):
        how = simulation.Simulation(readout=readout)
        state = simulation.simulate(graph, images, LATENCY, how)
        assert simulation.classify(graph, state, how).shape == (8,)
        assert {kept.dtype for kept in jax.tree.leaves(state.output)} == {np.dtype("int32")}


def test_whole_potentials_leak_whole_numbers():
    """Against a scalar loop."""
    graph = convert(lambda _, x: clip(jax.nn.relu(x), 1.0), None, [jnp.ones((1, 1))])
    graph = simulation.quantise(graph, jnp.ones((1, 1)))
    (name,), threshold = [n.name for n in graph.neurons], int(graph.neurons[0].op.threshold.max())
    x = jnp.asarray([[0.4]])
    current = simulation.simulate(graph, x, 1).neurons[name].item()
    v, counts = 0, 0
    for _ in range(LATENCY):
        v = v - round(0.1 * v) + current
        counts, v = counts + (v >= threshold), v - threshold * (v >= threshold)
    leaky = simulation.Simulation(simulation.IF(leak=0.1))
    state = simulation.simulate(graph, x, LATENCY, leaky)
    assert state.neurons[name].item() == v and 0 < counts < 0.4 * LATENCY
    fired = simulation.spike_trains(graph, x, LATENCY, leaky)[name]
    assert fired.sum() == counts


# --- Refusals -------------------------------------------------------------------------------


def test_two_maps_in_a_row_are_refused(weights, images):
    def network(w, x):
        return _conv(_conv(clip(jax.nn.relu(x), 1.0), w["a"]), w["c"]).sum((1, 2))

    with pytest.raises(InputError, match="with no neurons between them"):
        simulation.quantise(convert(network, weights, images), images)


def test_pools_without_a_common_unit_are_refused(images):
    def network(w, x):
        x = clip(jax.nn.relu(x), 1.0)
        both = jnp.concatenate([_pool(x, 4).sum((1, 2)), _pool(x[:, :6, :6], 3).sum((1, 2))], -1)
        return both @ w

    with pytest.raises(InputError, match="no common whole number"):
        simulation.quantise(convert(network, jnp.ones((4, 2)), images), images)


def test_images_without_content_are_refused(weights, images):
    with pytest.raises(InputError, match="largest value is 0"):
        simulation.quantise(convert(_network, weights, images), images * 0)


def test_a_current_that_is_read_twice(rng):
    w, x = (jnp.asarray(rng.normal(0.3, 1, s), jnp.float32) for s in ((4, 4), (50, 4)))

    def network(_, x):
        a = clip(jax.nn.relu(x @ w), 1.0) @ w
        return clip(jax.nn.relu(a + a), 2.0) @ w

    graph = simulation.quantise(convert(network, None, [x]), x)
    (add,) = (n for n in graph.nodes if isinstance(n.op, g.Add))
    assert len(set(add.inputs)) == 1
    two, nothing = jnp.full((), 2, jnp.int32), jnp.zeros((), jnp.int32)
    double = g.Node(g.Scale(two, nothing), add.inputs[:1], add.name)
    doubled = g.Graph(tuple(double if n is add else n for n in graph.nodes))
    counts = [
        np.asarray(simulation.simulate(n, x, LATENCY).output.counts) for n in (graph, doubled)
    ]
    assert counts[0].any()
    np.testing.assert_array_equal(*counts)
