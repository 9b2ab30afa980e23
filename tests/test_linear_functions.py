"""Functions that are linear, whatever they are written with: each converts, and means the same."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from tcl_jax import clip
from tcl_jax import graph as g
from tcl_jax.conversion import (
    evaluate,
    fold,
    normalise,
    trace,
    with_norms,
)
from tcl_jax.promotion import implicit
from tcl_jax.simulation import quantise, spike_trains
from tcl_jax.simulation.operations import fan_outs

SHAPE = (4, 6, 3)
"""Of what a function is given, without the batch: rows, columns, channels."""
RNG = np.random.default_rng(3)


def weights(*shape):
    return jnp.asarray(RNG.normal(0, 1, shape), jnp.float32)


def _transposed(x, strides=(2, 2), padding="SAME", **how):
    return lax.conv_transpose(x, KERNEL.astype(x.dtype), strides, padding, **how)


def _windows(x, window, dilation, base=(1, 1, 1, 1)):
    strides, padding = (1, 2, 1, 1), ((0, 0), (1, 0), (0, 2), (0, 0))
    return lax.reduce_window(
        x,
        np.zeros((), x.dtype),
        lax.add,
        window,
        strides,
        padding,
        base_dilation=base,
        window_dilation=dilation,
    )


def _segments(x):
    rows = jnp.array([0, 2, 0, 0])
    return jax.vmap(lambda v: jax.ops.segment_sum(v, rows, 3))(x)


KERNEL, LOCAL, MAP = weights(3, 2, 3, 2), weights(4, 6, 3, 2), weights(6, 5)
FUNCTIONS = {
    "flipped columns": lambda x: x[:, :, ::-1],
    "flipped twice": lambda x: jnp.flip(x, (1, 3)),
    "one row": lambda x: x[:, 2],
    "every other channel from the last": lambda x: x[..., ::-2],
    "listed columns": lambda x: x[:, :, jnp.array([4, 0, 0])],
    "listed in a square": lambda x: x[:, jnp.array([[0, 1], [3, 3]])],
    "listed pairs": lambda x: x[:, jnp.array([0, 3, 1]), jnp.array([5, 5, 0])],
    "listed, a row apart": lambda x: jnp.swapaxes(
        x[:, jnp.array([0, 3]), :, jnp.array([2, 0])], 0, 1
    ),
    "with the batch behind": lambda x: jnp.moveaxis(x, 0, 2)[jnp.array([3, 3, 0])].transpose(
        2, 0, 1, 3
    ),
    "take along an axis": lambda x: jnp.take_along_axis(
        x, jnp.broadcast_to(jnp.array([2, 0, 1, 1])[None, :, None, None], (len(x), 4, 6, 3)), 1
    ),
    "rolled": lambda x: jnp.roll(x, (1, -2), (1, 2)),
    "repeated": lambda x: jnp.repeat(x, 2, axis=2),
    "repeated differently": lambda x: jnp.repeat(
        x, jnp.array([1, 0, 3, 1]), axis=1, total_repeat_length=5
    ),
    "tiled": lambda x: jnp.tile(x, (1, 2, 1, 3)),
    "a new axis": lambda x: jnp.broadcast_to(x[:, :, None], (len(x), 4, 2, 6, 3)),
    "a mean beside all": lambda x: x - x.mean((1, 2), keepdims=True),
    "every second, twice": lambda x: jnp.broadcast_to(x[:, :, :1], x.shape) + x,
    "stacked": lambda x: jnp.stack([x, 2 * x, x[:, ::-1]], 2),
    "nearest": lambda x: jax.image.resize(x, (len(x), 8, 9, 3), "nearest"),
    "bilinear": lambda x: jax.image.resize(x, (len(x), 8, 9, 3), "bilinear"),
    "smaller": lambda x: jax.image.resize(x, (len(x), 2, 4, 3), "linear"),
    "edges": lambda x: jnp.pad(x, ((0, 0), (1, 2), (0, 1), (0, 0)), mode="edge"),
    "reflected": lambda x: jnp.pad(x, ((0, 0), (1, 2), (2, 1), (0, 0)), mode="reflect"),
    "wrapped": lambda x: jnp.pad(x, ((0, 0), (1, 2), (2, 1), (0, 0)), mode="wrap"),
    "ones around": lambda x: jnp.pad(x, ((0, 0), (1, 2), (0, 0), (0, 1)), constant_values=1.0),
    "beside a constant": lambda x: jnp.concatenate([x, jnp.ones((len(x), 4, 6, 2)), x], -1),
    "running sum": lambda x: jnp.cumsum(x, 2),
    "running sum from the end": lambda x: lax.cumsum(x, 1, reverse=True),
    "set": lambda x: x.at[:, 1, :, 2].set(0.5),
    "set to a part of itself": lambda x: x.at[:, 0].set(x[:, 3]),
    "added in places": lambda x: x.at[:, jnp.array([0, 2])].add(x[:, 2:] * 0.5),
    "added twice": lambda x: x.at[:, jnp.array([1, 1, 0])].add(x[:, :3]),
    "a constant added": lambda x: x.at[..., 0].add(0.25),
    "taken away": lambda x: x.at[:, 0].subtract(x[:, 1]),
    "multiplied in places": lambda x: x.at[:, :, 3].multiply(-2.0),
    "sums of segments": _segments,
    "scattered onto a constant": lambda x: jnp.ones((len(x), 9)).at[:, jnp.array([8, 0, 3])].add(
        x[:, 0, 0]
    ),
    "written into": lambda x: lax.dynamic_update_slice(x, x[:, :2, :3] * 2, (0, 1, 2, 0)),
    "written into a constant": lambda x: lax.dynamic_update_slice(
        jnp.ones((len(x), 5, 7, 3)), x, (0, 1, 1, 0)
    ),
    "filled": lambda x: x.at[:, jnp.array([0, 9])].get(mode="fill", fill_value=0.5),
    "clipped indices": lambda x: x.at[:, jnp.array([0, 9])].get(mode="clip"),
    "transposed convolution": _transposed,
    "transposed, valid": lambda x: _transposed(x, (1, 3), "VALID"),
    "transposed, dilated": lambda x: _transposed(x, rhs_dilation=(2, 1)),
    "dilated sums": lambda x: _windows(x, (1, 2, 2, 1), (1, 2, 3, 1)),
    "dilated sums over channels": lambda x: _windows(x, (1, 2, 1, 2), (1, 1, 1, 2)),
    "sums with gaps": lambda x: _windows(x, (1, 3, 2, 1), (1, 1, 1, 1), (1, 2, 2, 1)),
    "weights at every place": lambda x: jnp.einsum("bhwi,hwio->bhwo", x, LOCAL),
    "weights of every column": lambda x: jnp.einsum("bhwi,wio->bowh", x, LOCAL[0]),
    "weights of every column first": lambda x: jnp.einsum("wio,bhwi->wboh", LOCAL[0], x).transpose(
        1, 0, 2, 3
    ),
    "weights of every channel": lambda x: jnp.einsum("bhwc,hwc->bc", x, LOCAL[..., 0]),
    "a map of columns": lambda x: jnp.einsum("bhwc,wk->bkhc", x, MAP),
    "weights of every image alike": lambda x: jnp.einsum(
        "bhwi,bio->bhwo", x, jnp.broadcast_to(LOCAL[0, 0], (len(x), 3, 2))
    ),
    "a constant mask": lambda x: jnp.where(jnp.arange(6)[:, None] < 2, x, 0.5 * x),
    "sums over rows and channels": lambda x: x.sum((1, 3)),
}  # fmt: skip
every_function = pytest.mark.parametrize("name", FUNCTIONS)


GROUPS = [sorted(FUNCTIONS)[start::8] for start in range(8)]
every_group = pytest.mark.parametrize(
    "names",
    [pytest.param(names, marks=[pytest.mark.long] * (k > 2)) for k, names in enumerate(GROUPS)],
    ids=lambda names: names[0],
)


def network(names):
    """A layer, some functions side by side, with neurons behind them, and another layer."""
    rng, image = np.random.default_rng(0), jnp.zeros((1, *SHAPE))
    first = rng.normal(0, 1, (3, 3))
    shapes = [jax.eval_shape(implicit()(FUNCTIONS[name]), image).shape for name in names]
    gammas = [rng.uniform(0.5, 2, shape[-1]) for shape in shapes]
    size = sum(map(math.prod, shapes))
    last = rng.normal(0, size**-0.5, (size, 3))

    @implicit()
    def whole(x):
        x = clip(jax.nn.relu(x @ first.astype(x.dtype)), jnp.asarray([0.5, 1.0, 1.5], x.dtype))
        found = []
        for name, gamma in zip(names, gammas, strict=True):
            with jax.named_scope(name):
                y = FUNCTIONS[name](x) * gamma.astype(x.dtype) + 0.1
                found.append(clip(jax.nn.relu(y), 0.75).reshape(len(x), -1))
        return jnp.concatenate(found, 1) @ last.astype(x.dtype)

    return whole


@every_function
def test_the_graph_is_the_function(name, rng):
    function = implicit()(FUNCTIONS[name])
    x = jnp.asarray(rng.normal(0, 1, (5, *SHAPE)), jnp.float32)
    graph = trace(function, x)
    np.testing.assert_allclose(evaluate(graph, x), function(x), rtol=1e-5, atol=1e-5)


@every_group
def test_in_a_network_scales_move_and_spikes_stay(names, rng):
    with jax.enable_x64(True):
        x = jnp.asarray(rng.normal(0.3, 1, (3, *SHAPE)))
        function = network(names)
        traced = with_norms(trace(function, x), {"output": 1.25})
        folded = fold(traced)
        graph = normalise(folded)
        for stage in (traced, folded, graph):
            np.testing.assert_allclose(evaluate(stage, x), function(x), rtol=1e-10, atol=1e-10)
        found = spike_trains(graph, x, 12)
        for name, spikes in spike_trains(traced, x, 12).items():
            np.testing.assert_array_equal(found[name] > 0, spikes > 0, err_msg=name)


def test_where_a_matrix_is_zero_there_is_no_synapse():
    image = jnp.eye(12).reshape(12, 12, 1)
    large = implicit()(lambda x: jax.image.resize(x, (len(x), 24, 1), "bilinear"))
    graph = with_norms(trace(lambda x: jax.nn.relu(large(jax.nn.relu(x))), image), {"relu": 1.0})
    matrix = np.asarray(large(image))[..., 0]
    assert (matrix == 0).mean() > 0.7
    found = fan_outs(graph)["relu"].sites[:, 0]
    np.testing.assert_array_equal(found, (matrix != 0).sum(1))


def test_whole_numbers_are_picked_too(rng):
    """Nothing but 8 bits, and the images' own, tell the network from that of whole numbers."""
    w = [jnp.asarray(np.rint(rng.normal(0, 40, s)) / 127, jnp.float32) for s in ((3, 4), (96, 3))]

    def function(x):
        x = clip(jax.nn.relu(x @ w[0]), 1.0)[:, ::-1]
        x = jnp.pad(jnp.repeat(x, 2, 2), ((0, 0), (0, 1), (0, 0), (0, 0)), mode="edge")
        return x[:, jnp.array([4, 1])].reshape(len(x), -1) @ w[1]

    x = jnp.asarray(rng.integers(-127, 128, (4, *SHAPE)) / 127, jnp.float32)
    graph = normalise(with_norms(trace(implicit()(function), x), {"output": 1.0}))
    whole = quantise(graph, x)
    assert str(whole.dtype) == "int32" and any(isinstance(n.op, g.Take) for n in whole.nodes)
    np.testing.assert_allclose(evaluate(whole, x), evaluate(graph, x), atol=0.03)


def test_a_number_an_image(rng):
    """Values that have no axis but that of images."""
    x = jnp.asarray(rng.normal(0, 1, (5, 3)), jnp.float32)
    for function in (
        lambda x: jnp.broadcast_to(x.sum(1)[:, None], (len(x), 4)),
        lambda x: jnp.zeros((len(x), 4)).at[:, 2].add(x.sum(1)),
        lambda x: jnp.zeros((len(x), 4)).at[:, 2].set(x.sum(1)),
        lambda x: jnp.stack([x[:, 0], x.sum(1), jnp.ones(len(x))], 1),
    ):
        found = evaluate(trace(implicit()(function), x), x)
        np.testing.assert_allclose(found, implicit()(function)(x), rtol=1e-6)
