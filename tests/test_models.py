"""The networks: sizes, parameters, dtypes."""

import itertools
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest

from tcl_jax import InputError, models

SMALL = {"cnet": (28, 28, 1), "resnet20": (32, 32, 3), "vgg16": (32, 32, 3)}
ACTIVATIONS = {"cnet": 5, "resnet20": 19, "vgg16": 15}


def _shapes(name, shape=None, classes=10, **settings):
    shape = shape or SMALL[name]
    model = models.create(name, image_shape=shape, num_classes=classes, **settings)
    x = jax.ShapeDtypeStruct((2, *shape), jnp.float32)
    return model, x, jax.eval_shape(model.init, jax.random.key(0), x)


def _count(params) -> int:
    return sum(math.prod(p.shape) for p in jax.tree.leaves(params))


def _lams(params) -> list:
    leaves = jax.tree_util.tree_leaves_with_path(params)
    return [value for path, value in leaves if path[-1].key == "lam"]


# --- Numbers of parameters, by arithmetic -----------------------------------------------------


def _conv(i: int, o: int, side: int = 3) -> int:
    return side * side * i * o + 2 * o  # no bias; γ and β


def _linear(i: int, o: int) -> int:
    return i * o + o


def _cnet(channels: int, height: int, width: int) -> int:
    convolutions = _conv(channels, 32) + _conv(32, 32) + _conv(32, 64) + _conv(64, 64)
    pooled = (height // 4) * (width // 4) * 64
    return convolutions + _linear(pooled, 256) + _linear(256, 10) + 5


def _resnet20(channels: int) -> int:
    first = 6 * _conv(16, 16)
    second = _conv(16, 32) + _conv(16, 32, 1) + 5 * _conv(32, 32)
    third = _conv(32, 64) + _conv(32, 64, 1) + 5 * _conv(64, 64)
    return _conv(channels, 16) + first + second + third + _linear(64, 10) + 19


def _vgg16(channels: int) -> int:
    widths = [channels, 64, 64, 128, 128, 256, 256, 256, *[512] * 6]
    convolutions = sum(_conv(i, o) for i, o in itertools.pairwise(widths))
    return convolutions + 2 * _linear(512, 512) + _linear(512, 10) + 15


@pytest.mark.parametrize(
    "name, shape, expected",
    [
        ("cnet", (28, 28, 1), _cnet(1, 28, 28)),
        ("cnet", (8, 8, 1), _cnet(1, 8, 8)),
        ("cnet", (30, 33, 3), _cnet(3, 30, 33)),
        ("resnet20", (32, 32, 3), _resnet20(3)),
        ("resnet20", (28, 28, 1), _resnet20(1)),
        ("vgg16", (32, 32, 3), _vgg16(3)),
    ],
)
def test_number_of_parameters(name, shape, expected):
    assert _count(_shapes(name, shape)[2]["params"]) == expected


def test_numbers_that_are_published():
    assert _count(_shapes("cnet", (28, 28, 1))[2]["params"]) == 870_831
    # He et al. 2016, Table 6.
    assert round(_count(_shapes("resnet20")[2]["params"]) / 1e6, 2) == 0.27


# --- λ ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SMALL)
def test_one_lambda_an_activation(name, monkeypatch):
    calls = []
    relu = nn.relu
    monkeypatch.setattr(nn, "relu", lambda x: (calls.append(x.shape), relu(x))[1])
    _, _, variables = _shapes(name)
    assert len(_lams(variables["params"])) == len(calls) == ACTIVATIONS[name]


@pytest.mark.parametrize("name", SMALL)
def test_without_tcl_there_is_no_lambda_and_nothing_else_changes(name):
    with_tcl = _shapes(name)[2]["params"]
    without = _shapes(name, tcl=False)[2]["params"]
    assert _lams(without) == []
    assert _count(with_tcl) - _count(without) == ACTIVATIONS[name]


def test_lambda_starts_where_it_is_told():
    model = models.create("cnet", image_shape=(4, 4, 1), num_classes=3, lam=2.5)
    params = jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 4, 4, 1)))["params"]
    assert [lam.item() for lam in _lams(params)] == [2.5] * 5


@pytest.mark.parametrize("lam", [0.0, -1.0, float("nan")])
def test_a_lambda_that_is_no_bound_is_refused(lam):
    with pytest.raises(InputError, match="λ must start above 0"):
        models.create("cnet", image_shape=(28, 28, 1), num_classes=10, lam=lam)


# --- Sizes --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name, shape, classes",
    [
        ("cnet", (4, 4, 1), 2),
        ("cnet", (8, 8, 1), 10),
        ("cnet", (5, 31, 4), 100),
        ("resnet20", (4, 4, 1), 2),
        ("resnet20", (28, 28, 1), 10),
        ("resnet20", (33, 29, 2), 100),
        ("vgg16", (32, 32, 1), 10),
        ("vgg16", (64, 47, 3), 100),
    ],
)
def test_images_of_many_shapes(name, shape, classes):
    model, x, variables = _shapes(name, shape, classes)
    logits = jax.eval_shape(model.apply, variables, x)
    assert logits.shape == (2, classes) and logits.dtype == jnp.float32


@pytest.mark.parametrize(
    "name, shape, least",
    [
        ("cnet", (3, 28, 1), 4),
        ("cnet", (28, 3, 1), 4),
        ("resnet20", (2, 2, 3), 4),
        ("vgg16", (28, 28, 1), 32),
        ("vgg16", (32, 31, 3), 32),
    ],
)
def test_images_too_small_are_refused(name, shape, least):
    with pytest.raises(InputError, match=rf"{name} needs images of at least {least}×{least}"):
        models.create(name, image_shape=shape, num_classes=10)


def test_an_unknown_name_is_refused_with_a_suggestion():
    with pytest.raises(InputError, match="did you mean 'resnet20'"):
        models.create("resnet-20", image_shape=(32, 32, 3), num_classes=10)


# --- Dtypes -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SMALL)
def test_bfloat16_is_for_computation_alone(name):
    model, x, variables = _shapes(name, dtype=jnp.bfloat16)
    assert {v.dtype for v in jax.tree.leaves(variables)} == {jnp.dtype(jnp.float32)}

    def logits_and_statistics(variables, x):
        return model.apply(variables, x, train=True, mutable=["batch_stats"])

    for value in jax.tree.leaves(jax.eval_shape(logits_and_statistics, variables, x)):
        assert value.dtype == jnp.float32
    jaxpr = str(jax.make_jaxpr(model.apply)(variables, x))
    convolutions = [line for line in jaxpr.splitlines() if "conv_general_dilated[" in line]
    assert convolutions and all(":bf16[" in line for line in convolutions)


def test_gradients_stay_float32_under_bfloat16(randomised, rng):
    model, _, shapes = _shapes("cnet", (8, 8, 1), dtype=jnp.bfloat16)
    variables = randomised(shapes)
    x = jnp.asarray(rng.normal(0, 1, (4, 8, 8, 1)), jnp.float32)

    def loss(params):
        return jnp.sum(model.apply({**variables, "params": params}, x) ** 2)

    gradients = jax.jit(jax.grad(loss))(variables["params"])
    assert {g.dtype for g in jax.tree.leaves(gradients)} == {jnp.dtype(jnp.float32)}
    assert all(lam != 0 for lam in _lams(gradients))
