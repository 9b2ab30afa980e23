"""Synaptic operations, against counts by loops over every output, window and tap."""

import csv
import itertools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import wiring
from cli import converted as converted
from cli import succeed
from cli import trained as trained

from tcl_jax import InputError, clip, convert, simulation
from tcl_jax import graph as g
from tcl_jax.simulation import energy
from tcl_jax.simulation.energy import _by_fan_out
from tcl_jax.simulation.operations import (
    FLOAT32,
    FanOut,
    OperationCost,
    Operations,
    analog_operations,
    fan_outs,
)

ONE = jnp.ones(())


def _conv(shape, kernel, strides, padding, dilation, groups, rng):
    """A graph of neurons, a convolution and neurons."""
    weights = jnp.asarray(rng.normal(0, 0.3, kernel), jnp.float32)
    return wiring.graph(
        input=(g.Input(shape),),
        a=(g.Population.clipped(ONE), "input"),
        conv=(g.Conv(weights, None, strides, padding, dilation, groups), "a"),
        b=(g.Population.clipped(ONE), "conv"),
        output=(g.Output(ONE, ONE), "b"),
    )


def _count_conv(shape, kernel, strides, padding, dilation, groups):
    """For every site: weights that it meets, one output and tap after the other."""
    height, width, _ = shape
    rows, columns, per_group, features = kernel
    (top, _), (left, _) = padding
    out = [
        (n + sum(p) - (k - 1) * d - 1) // s + 1
        for n, p, k, d, s in zip(shape[:2], padding, kernel[:2], dilation, strides, strict=True)
    ]
    found = np.zeros(shape, int)
    for y, x, f in itertools.product(*map(range, (*out, features))):
        for i, j, c in itertools.product(range(rows), range(columns), range(per_group)):
            row = y * strides[0] + i * dilation[0] - top
            column = x * strides[1] + j * dilation[1] - left
            if 0 <= row < height and 0 <= column < width:
                found[row, column, f // (features // groups) * per_group + c] += 1
    return found


CONVOLUTIONS = {
    "same": ((5, 6, 2), (3, 3, 2, 4), (1, 1), ((1, 1), (1, 1)), (1, 1), 1),
    "valid": ((5, 6, 2), (3, 2, 2, 3), (1, 1), ((0, 0), (0, 0)), (1, 1), 1),
    "strided, uneven padding": ((7, 6, 2), (3, 3, 2, 4), (2, 2), ((0, 1), (1, 2)), (1, 1), 1),
    "strides that leave sites out": ((7, 7, 1), (1, 2, 1, 2), (3, 2), ((0, 0), (0, 0)), (1, 1), 1),
    "dilated": ((7, 8, 2), (3, 2, 2, 3), (1, 2), ((2, 1), (0, 3)), (2, 3), 1),
    "groups": ((5, 5, 6), (3, 3, 2, 9), (2, 1), ((1, 1), (1, 0)), (1, 1), 3),
    "depthwise": ((5, 5, 4), (3, 3, 1, 8), (1, 1), ((1, 1), (1, 1)), (1, 1), 4),
}


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_fan_out_of_a_convolution(name, rng):
    settings = CONVOLUTIONS[name]
    graph = _conv(*settings, rng)
    expected = _count_conv(*settings)
    found = fan_outs(graph)
    np.testing.assert_array_equal(found["a"].sites, expected)
    assert (found["b"].sites == 1).all() and not found["output"].sites.any()
    macs = graph.nodes[2].op.macs(g.shapes(graph)["conv"])
    padded = any(sum(p) for p in settings[3])
    assert analog_operations(graph).macs == expected.sum()
    assert (expected.sum() < macs) if padded else (expected.sum() == macs)


def _image_network(params, x):
    """Every kind of path: residual add, both shortcuts, concatenation, pools, linear layer."""

    def conv(x, w, stride=1):
        return jax.lax.conv_general_dilated(
            x, w, (stride, stride), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )

    def pool(x):
        ones = (1, 2, 2, 1)
        return jax.lax.reduce_window(x, 0.0, jax.lax.add, ones, ones, "VALID") / 4

    def act(x, lam):
        return clip(jax.nn.relu(x), lam)

    with jax.named_scope("a"):
        a = act(conv(x, params["a"]) + 0.1, 1.0)
    with jax.named_scope("b"):
        b = act(conv(a, params["b"]), 1.5)
    with jax.named_scope("c"):
        c = act(conv(b, params["c"]) + a, 0.8)
    with jax.named_scope("d"):
        d = act(conv(pool(jnp.concatenate([b, c], -1)), params["d"]), 1.2)
    return d.mean((1, 2)) @ params["w"]


@pytest.fixture(scope="module")
def network():
    rng = np.random.default_rng(3)
    shapes = {
        "a": (3, 3, 2, 3),
        "b": (3, 3, 3, 3),
        "c": (3, 3, 3, 3),
        "d": (3, 3, 6, 4),
        "w": (4, 5),
    }
    params = {n: jnp.asarray(rng.normal(0.1, 0.3, s), jnp.float32) for n, s in shapes.items()}
    x = jnp.asarray(rng.normal(0.5, 1, (6, 6, 6, 2)), jnp.float32)
    return convert(_image_network, params, [x]), x


def _same(side, inputs, outputs):
    return _count_conv(
        (side, side, inputs), (3, 3, inputs, outputs), (1, 1), ((1, 1),) * 2, (1, 1), 1
    )


def _expected(graph):
    """Fan-outs of the network above, in the order of its neurons."""
    by_pool = np.repeat(np.repeat(_same(3, 6, 4), 2, 0), 2, 1) + 1  # a window, and what follows
    last = np.full((3, 3, 4), 1 + 5)  # the global pool, then five weights
    fan_out = [
        _same(6, 3, 3) + 1,  # the convolution, and the identity shortcut
        _same(6, 3, 3) + by_pool[..., :3],
        by_pool[..., 3:],
        last,
    ]
    return dict(zip((n.name for n in graph.neurons), fan_out, strict=True))


def test_fan_outs_through_every_path(network):
    graph, _ = network
    found = fan_outs(graph)
    for name, expected in _expected(graph).items():
        np.testing.assert_array_equal(found[name].sites, expected, err_msg=name)
    np.testing.assert_array_equal(found["input"].sites, _same(6, 2, 3))


def test_analog_operations_are_summed_before_they_are_handed_on(network):
    graph, _ = network
    macs = _same(6, 2, 3).sum() + 2 * _same(6, 3, 3).sum() + _same(3, 6, 4).sum() + 4 * 5
    additions = 6 * 6 * 3 + 6 * 6 * 6 + 3 * 3 * 4  # shortcut and pools
    assert analog_operations(graph) == Operations(macs, additions)
    assert analog_operations(graph, first=True) == Operations(_same(6, 2, 3).sum(), 0)
    operations = [n for n in graph.nodes if isinstance(n.op, g.Op)]
    counted = sum(n.op.macs(g.shapes(graph)[n.name]) for n in operations)
    assert macs < counted < 1.5 * macs, "apart from padding they are the usual count"


@pytest.mark.parametrize("coding", ["analog", "rate"])
def test_operations_are_those_of_every_single_spike(network, coding):
    graph, x = network
    timesteps, how = 9, simulation.Simulation(coding=simulation.CODINGS.read(coding))
    mask = np.arange(8) < 6
    padded = jnp.concatenate([x, 5 * x[:2]])
    labels = jnp.zeros(8, jnp.int32)
    batches = [
        {
            "image": padded[i : i + 4],
            "label": labels[i : i + 4],
            "mask": jnp.asarray(mask[i : i + 4]),
        }
        for i in (0, 4)
    ]
    curve, activity = energy.measure(graph, batches, timesteps, how)
    np.testing.assert_array_equal(curve, simulation.latency_curve(graph, batches, timesteps, how))
    fan_out = _expected(graph) | {"output": np.zeros(5, int)}
    trains = {
        n: np.asarray(v) for n, v in simulation.spike_trains(graph, x, timesteps, how).items()
    }
    if coding == "rate":
        steps = range(1, timesteps + 1)
        trains["input"] = np.stack([how.coding.encode(x, t, jax.random.key(0)) for t in steps])
        fan_out["input"] = _same(6, 2, 3)
    assert activity.images == 6 and {layer.name for layer in activity.layers} == set(trains)
    total = np.zeros(timesteps)
    for layer in activity.layers:
        spikes = trains[layer.name] != 0
        expected = [
            sum(fan_out[layer.name][tuple(site[1:])] for site in np.argwhere(s)) for s in spikes
        ]
        assert layer.operations.tolist() == expected, layer.name
        assert layer.spikes.tolist() == spikes.reshape(timesteps, -1).sum(1).tolist()
        assert activity.rates(5)[layer.name] == pytest.approx(spikes[:5].mean())
        total += expected
    assert total.sum() > 0
    np.testing.assert_allclose(activity.operations(), np.cumsum(total) / 6)
    by_image = np.zeros((timesteps, 6), int)
    for name, train in trains.items():
        for t, image, *site in np.argwhere(train != 0):
            by_image[t, image] += fan_out[name][tuple(site)]
    np.testing.assert_array_equal(activity.by_image, by_image)
    macs = _same(6, 2, 3).sum() if coding == "analog" else 0
    assert activity.analog == (macs, 0)
    cost = OperationCost(ac=2.0, mac=3.0)
    np.testing.assert_allclose(activity.energy(cost), 2 * np.cumsum(total) / 6 + 3 * macs)
    np.testing.assert_allclose(activity.energies(cost), 2 * np.cumsum(by_image, 0) + 3 * macs)
    neurons = sum(layer.neurons for layer in activity.layers if layer.name != "input")
    np.testing.assert_array_equal(activity.traffic(), np.arange(1, 10) * 2 * 4 * neurons)


def test_a_lowered_network_costs_what_it_did():
    rng = np.random.default_rng(0)
    settings = ((2, 2, 3), (3, 3, 3, 4), (1, 1), ((1, 1), (1, 1)), (1, 1), 1)
    graph = _conv(*settings, rng)
    lowered = simulation.lower(graph, "cpu")
    assert len(lowered.nodes) > len(graph.nodes)
    x = jnp.asarray(rng.uniform(0, 1, (4, 2, 2, 3)), jnp.float32)
    flat = g.Graph(
        (
            *graph.nodes[:-1],
            g.Node(g.Reshape((16,)), (3,), "flat"),
            g.Node(g.Output(ONE, ONE), (4,), "output"),
        )
    )
    batch = {"image": x, "label": jnp.zeros(4, jnp.int32), "mask": jnp.ones(4, bool)}
    _, one = energy.measure(flat, [batch], 6)
    _, other = energy.measure(simulation.lower(flat, "cpu"), [batch], 6, counted=flat)
    assert one.operations().tolist() == other.operations().tolist()
    assert one.ann == other.ann
    # On a map of 2×2, four of the nine taps meet each site.
    assert (fan_outs(flat)["a"].sites == 4 * 4).all()


def test_an_integer_network_has_the_operations_of_the_float_one(rng):
    def network(w, x):
        x = clip(jax.nn.relu(x @ w["a"]), 1.0)
        return clip(jax.nn.relu(x @ w["b"] + x), 1.0) @ w["c"]

    shapes = {"a": (3, 4), "b": (4, 4), "c": (4, 2)}
    w = {k: jnp.asarray(rng.normal(0, 1, s), jnp.float32) for k, s in shapes.items()}
    x = jnp.asarray(rng.normal(0, 2, (5, 3)), jnp.float32)
    graph = convert(network, w, x)
    whole = simulation.quantise(graph, x)
    assert analog_operations(whole) == analog_operations(graph)
    found = fan_outs(whole)
    for name, expected in fan_outs(graph).items():
        np.testing.assert_array_equal(found[name].sites, expected.sites, err_msg=name)
    assert found[graph.input.name].sites.tolist() == [4, 4, 4]
    batch = {"image": x, "label": jnp.zeros(5, jnp.int32), "mask": jnp.ones(5, bool)}
    _, activity = energy.measure(whole, [batch], 6)
    spikes = sum(int(np.sum(v != 0)) for v in simulation.spike_trains(whole, x, 6).values())
    assert sum(layer.spikes.sum() for layer in activity.layers) == spikes > 0


def test_counts_beyond_32_bits_are_exact(rng):
    """A layer of so many connections that operations of one image and step are beyond 2³¹."""
    side = 100_000
    graph = convert(
        lambda w, x: clip(jax.nn.relu(x), 1.0) @ w, jnp.ones((side, 1)), [jnp.ones((1, side))]
    )
    many = FanOut(jnp.zeros(side, jnp.int32), (2**40 + 1,))
    counted = _by_fan_out(many, jnp.ones((3, side), bool))
    assert np.asarray(counted, np.int64).tolist() == 3 * [[side]]
    images = jnp.ones((3, side)).at[1, : side // 2].set(0)
    batch = {"image": images, "label": jnp.zeros(3, int), "mask": jnp.array([True, True, False])}
    _, activity = energy.measure(graph, [batch], 2)
    assert activity.by_image.tolist() == 2 * [[side, side // 2]]


def test_the_constants_are_horowitz_s():
    assert (FLOAT32.ac, FLOAT32.mac) == (0.9, pytest.approx(0.9 + 3.7))
    with pytest.raises(InputError, match="mac must be finite and not negative"):
        OperationCost(mac=-1.0)


def test_simulate_prints_and_writes_what_it_cost(trained, converted, tmp_path):
    options = ("--snn", converted, "--timesteps", 8, "--images", 50, "--batch-size", 20)
    plain = succeed("simulate", trained.folder, *options, "--output", tmp_path / "plain")
    told = ("--energy", "--ac", 2, "--output", tmp_path / "energy")
    printed = succeed("simulate", trained.folder, *options, *told)
    assert not (tmp_path / "plain" / "energy.json").exists() and "ACs" not in plain.out
    curves = [(tmp_path / n / "curve.csv").read_text() for n in ("plain", "energy")]
    assert curves[0] == curves[1]
    content = json.loads((tmp_path / "energy" / "energy.json").read_text())
    assert content["cost_pj"] == {"ac": 2, "mac": 4.6} and content["images"] == 50
    at = content["at"]["8"]
    by_layer = sum(layer["additions"] for layer in content["layers"])
    assert at["additions"] == pytest.approx(by_layer)
    assert at["energy_uj"] == pytest.approx((2 * by_layer + 4.6 * at["macs"]) / 1e6)
    low, middle, high = at["energy_uj_percentiles"].values()
    assert low <= middle <= high and low < at["energy_uj"] < high
    for figure in (low, middle, high):
        assert f"{figure:,.3f}" in printed.out
    assert f"{at['membrane_bytes'] / 1e6:,.2f} MB up to T = 8" in " ".join(printed.out.split())
    assert at["membrane_bytes"] == 8 * 2 * 4 * sum(layer["neurons"] for layer in content["layers"])
    assert f"{at['energy_uj']:,.3f}" in printed.out and f"{at['macs']:,}" in printed.out
    assert f"{content['ann']['macs']:,}" in printed.out
    with (tmp_path / "energy" / "energy.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert float(rows[7]["energy_uj"]) == pytest.approx(at["energy_uj"])
    assert float(rows[7]["energy_uj_p50"]) == pytest.approx(middle)
    assert float(rows[3]["energy_uj"]) == pytest.approx(content["at"]["4"]["energy_uj"])
    assert (tmp_path / "energy" / "energy.png").read_bytes().startswith(b"\x89PNG")
