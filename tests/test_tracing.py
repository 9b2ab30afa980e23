"""Ways to write a network that tracing must see through: layouts, calls, frameworks, dtypes."""

import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tcl_jax import clip
from tcl_jax.conversion import (
    Graph,
    UnsupportedOperation,
    evaluate,
    fold,
    normalise,
    trace,
    with_norms,
)
from tcl_jax.promotion import implicit


def _draw(rng, *shape):
    return jnp.asarray(rng.normal(0, 0.5, shape), jnp.float32)


def _assert_traces(fn, x) -> Graph:
    """Traced, folded and normalised, the network gives its logits for a batch of any size."""
    traced = trace(fn, x[:1])
    folded = fold(traced)
    normalised = normalise(with_norms(folded, {"output": 2.5}))
    for images in (x, x[:1]):
        expected = np.asarray(fn(images))
        assert expected.std() > 0
        for graph in (traced, folded, normalised):
            # Float32, a few hundred terms a sum.
            np.testing.assert_allclose(
                evaluate(graph, images), expected, rtol=1e-5, atol=1e-5 * np.abs(expected).max()
            )
    return normalised


def _kinds(graph: Graph) -> list[str]:
    return [type(node.op).__name__ for node in graph.nodes]


# --- Linear maps --------------------------------------------------------------------------------


def test_concatenation_takes_each_norm_factor_to_its_channels(rng):
    x, w = _draw(rng, 4, 3), [_draw(rng, 3, 5), _draw(rng, 3, 2), _draw(rng, 7, 3)]

    def network(x):
        left, right = clip(nn.relu(x @ w[0]), 0.5), clip(nn.relu(x @ w[1]), 2.0)
        return jnp.concatenate([left, right], -1) @ w[2]

    graph = _assert_traces(network, x)
    assert _kinds(graph).count("Dense") == 3 and "Scale" not in _kinds(graph)
    ratios = graph.nodes[-2].op.kernel / (w[2] / 2.5)
    np.testing.assert_allclose(ratios, np.repeat([0.5, 2.0], [5, 2])[:, None] * np.ones(3), 1e-6)


@pytest.mark.parametrize("axis", [1, 2, 3])
def test_concatenation_along_any_axis(axis, rng):
    x, w = _draw(rng, 3, 4, 4, 4), _draw(rng, 4 * 4 * 8, 3)

    def network(x):
        y = jnp.concatenate([clip(nn.relu(x), 0.5), clip(nn.relu(-x), 2.0)], axis)
        return clip(nn.relu(y), 0.7).reshape(x.shape[0], -1) @ w

    _assert_traces(network, x)


def test_padding_cropping_slices_and_splits(rng):
    x, w = _draw(rng, 3, 6, 6, 4), _draw(rng, 4 * 4 * 4, 3)
    lam = jnp.asarray([0.3, 0.6, 0.9, 1.2])

    def network(x):
        x = clip(nn.relu(x), lam)
        x = jnp.pad(x, ((0, 0), (1, 2), (0, 1), (0, 0)))
        x = jax.lax.pad(x, 0.0, ((0, 0, 0), (0, -1, 0), (0, 1, 0), (0, 0, 0)))  # crops
        left, right = jnp.split(x, [3], axis=3)
        x = jnp.concatenate([right, left], 3)
        x = x[:, 1::2, ::2]
        x = jax.lax.dynamic_slice(x, (0, 0, 0, 0), (x.shape[0], 3, 4, 4))
        x = jnp.pad(x, ((0, 0), (0, 1), (0, 0), (0, 0)))
        return x.reshape(x.shape[0], -1) @ w

    assert {"Pad", "Slice", "Concat"} <= set(_kinds(_assert_traces(network, x)))


@pytest.mark.parametrize(
    "subscripts, shape",
    [("bhwc,cd->bhwd", (5, 7)), ("bchw,cd->bdhw", (4, 7)), ("hwcb,cd->bhwd", (3, 2))],
)
def test_einsum_over_any_axis(subscripts, shape, rng):
    x, w = _draw(rng, 3, 4, 3, 5), _draw(rng, *shape)

    def network(x):
        y = jnp.moveaxis(x, 0, -1) if subscripts.startswith("hwcb") else x
        y = y.transpose(1, 0, 2, 3)[:, :, :3] if subscripts.startswith("hwcb") else y
        return clip(nn.relu(jnp.einsum(subscripts, y, w)), 0.8).reshape(x.shape[0], -1)

    if subscripts.startswith("hwcb"):
        x = x[:, :4, :3, :3]
    _assert_traces(network, x)


