"""Conversion keeps what a network computes: Eqs. 5 and 7, alone and over whole networks."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import wiring
from flax import nnx

from tcl_jax import InputError, clip, convert, models, simulation
from tcl_jax import graph as g
from tcl_jax.conversion import (
    Graph,
    calibrate,
    evaluate,
    fold,
    norm_method,
    normalise,
    trace,
    with_norms,
)
from tcl_jax.promotion import implicit

TOLERANCE = 1e-4
"""Of the largest logit: float32 sums in another order, over up to 21 layers."""


def _assert_same_logits(graph: Graph, expected, x) -> None:
    expected = np.asarray(expected)
    assert expected.std() > 0
    # Compiled whole, which is five times faster than operation by operation.
    found = jax.jit(evaluate)(graph, x)
    assert np.abs(found - expected).max() <= TOLERANCE * np.abs(expected).max()


def _kinds(graph: Graph) -> list[str]:
    return [type(node.op).__name__ for node in graph.nodes]


# --- Whole networks -------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name, shape",
    [
        ("cnet", (28, 28, 1)),
        ("resnet20", (32, 32, 3)),
        pytest.param("vgg16", (32, 32, 3), marks=pytest.mark.long),
        pytest.param("vgg16_imagenet", (32, 32, 3), marks=pytest.mark.long),
        pytest.param("vgg15", (32, 32, 3), marks=pytest.mark.long),
        pytest.param("resnet34", (64, 64, 3), marks=pytest.mark.long),
        pytest.param("resnet50", (64, 64, 3), marks=pytest.mark.long),
        pytest.param("mobilenet", (32, 32, 3), marks=pytest.mark.long),
        pytest.param("mobilenet_imagenet", (64, 64, 3), marks=pytest.mark.long),
        pytest.param("inception_v3", (75, 75, 3), marks=pytest.mark.long),
        ("cnn3", (32, 32, 3)),
        ("cnn4", (32, 32, 3)),
    ],
)
def test_a_network_keeps_its_logits(name, shape, randomised, rng):
    model = models.create(name, image_shape=shape, num_classes=10)
    x = jnp.asarray(rng.normal(0, 1, (2, *shape)), jnp.float32)
    variables = randomised(jax.eval_shape(model.init, jax.random.key(0), x))
    logits = jax.jit(model.apply)(variables, x)

    traced = trace(lambda x: model.apply(variables, x), x)
    folded = fold(traced)
    normalised = normalise(with_norms(folded, {"output": logits.max()}))

    clipped = jax.tree_util.tree_leaves_with_path(variables["params"])
    lams = sorted(float(v) for path, v in clipped if path[-1].key == "lam")
    assert sorted(float(n.op.threshold) for n in traced.neurons) == lams
    assert len(normalised.neurons) == len(lams)
    assert all(np.all(n.op.threshold == 1) for n in (*normalised.neurons, normalised.output))
    assert "Scale" in _kinds(traced) and "Scale" not in _kinds(folded)
    # Made of what was traced and folded: either would show here.
    _assert_same_logits(normalised, logits, x)


@pytest.mark.parametrize(
    "name, side",
    [
        ("cnet", 16),
        ("cnn3", 16),
        pytest.param("cnn4", 16, marks=pytest.mark.long),
        pytest.param("resnet20", 8, marks=pytest.mark.long),
        pytest.param("mobilenet", 16, marks=pytest.mark.long),
    ],
)
def test_a_spiking_network_converges_to_its_network(name, side, randomised, rng):
    """The mean current into the output, as a rate, is off by some constant over T."""
    shape = (side, side, 3)
    model = models.create(name, image_shape=shape, num_classes=10)
    x = jnp.asarray(rng.normal(0, 1, (2, *shape)), jnp.float32)
    variables = randomised(jax.eval_shape(model.init, jax.random.key(0), x))
    graph = convert(model.apply, variables, [x])
    logits = np.asarray(jax.jit(model.apply)(variables, x))
    times = (100, 1000)

    def mean_logits(state, *_):
        return state.output.membrane + state.output.counts

    def simulate(graph, x):
        return simulation.run(graph, x, times[-1], mean_logits)[1]

    charge = jax.jit(simulate)(simulation.lower(graph), x)
    early, late = (
        np.abs(charge[t - 1] / t * graph.output.op.unit - logits).max() / np.abs(logits).max()
        for t in times
    )
    assert late < 0.02
    assert late < early / 4  # ten, but for what is left to chance at any one t


# --- Eqs. 5 and 7 ---------------------------------------------------------------------------


def _two_layers(rng):
    w = {k: rng.normal(0, 1, s) for k, s in {"w1": (5, 4), "w2": (4, 3), "b2": 3}.items()}
    w |= {k: rng.normal(0, 1, 4) for k in ("b1", "gamma", "beta", "mean")}
    w["var"] = rng.uniform(0.5, 2, 4)
    return w


def _in_jax(weights):
    w = jax.tree.map(lambda v: jnp.asarray(v, jnp.float32), weights)

    @implicit()
    def network(x):
        z = x @ w["w1"] + w["b1"]
        z = w["gamma"] / jnp.sqrt(w["var"]) * (z - w["mean"]) + w["beta"]
        return clip(jax.nn.relu(z), 1.7) @ w["w2"] + w["b2"]

    return network


def test_folding_is_eq_7(rng):
    w = _two_layers(rng)
    folded = fold(trace(_in_jax(w), jnp.zeros((1, 5))))
    first, second = wiring.operations(folded, g.Dense)
    factor = w["gamma"] / np.sqrt(w["var"])
    # Two float32 roundings of factors, one of the result.
    np.testing.assert_allclose(first.kernel, w["w1"] * factor, rtol=1e-6)
    bias = factor * (w["b1"] - w["mean"]) + w["beta"]
    np.testing.assert_allclose(first.bias, bias, rtol=1e-6, atol=1e-6)
    np.testing.assert_array_equal(second.kernel, w["w2"].astype(np.float32))
    np.testing.assert_array_equal(second.bias, w["b2"].astype(np.float32))


def test_normalising_is_eq_5(rng):
    w = _two_layers(rng)
    folded = fold(trace(_in_jax(w), jnp.zeros((1, 5))))
    lam, lam_out = np.float32(1.7), np.float32(3.3)
    before = wiring.operations(folded, g.Dense)
    after = wiring.operations(normalise(with_norms(folded, {"output": lam_out})), g.Dense)
    for one, other, lam_in, own in zip(before, after, (1, lam), (lam, lam_out), strict=True):
        np.testing.assert_allclose(
            other.kernel, np.asarray(one.kernel) * lam_in / own, rtol=3e-7, atol=0
        )
        np.testing.assert_allclose(other.bias, np.asarray(one.bias) / own, rtol=3e-7, atol=0)


def test_an_identity_shortcut_becomes_the_ratio_of_norm_factors():
    w = jnp.eye(3) / 2

    def block(x):
        x = clip(jax.nn.relu(x @ w), 0.5)
        y = clip(jax.nn.relu(x @ w), 2.0)
        return clip(jax.nn.relu(y @ w + x), 4.0) @ w

    graph = normalise(with_norms(trace(block, jnp.zeros((1, 3))), {"output": 1.0}))
    ((number, scale),) = ((i, n) for i, n in enumerate(graph.nodes) if isinstance(n.op, g.Scale))
    assert scale.op.scale.item() == 0.5 / 4.0 and scale.op.shift.item() == 0.0
    assert isinstance(graph.nodes[scale.inputs[0]].op, g.Population)
    (reader,) = (n for n in graph.nodes if number in n.inputs)
    assert isinstance(reader.op, g.Add)
    kernels = [op.kernel[0, 0].item() for op in wiring.operations(graph, g.Dense)]
    assert kernels == [0.5 / 0.5, 0.5 * 0.5 / 2, 0.5 * 2 / 4, 0.5 * 4]


def test_a_threshold_that_is_infinite_is_refused():
    graph = trace(lambda x: jax.nn.relu(x) @ jnp.eye(3), jnp.zeros((1, 3)))
    with pytest.raises(InputError, match="threshold inf, which must be finite"):
        normalise(graph)


def test_folding_leaves_a_value_that_others_read():
    w = jnp.eye(3)

    def network(x):
        z = x @ w
        return clip(jax.nn.relu(z * 2.0), 1.0) + clip(jax.nn.relu(z), 1.0)

    x = jnp.asarray([[0.3, 0.6, -1.0]])
    folded = fold(trace(network, x))
    assert _kinds(folded).count("Scale") == 1
    np.testing.assert_array_equal(evaluate(folded, x), network(x))


# --- Kinds of networks ----------------------------------------------------------------------


def _assert_converts(fn, x) -> Graph:
    graph = convert(lambda _, x: fn(x), None, [x])
    assert all(np.all(n.op.threshold == 1) for n in (*graph.neurons, graph.output))
    _assert_same_logits(graph, fn(x), x)
    return graph


def _kernel(rng, *shape):
    return jnp.asarray(rng.normal(0, 0.4, shape), jnp.float32)


@pytest.mark.parametrize("between", ["nothing", "pool", "flatten", "shortcut"])
def test_one_lambda_a_channel(between, rng):
    x = _kernel(rng, 3, 6, 6, 2)
    w1, w2, _ = (_kernel(rng, 3, 3, i, 4) for i in (2, 4, 4))
    w_out = jnp.abs(_kernel(rng, 144 if between == "flatten" else 4, 3))
    lam1, lam2 = jnp.asarray([0.2, 0.4, 0.8, 1.6]), jnp.asarray([1.0, 0.3, 0.6, 0.2])

    def conv(x, w):
        return jax.lax.conv_general_dilated(
            x, w, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )

    @implicit()
    def network(x):
        x = clip(jax.nn.relu(conv(x, w1)), lam1)
        y = nn.avg_pool(x, (2, 2), (2, 2)) if between == "pool" else x
        y = conv(y, w2) + (x if between == "shortcut" else 0.0)
        y = clip(jax.nn.relu(y), lam2)
        if between == "flatten":
            return y.reshape(y.shape[0], -1) @ w_out
        return y.mean((1, 2)) @ w_out

    _assert_converts(network, x)


@pytest.mark.parametrize("lam_shape", [(), (4, 1, 1), (1, 4, 1, 1)])
def test_channels_first(lam_shape, rng):
    x = _kernel(rng, 3, 2, 6, 6)
    w, w_out = _kernel(rng, 4, 2, 3, 3), _kernel(rng, 4 * 9, 3)
    lam = (
        jnp.full(lam_shape, 0.4) if lam_shape == () else jnp.arange(2.0, 6.0).reshape(lam_shape) / 8
    )

    @implicit()
    def network(x):
        y = jax.lax.conv_general_dilated(
            x, w, (1, 1), "SAME", dimension_numbers=("NCHW", "OIHW", "NCHW")
        )
        y = clip(jax.nn.relu(y + jnp.arange(4.0).reshape(4, 1, 1) / 8), lam)
        y = jax.lax.reduce_window(y, 0.0, jax.lax.add, (1, 1, 2, 2), (1, 1, 2, 2), "VALID") / 4
        return y.reshape(y.shape[0], -1) @ w_out

    _assert_converts(network, x)


@pytest.mark.parametrize("lam", [0.4, (0.2, 0.3, 0.4, 0.5, 0.6, 0.7)])
def test_grouped_convolution(lam, rng):
    x = _kernel(rng, 3, 5, 5, 3)
    w1, w2, w_out = _kernel(rng, 3, 3, 3, 6), _kernel(rng, 3, 3, 3, 4), _kernel(rng, 100, 3)

    def conv(x, w, groups):
        return jax.lax.conv_general_dilated(
            x,
            w,
            (1, 1),
            "SAME",
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            feature_group_count=groups,
        )

    def network(x):
        y = clip(jax.nn.relu(conv(x, w1, 1)), jnp.asarray(lam))
        y = clip(jax.nn.relu(conv(y, w2, 2)), 0.9)
        return y.reshape(y.shape[0], -1) @ w_out

    graph = _assert_converts(network, x)
    assert [op.groups for op in wiring.operations(graph, g.Conv)] == [1, 2]


@pytest.mark.parametrize("kind", ["pool", "convolution", "both"])
def test_a_lambda_by_position(kind, rng):
    lam = jnp.arange(1.0, 17.0).reshape(4, 4, 1) / 8
    w = _kernel(rng, 3, 3, 1, 1)
    w_out = jnp.abs(_kernel(rng, 16 if kind == "convolution" else 4, 2))

    @implicit()
    def network(x):
        x = clip(jax.nn.relu(x), lam)
        if kind != "pool":
            x = jax.lax.conv_general_dilated(
                x, w, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
            )
        if kind != "convolution":
            x = clip(jax.nn.relu(nn.avg_pool(x, (2, 2), (2, 2))), lam[:2, :2])
        return x.reshape(x.shape[0], -1) @ w_out

    _assert_converts(network, _kernel(rng, 3, 4, 4, 1) + 1)


def test_the_smaller_of_two_clips_holds():
    x = jnp.asarray([[0.5, 1.5, 3.0]])
    for lams in ((1.0, 2.0), (2.0, 1.0)):
        graph = _assert_converts(lambda x, lams=lams: clip(clip(nn.relu(x), lams[0]), lams[1]), x)
        assert len(graph.neurons) == 1


def test_a_constant_is_computed_whatever_makes_it(rng):
    w = _kernel(rng, 3, 3)

    def network(x):
        largest, _ = jax.lax.top_k(w, 2)
        noise = jax.random.normal(jax.random.split(jax.random.key(0))[0], (2, 2))
        return clip(jax.nn.relu(x @ jnp.tanh(largest)), 1.0) @ noise

    _assert_converts(network, _kernel(rng, 4, 3))


class _Nnx(nnx.Module):
    def __init__(self, rngs: nnx.Rngs):
        self.conv = nnx.Conv(2, 4, (3, 3), rngs=rngs)
        self.norm = nnx.BatchNorm(4, use_running_average=True, rngs=rngs)
        self.norm.mean[...] = jnp.arange(4.0) / 8
        self.norm.var[...] = jnp.arange(1.0, 5.0)
        self.norm.bias[...] = jnp.arange(4.0) / 4
        self.lam = nnx.Param(jnp.float32(0.7))
        self.fc = nnx.Linear(36, 3, rngs=rngs)

    @implicit()
    def __call__(self, x):
        x = clip(nnx.relu(self.norm(self.conv(x))), self.lam[...])
        x = nnx.avg_pool(x, (2, 2), strides=(2, 2))
        return self.fc(x.reshape(x.shape[0], -1))


def test_a_flax_nnx_model(rng):
    model = _Nnx(nnx.Rngs(0))
    definition, state = nnx.split(model)
    x = _kernel(rng, 3, 6, 6, 2)
    graph = convert(lambda state, x: nnx.merge(definition, state)(x), state, [x])
    assert len(graph.neurons) == 1
    _assert_same_logits(graph, model(x), x)


# --- convert --------------------------------------------------------------------------------


def test_convert_is_its_four_steps(rng):
    weights = _kernel(rng, 5, 5)

    def network(w, x):
        return jax.nn.relu(x @ w) @ w

    batches = [_kernel(rng, 4, 5), _kernel(rng, 4, 5)]
    folded = fold(trace(lambda x: network(weights, x), batches[0]))
    norms = calibrate(folded, norm_method("percentile:90"), lambda: batches)
    expected = normalise(with_norms(folded, norms))
    # An iterator, which can be read only once.
    found = convert(network, weights, iter(batches), norm="percentile:90")
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_array_equal(one, other)
    assert jax.tree.structure(found) == jax.tree.structure(expected)


def test_an_array_alone_is_one_batch(rng):
    images = _kernel(rng, 4, 5)
    weights = _kernel(rng, 5, 5)
    one = convert(lambda w, x: jax.nn.relu(x @ w) @ w, weights, images, norm="max")
    other = convert(lambda w, x: jax.nn.relu(x @ w) @ w, weights, [images], norm="max")
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        np.testing.assert_array_equal(a, b)


def test_convert_without_images_is_refused():
    with pytest.raises(InputError, match="no calibration images"):
        convert(lambda w, x: x @ w, jnp.eye(2), [])
