"""Laws of every operation, norm, neuron, coding and readout: a table each, a new one is a row.

Every row is tested with two of another table, or with the simplest; all pairs by `make test-long`.

All in float64, with numbers that are never rounded, or of so many bits that no membrane potential
meets its threshold by chance: spikes are compared one by one, without a tolerance.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toys
import wiring
from networks import (
    LAM_OUT,
    NETWORKS,
    Dyadic,
    Gaussian,
    Layers,
    flat,
    images,
    network,
    pool,
    tcl,
)

from tcl_jax import calibration, simulation
from tcl_jax import graph as g
from tcl_jax.conversion import (
    Artifact,
    Graph,
    calibrate,
    evaluate,
    fold,
    load,
    norm_method,
    normalise,
    save,
    trace,
    with_norms,
)
from tcl_jax.promotion import implicit
from tcl_jax.simulation import READOUTS, Blocked, Simulation, State, run, simulate, spike_trains
from tcl_jax.tracing.rules import RULES

TIMESTEPS = 16
CALIBRATING = images(6, seed=1)
BY_BLOCKS = Simulation(executor=Blocked(3))


@pytest.fixture(autouse=True)
def _float64(monkeypatch):
    monkeypatch.setitem(RULES, "rev", toys.flipped)
    with jax.enable_x64(True):
        yield


# --- The tables -----------------------------------------------------------------------------

OPERATIONS: dict[str, tuple[type[g.Node], Callable[[jax.Array, Layers], jax.Array]]] = {
    "convolution": (g.Conv, lambda x, to: to.conv(x, 3)),
    "strided": (g.Conv, lambda x, to: to.conv(x, 3, stride=2)),
    "grouped": (g.Conv, lambda x, to: to.conv(x, 6, groups=2)),
    "depthwise": (g.Conv, lambda x, to: to.conv(x, 4, groups=4)),
    "linear": (g.Dense, lambda x, to: to.dense(flat(x), 6)),
    "linear by place": (g.Dense, lambda x, to: to.dense(x, 6)),
    "batch norm": (g.Scale, lambda x, to: to.norm(x)),
    "batch norm after a bias": (g.Scale, lambda x, to: to.norm(to.dense(x, 3))),
    "pool": (g.Pool, lambda x, to: pool(x)),
    "overlapping pool": (g.Pool, lambda x, to: pool(x, side=3, stride=1)),
    "global mean": (g.Sum, lambda x, to: x.mean((1, 2))),
    "mean over rows": (g.Sum, lambda x, to: x.mean(1)),
    "reshape": (g.Reshape, lambda x, to: x.reshape(-1, 2, 8, 4)),
    "transpose": (g.Transpose, lambda x, to: x.transpose(0, 3, 1, 2)),
    "sum of two": (g.Add, lambda x, to: to.conv(x, 4) + x),
    "sum of spikes": (g.Add, lambda x, to: to.act(to.conv(x, 4), 4) + x),
    "concatenation": (
        g.Concat,
        lambda x, to: jnp.concatenate([x, to.act(to.conv(x, 2)), to.conv(x, 3)], -1),
    ),
    "concatenated rows": (g.Concat, lambda x, to: jnp.concatenate([x, to.act(to.norm(x))], 1)),
    "padding": (g.Pad, lambda x, to: jnp.pad(x, ((0, 0), (1, 0), (0, 2), (0, 1)))),
    "slice": (g.Slice, lambda x, to: x[:, 1:, ::2, 1:3]),
    "repeated": (g.Take, lambda x, to: jnp.repeat(x, 2, axis=2)),
    "picked": (g.Take, lambda x, to: x[:, jnp.array([3, 0, 0])]),
    "running sum": (g.Sparse, lambda x, to: jnp.cumsum(x, 1)),
    "weights of a column": (
        g.Linear,
        lambda x, to: jnp.einsum("bhwi,wio->bhwo", x, to.w.kernel(x.shape[2], 4, 3)),
    ),
    "flip, a toy": (toys.Flip, lambda x, to: x[:, ::-1, :, ::-1]),
}
"""By what they are to a user: the kind of node, and the operation on spikes of four channels."""

NORMS = {
    "max": "keeps",
    "max/channel": "keeps",
    "percentile:90": "clips",
    "percentile:90/channel": "clips",
    "spike_norm:timesteps=9": "clips",
    "spike_norm:0.5,timesteps=9": "clips",
    "spike_norm:timesteps=9/channel": "clips",
    "model_based": "keeps",
    "model_based/channel": "keeps",
    "part_of_max:0.5/channel": "clips",
}
"""Norms from data, and whether the largest activation lies within their λ."""

NEURONS = {
    "integrate and fire": ("if", "if:v0=0.5"),
    "leaky": ("if:leak=0.25", "if:leak=0.5,v0=0.25"),
    "reset to zero": ("if:reset=zero", "if:reset=zero,v0=0.5"),
    "refractory": ("if:refractory=2", "if:refractory=2,v0=0.5"),
    "with a floor": ("if:floor=0.25", "if:floor=1"),
    "bursts": ("burst:2", "burst"),
}
"""Each with other numbers, for which nothing is compiled again."""

OF_FILMS = {"frames"}
"""Codings that take more than one image, which test_values.py is about."""

CODINGS = {"analog": ("analog",) * 2, "rate": ("rate",) * 2, "poisson": ("poisson",) * 2}
CODINGS |= {"flicker": ("flicker:3", "flicker")}


# --- What is converted ----------------------------------------------------------------------


@dataclass(frozen=True)
class Converted:
    """A function, its images, and its graph with thresholds λ and with thresholds 1."""

    function: Callable[[Any], jax.Array]
    x: np.ndarray
    traced: Graph
    lam: Graph
    one: Graph


def _converted(
    function: Callable[[Any], jax.Array], norm: str = "tcl", lam_out: float | None = None
) -> Converted:
    traced, folded = _traced(function)
    norms = calibrate(folded, norm_method(norm), lambda: [jnp.asarray(CALIBRATING)])
    if norm != "tcl":  # a λ that is the largest current is met by it, and rounding decides
        norms = {name: lam * 1.001 for name, lam in norms.items()}
    if lam_out is not None:
        norms |= {folded.output.name: lam_out}
    lam = with_norms(folded, norms)
    return Converted(function, images(3), traced, lam, normalise(lam))


@cache
def _traced(function: Callable[[Any], jax.Array]) -> tuple[Graph, Graph]:
    traced = trace(function, jnp.asarray(images(1)))
    return traced, fold(traced)


@cache
def _operation(name: str, seed: int = 0) -> Converted:
    """An operation between two populations, with one λ a channel before it and one behind."""

    @implicit()
    def function(x: jax.Array) -> jax.Array:
        to = Layers(Dyadic(seed), tcl)
        x = to.act(to.conv(x, 4, stride=2) + 0.25, 4)
        return to.dense(flat(to.act(OPERATIONS[name][1](x, to))), 3)

    return _converted(function, lam_out=LAM_OUT)


@cache
def _network(name: str, norm: str) -> Converted:
    return _converted(_function(name, clipped=norm == "tcl"), norm)


@cache
def _function(name: str, clipped: bool) -> Callable[[Any], jax.Array]:
    return network(name, Gaussian, seed=2, clipped=clipped)


CASES = {
    **{f"operation: {name}": partial(_operation, name) for name in OPERATIONS},
    **{
        f"{name}, {norm}": partial(_network, name, norm)
        for name in NETWORKS
        for norm in ("tcl", *NORMS)
    },
}


def _pairs(names: Iterable[str], norms: Iterable[str], shift: int = 0) -> list[Any]:
    """All of them, of which those are for `make test-long` that are not every eighth, or TCL."""
    rows = enumerate(names, start=shift)
    return [
        pytest.param(*both, marks=[] if both[1] == "tcl" or (i + j) % 8 == 0 else pytest.mark.long)
        for i, name in rows
        for j, both in enumerate((name, norm) for norm in norms)
    ]


every_case = pytest.mark.parametrize(
    "case",
    [
        *(case for case in CASES if case.startswith("operation: ")),
        *(
            pytest.param(", ".join(pair.values), marks=pair.marks)
            for pair in _pairs(NETWORKS, ("tcl", *NORMS))
        ),
    ],
)


# --- Laws of operations and norms -----------------------------------------------------------


def test_every_kind_of_node_has_a_row():
    made_elsewhere = {g.Input, g.Population, g.Output, g.Quantise}
    known = {*wiring.KINDS, toys.Flip}
    assert {kind for kind, _ in OPERATIONS.values()} == known - made_elsewhere


@pytest.mark.parametrize("name", OPERATIONS)
def test_an_operation_is_its_node(name):
    kind, _ = OPERATIONS[name]
    assert any(isinstance(node.op, kind) for node in _operation(name).traced.nodes)


def _read(graph: Graph, x: jax.Array) -> dict[str, np.ndarray]:
    """Logits, and activations in units of the network that was converted."""
    found: dict[str, jax.Array] = {}
    # One operation after the other: to compile each graph as a whole takes four times as long.
    evaluate(graph, x, found.__setitem__)
    units = {n.name: np.asarray(n.op.unit) for n in graph.neurons}
    return {name: np.asarray(value) * units.get(name, 1) for name, value in found.items()}


@every_case
def test_activations_and_logits_are_kept(case):
    it = CASES[case]()
    x = jnp.asarray(CALIBRATING)
    expected, output = it.function(x), it.one.output.name
    traced, lam, one = (_read(graph, x) for graph in (it.traced, it.lam, it.one))
    bounded, also_bounded = (_read(g.limit(graph), x) for graph in (it.lam, it.one))
    pairs = [(traced, lam), (traced, one), (bounded, also_bounded)]
    if NORMS.get(case.split(", ")[-1]) != "clips":
        pairs.append((traced, bounded))
    exact = partial(np.testing.assert_allclose, rtol=0)
    exact(traced[output], expected, atol=1e-12 * np.abs(expected).max())
    for before, after in pairs:
        assert before.keys() == after.keys()
        for name, values in before.items():
            exact(after[name], values, atol=1e-12 * np.abs(values).max(), err_msg=name)


@every_case
def test_a_value_of_1_stands_for_lambda(case):
    it = CASES[case]()
    for large, small in zip(it.lam.neurons, it.one.neurons, strict=True):
        lam = np.asarray(large.op.threshold)
        np.testing.assert_array_equal(small.op.unit, lam)
        np.testing.assert_array_equal(small.op.clip, np.asarray(large.op.clip) / lam)


@every_case
def test_spikes_of_size_lambda_are_those_of_size_1(case):
    it = CASES[case]()
    x = jnp.asarray(it.x)
    large, small = (spike_trains(graph, x, TIMESTEPS) for graph in (it.lam, it.one))
    assert large.keys() == small.keys()
    for name, spikes in small.items():
        assert {*np.unique(spikes)} <= {0.0, 1.0}
        np.testing.assert_array_equal(np.asarray(large[name]) > 0, np.asarray(spikes) > 0)
    assert np.mean([np.mean(spikes) for spikes in small.values()]) > 0.01


@pytest.mark.parametrize("name, norm", _pairs(NETWORKS, NORMS, shift=1))
def test_a_norm_is_one_number_a_layer_or_a_channel(name, norm):
    it = _network(name, norm)
    channels = {n.name: g.shapes(it.lam)[n.name][-1:] for n in it.lam.neurons}
    for neurons in it.lam.neurons:
        lam = np.asarray(neurons.op.threshold)
        assert lam.shape == (channels[neurons.name] if norm.endswith("/channel") else ())
        assert np.all(np.isfinite(lam)) and np.all(lam > 0)


@every_case
def test_an_image_s_spikes_depend_neither_on_the_batch_nor_on_blocks(case):
    it = CASES[case]()
    x = jnp.asarray(it.x)
    whole = spike_trains(it.one, x, TIMESTEPS, BY_BLOCKS)
    alone = [spike_trains(it.one, x[i : i + 1], TIMESTEPS) for i in range(len(x))]
    for name, spikes in whole.items():
        np.testing.assert_array_equal(np.concatenate([one[name] for one in alone], 1), spikes)


@every_case
def test_what_is_saved_is_what_is_loaded(case, tmp_path):
    graph = CASES[case]().one
    save(Artifact(graph, {}), tmp_path / "snn")
    loaded = load(tmp_path / "snn").graph
    assert jax.tree.structure(loaded) == jax.tree.structure(graph)
    for one, other in zip(jax.tree.leaves(loaded), jax.tree.leaves(graph), strict=True):
        assert one.dtype == other.dtype
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("per", ["", "/channel"])
@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=() if n == "chain" else pytest.mark.long) for n in NETWORKS]
)
def test_other_norms_are_the_same_program(name, per, compilations):
    norms = [norm for norm in NORMS if norm.endswith("/channel") == bool(per)]
    x = jnp.asarray(images(3))
    graphs = [_network(name, norm).one for norm in norms]
    spike_trains(graphs[0], x, TIMESTEPS)
    compilations.clear()
    for graph in graphs[1:]:
        spike_trains(graph, x, TIMESTEPS)
    assert not compilations


@pytest.mark.parametrize("name", OPERATIONS)
def test_other_weights_are_the_same_program(name, compilations):
    one, other = _operation(name), _operation(name, seed=1)
    x = jnp.asarray(one.x)
    first = simulate(one.one, x, TIMESTEPS)
    compilations.clear()
    second = simulate(other.one, x, TIMESTEPS)
    assert not compilations
    assert np.any(np.asarray(first.output.counts) != np.asarray(second.output.counts))


# --- Laws of neurons, codings and readouts --------------------------------------------------


def test_every_method_has_a_row():
    for known, rows in (
        (calibration.NORMS, ["tcl", *NORMS]),
        (simulation.NEURONS, [text for texts in NEURONS.values() for text in texts]),
        (simulation.CODINGS, [text for texts in CODINGS.values() for text in texts] + [*OF_FILMS]),
    ):
        assert {known.read(text).name for text in rows} == set(known)
        assert all(known.read(str(known.read(text))) == known.read(text) for text in rows)


SIMPLEST = ("integrate and fire", "analog")


@pytest.mark.parametrize(
    "neurons, coding",
    [
        pytest.param(n, c, marks=() if n in SIMPLEST or c in SIMPLEST else pytest.mark.long)
        for n in NEURONS
        for c in CODINGS
    ],
)
def test_what_is_read_depends_on_neither_lambda_nor_batch(neurons, coding, compilations):
    it = _operation("sum of spikes")
    names = [n.name for n in it.one.spiking]
    every = READOUTS.read("every")

    @jax.jit
    def simulated(graph: Graph, x: jax.Array, how: Simulation) -> dict[str, jax.Array]:
        def observe(state: State, spikes: dict[str, Any], t: jax.Array) -> dict[str, Any]:
            classes = every.classes(state.output, graph.output.op)
            return {name: spikes[name] > 0 for name in names} | classes

        return run(graph, x, TIMESTEPS, observe, how)[1]

    first, second = (
        Simulation(simulation.NEURONS.read(model), simulation.CODINGS.read(code), every, seed=seed)
        for model, code, seed in zip(NEURONS[neurons], CODINGS[coding], (0, 7), strict=True)
    )
    x = jnp.asarray(it.x)
    one = jax.device_get(simulated(it.one, x, first))
    compilations.clear()
    other = jax.device_get(simulated(it.one, x, second))
    assert not compilations, "other numbers are the same program"
    assert not all(np.array_equal(one[name], other[name]) for name in one)
    large, alone = simulated(it.lam, x, second), simulated(it.one, x[:1], second)
    for name, values in other.items():
        np.testing.assert_array_equal(large[name], values, err_msg=name)
        np.testing.assert_array_equal(alone[name], values[:, :1], err_msg=name)
        assert values.std() > 0, name