def test_a_linear_layer_over_several_axes(rng):
    x = _draw(rng, 3, 4, 5, 2)
    layer = nn.DenseGeneral((3, 2), axis=(-2, -1))
    variables = layer.init(jax.random.key(0), x)

    def network(x):
        return clip(nn.relu(layer.apply(variables, x)), 0.6).sum((1, 2)) * 2.0

    _assert_traces(network, x)


def test_the_weight_may_stand_first(rng):
    x, w = _draw(rng, 4, 3), _draw(rng, 6, 3)
    _assert_traces(lambda x: clip(nn.relu(w @ x.T), 0.7).T, x)


# --- Layouts ------------------------------------------------------------------------------------


def test_channels_first_costs_no_transposition(rng):
    """Batch norm folds, norm-factors by channel are absorbed, and only the flattening reorders."""
    x = _draw(rng, 3, 2, 6, 6)
    w1, w2, w_out = _draw(rng, 4, 2, 3, 3), _draw(rng, 5, 4, 3, 3), _draw(rng, 5 * 9, 3)
    gamma, mean = _draw(rng, 4, 1, 1) + 2, _draw(rng, 4, 1, 1)
    lam = jnp.arange(1.0, 5.0).reshape(4, 1, 1) / 4

    def conv(x, w):
        return jax.lax.conv_general_dilated(
            x, w, (1, 1), "SAME", dimension_numbers=("NCHW", "OIHW", "NCHW")
        )

    @implicit()
    def network(x):
        x = clip(nn.relu((conv(x, w1) - mean) * gamma), lam)
        x = jax.lax.reduce_window(x, 0.0, jax.lax.add, (1, 1, 2, 2), (1, 1, 2, 2), "VALID") / 4
        x = clip(nn.relu(conv(x, w2)), 0.9)
        return x.reshape(x.shape[0], -1) @ w_out

    kinds = _kinds(_assert_traces(network, x))
    assert "Scale" not in kinds
    assert kinds.count("Transpose") == 2  # of the input, and before the flattening


def test_layouts_may_change_between_layers(rng):
    x, w = _draw(rng, 3, 4, 5, 2), _draw(rng, 3, 3, 2, 2)

    def conv(x, w, layout):
        return jax.lax.conv_general_dilated(
            x, w, (1, 1), "SAME", dimension_numbers=(layout, "HWIO", layout)
        )

    def network(x):
        y = clip(nn.relu(conv(x, w, "NHWC")), 0.5)
        z = clip(nn.relu(conv(y.transpose(0, 3, 1, 2), w, "NCHW")), 0.7)
        z = clip(nn.relu(z + y.transpose(0, 3, 1, 2)), 1.1)
        z = clip(nn.relu(conv(z.transpose(2, 0, 1, 3), w, "HNCW")), 0.9)
        return z.sum((0, 3))

    _assert_traces(network, x)


# --- Calls and control flow -----------------------------------------------------------------------


def test_calls_are_seen_through(rng):
    x, w = _draw(rng, 4, 3), jnp.abs(_draw(rng, 3, 3))

    @jax.custom_vjp
    def straight(x):
        return x * 2.0

    straight.defvjp(lambda x: (x * 2.0, None), lambda _, g: (g,))

    @jax.checkpoint
    def layer(x):
        return clip(nn.relu(straight(jax.jit(jnp.matmul)(x, w))), 0.8)

    _assert_traces(jax.jit(lambda x: layer(layer(x))), x)


def test_a_scan_over_stacked_layers_is_unrolled(rng):
    x, weights, lams = _draw(rng, 4, 3), _draw(rng, 5, 3, 3), jnp.arange(1.0, 6.0) / 4

    def network(x):
        def layer(x, variables):
            w, lam = variables
            return clip(nn.relu(x @ w + 0.3), lam), lam

        x, seen = jax.lax.scan(layer, x, (weights, lams), reverse=True)
        return x * seen[0]

    assert len(_assert_traces(network, x).neurons) == 5


@pytest.mark.parametrize("train", [False, True])
def test_a_branch_that_constants_choose_is_taken(train, rng):
    x = _draw(rng, 4, 3)

    def network(x):
        return jax.lax.cond(
            jnp.asarray(train), lambda x: x * 3.0, lambda x: clip(nn.relu(x), 0.5) + 1.0, x
        )

    assert len(_assert_traces(network, x).neurons) == (0 if train else 1)


@pytest.mark.parametrize("name", ["clip", "tcl_clip"])
def test_a_function_of_its_name_is_not_taken_for_the_clip(name, rng):
    w, x = _draw(rng, 5, 40), _draw(rng, 6, 5)

    def shifted(a, lam):
        return a + lam

    shifted.__name__ = name
    _assert_traces(lambda x: jax.jit(shifted)(clip(jax.nn.relu(x @ w), 0.5), jnp.float32(2)), x)


def test_a_bounded_relu_is_a_clip(rng):
    graph = _assert_traces(lambda x: nn.relu6(x * 9.0), _draw(rng, 4, 3))
    assert [n.op.threshold.item() for n in graph.neurons] == [1.0]
    traced = trace(lambda x: jnp.clip(x, 0, 0.5), jnp.zeros((1, 3)))
    assert [n.op.threshold.item() for n in traced.neurons] == [0.5]


def test_a_batch_size_that_is_also_another_axis(rng):
    w = _draw(rng, 7 * 7 * 7, 3)

    def network(x):
        x = clip(nn.relu(x), 0.8).reshape(x.shape[0], 7, -1).transpose(0, 2, 1)
        return x.reshape(x.shape[0], -1) @ w

    _assert_traces(network, _draw(rng, 7, 7, 7, 7))


# --- Dtypes ---------------------------------------------------------------------------------------


def test_bfloat16_parameters_give_a_float32_graph(rng):
    w, x = _draw(rng, 3, 4).astype(jnp.bfloat16), _draw(rng, 5, 3)
    graph = trace(lambda x: clip(nn.relu(x.astype(jnp.bfloat16) @ w), 0.5).astype(jnp.float32), x)
    assert {leaf.dtype for leaf in jax.tree.leaves(graph)} == {jnp.dtype(jnp.float32)}
    exact = np.clip(np.asarray(x) @ np.asarray(w, np.float32), 0, 0.5)
    np.testing.assert_allclose(evaluate(graph, x), exact, rtol=1e-6, atol=1e-6)


def test_float64_stays(rng):
    with jax.enable_x64(True):
        w, x = jnp.asarray(rng.normal(size=(3, 4))), jnp.asarray(rng.normal(size=(5, 3)))
        graph = trace(lambda x: clip(nn.relu((x @ w) * 3.0), 0.7) / 7.0, x)
        graph = normalise(with_norms(fold(graph), {"output": 0.3}))
        assert {leaf.dtype for leaf in jax.tree.leaves(graph)} == {jnp.dtype(jnp.float64)}
        exact = np.clip(np.asarray(x) @ np.asarray(w) * 3.0, 0, 0.7) / 7.0
        np.testing.assert_allclose(evaluate(graph, x), exact, rtol=1e-14, atol=1e-15)


# --- Frameworks -----------------------------------------------------------------------------------


class _Equinox(eqx.Module):
    """Written for one image, channels first, as Equinox's own layers are."""

    conv: eqx.nn.Conv2d
    pool: eqx.nn.AvgPool2d
    norm: eqx.nn.BatchNorm
    linear: eqx.nn.Linear
    lam: jax.Array

    def __init__(self, key):
        keys = jax.random.split(key, 2)
        self.conv = eqx.nn.Conv2d(2, 4, 3, padding=1, key=keys[0])
        self.norm = eqx.nn.BatchNorm(4, axis_name="batch", mode="batch")
        self.pool = eqx.nn.AvgPool2d(2, 2)
        self.linear = eqx.nn.Linear(4 * 9, 3, key=keys[1])
        self.lam = jnp.asarray(0.4)

    def __call__(self, x, state):
        x, _ = self.norm(self.conv(x), state, inference=True)
        return self.linear(self.pool(clip(jax.nn.relu(x), self.lam)).ravel())


def test_an_equinox_model(rng):
    model, state = eqx.nn.make_with_state(_Equinox)(jax.random.key(0))
    statistics = jnp.arange(1.0, 5.0) / 4
    state = state.set(
        model.norm.batch_state_index,
        (statistics, statistics + 0.5),
    )
    x = _draw(rng, 3, 2, 6, 6)
    graph = _assert_traces(lambda x: jax.vmap(lambda x: model(x, state), axis_name="batch")(x), x)
    assert len(graph.neurons) == 1
    assert "Scale" not in _kinds(graph)


# --- What is refused ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "fn, says",
    [
        (lambda x: jnp.floor(x), "floor is not continuous"),
        (lambda x: x.astype(jnp.int32), "a cast to whole numbers rounds"),
        (lambda x: jnp.where(x > 0, x, 0.0), "a comparison of the signal .*as nn.relu"),
        (lambda x: jax.nn.standardize(x), "batch norm"),
        (lambda x: jax.lax.cond(x[0, 0] > 0, jnp.sin, jnp.cos, x), "control flow"),
        (lambda x: jax.lax.while_loop(lambda x: x.sum() < 9, lambda x: x + 1, x), "control flow"),
        (lambda x: jax.lax.scan(lambda c, x: (c, 2 * x), 0, x)[1], "a scan over the signal itself"),
        (
            lambda x: jax.lax.scan(lambda c, i: (c, c * i), x, jnp.arange(3.0))[1][0],
            "a scan that stacks signals",
        ),
        (lambda x: x[jnp.arange(x.shape[0])[::-1]], "picked for an image is of another one"),
        (lambda x: x[::-1], "picked for an image is of another one"),
        (lambda x: x.at[0].set(1.0), "picked for an image is of another one"),
        (lambda x: x.at[:, jnp.array([0, 5])].get(mode="fill"), "lies outside of the signal"),
        (
            lambda x: jnp.concatenate([x, jnp.full((x.shape[0], 1), jnp.nan)], 1),
            "is not finite: nan",
        ),
        (lambda x: jnp.fft.fft(x).real, "no complex numbers .multiply by a real matrix"),
        (lambda x: jnp.cumsum(x, 0), "a running sum over the batch"),
        (lambda x: jnp.concatenate([x, x], 0), "over the batch mixes images"),
        (lambda x: x[:2], "a part of the batch"),
        (lambda x: x.reshape(-1), "the batch axis is merged"),
        (lambda x: x.T @ jnp.ones((x.shape[0], 4)), "mixes images"),
        (lambda x: x * jnp.arange(x.shape[0])[:, None], "differs between the images"),
        (lambda x: jnp.argmax(x, -1), "return the logits"),
        (lambda x: x.max(-1), "a maximum over the signal"),
        (lambda x: nn.relu(x).T, "images first"),
    ],
)
def test_refused_in_words(fn, says):
    with pytest.raises(UnsupportedOperation, match=says):
        trace(implicit()(fn), jnp.zeros((1, 4)))


def test_places_that_depend_on_the_input_are_refused():
    rows, how = jnp.ones((5, 2)), {"wrap_negative_indices": False}
    for function, says in (
        (lambda x: rows.at[x].get(**how), "that are picked depend on the input"),
        (lambda x: jnp.zeros((len(x), 9)).at[:, x[:, 0]].set(1.0, **how), "picked depend on"),
    ):
        with pytest.raises(UnsupportedOperation, match=says):
            trace(implicit()(function), jnp.zeros((1, 4), jnp.int32))


def test_dropout_in_training_is_refused():
    layer = nn.Dropout(0.5, deterministic=False)
    with pytest.raises(UnsupportedOperation, match="dropout"):
        trace(lambda x: layer.apply({}, x, rngs={"dropout": jax.random.key(0)}), jnp.zeros((1, 4)))


def test_batch_norm_in_training_is_refused():
    layer = nn.BatchNorm(use_running_average=False)
    variables = layer.init(jax.random.key(0), jnp.zeros((1, 4)))
    with pytest.raises(UnsupportedOperation, match="use inference mode"):
        trace(lambda x: layer.apply(variables, x, mutable=["batch_stats"])[0], jnp.zeros((1, 4)))
