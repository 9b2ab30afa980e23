"""The networks: sizes, parameters, dtypes."""

import functools
import itertools
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest

from tcl_jax import InputError, models
from tcl_jax.models import inception

SMALL = {
    "cnet": (28, 28, 1),
    "cnn3": (32, 32, 3),
    "cnn4": (32, 32, 3),
    "vgg15": (32, 32, 3),
    "vgg16": (32, 32, 3),
    "vgg16_imagenet": (32, 32, 3),
    "resnet20": (32, 32, 3),
    "resnet34": (32, 32, 3),
    "resnet50": (32, 32, 3),
    "mobilenet": (32, 32, 3),
    "mobilenet_imagenet": (32, 32, 3),
    "inception_v3": (75, 75, 3),
}
ACTIVATIONS = {
    "cnet": 5,
    "cnn3": 4,
    "cnn4": 5,
    "vgg15": 14,
    "vgg16": 15,
    "vgg16_imagenet": 15,
    "resnet20": 19,
    "resnet34": 33,
    "resnet50": 49,
    "mobilenet": 27,
    "mobilenet_imagenet": 27,
    "inception_v3": 94,
}

LARGE = ("vgg15", "vgg16_imagenet", "resnet34", "resnet50", "mobilenet_imagenet", "inception_v3")
EACH = [pytest.param(name, marks=pytest.mark.long) if name in LARGE else name for name in SMALL]


def test_every_network_is_tested():
    assert tuple(SMALL) == tuple(ACTIVATIONS) == tuple(models.NETWORKS)


@functools.cache
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


def _cnet(channels: int, height: int, width: int, hidden: int = 256) -> int:
    convolutions = _conv(channels, 32) + _conv(32, 32) + _conv(32, 64) + _conv(64, 64)
    pooled = (height // 4) * (width // 4) * 64
    return convolutions + _linear(pooled, hidden) + _linear(hidden, 10) + 5


def _cnn3(channels: int, side: int) -> int:
    convolutions = 25 * (channels * 32 + 32 * 32 + 32 * 64)
    return convolutions + (side // 8) ** 2 * 64 * 64 + 64 * 10 + 4


def _resnet20(channels: int) -> int:
    first = 6 * _conv(16, 16)
    second = _conv(16, 32) + _conv(16, 32, 1) + 5 * _conv(32, 32)
    third = _conv(32, 64) + _conv(32, 64, 1) + 5 * _conv(64, 64)
    return _conv(channels, 16) + first + second + third + _linear(64, 10) + 19


def _vgg(channels: int, *hidden: int, pooled: int = 512) -> int:
    widths = [channels, 64, 64, 128, 128, 256, 256, 256, *[512] * 6]
    convolutions = sum(_conv(i, o) for i, o in itertools.pairwise(widths))
    linear = sum(_linear(i, o) for i, o in itertools.pairwise([pooled, *hidden, 10]))
    return convolutions + linear + 13 + len(hidden)


@pytest.mark.parametrize(
    "name, shape, expected",
    [
        ("cnet", (28, 28, 1), _cnet(1, 28, 28)),
        ("cnet", (8, 8, 1), _cnet(1, 8, 8)),
        ("cnet", (30, 33, 3), _cnet(3, 30, 33)),
        ("resnet20", (32, 32, 3), _resnet20(3)),
        ("resnet20", (28, 28, 1), _resnet20(1)),
        ("cnn3", (32, 32, 3), _cnn3(3, 32)),
        ("cnn3", (28, 28, 1), _cnn3(1, 28)),
        ("cnn4", (32, 32, 3), _cnet(3, 32, 32, 512)),
        ("vgg16", (32, 32, 3), _vgg(3, 512, 512)),
        ("vgg15", (32, 32, 3), _vgg(3, 4096)),
        ("vgg15", (70, 96, 1), _vgg(1, 4096, pooled=2 * 3 * 512)),
        ("vgg16_imagenet", (64, 64, 3), _vgg(3, 4096, 4096, pooled=4 * 512)),
    ],
)
def test_number_of_parameters(name, shape, expected):
    assert _count(_shapes(name, shape)[2]["params"]) == expected


@pytest.mark.parametrize(
    "name, side, classes, published",
    [
        # torchvision's documentation; its VGG has biases besides batch norm's shifts.
        ("vgg16_imagenet", 224, 1000, 138_365_992 - 4_224),
        ("resnet34", 224, 1000, 21_797_672),
        ("resnet50", 224, 1000, 25_557_032),
        # torchvision's 27,161,264 less its auxiliary head; timm's inception_v3 has as many.
        ("inception_v3", 299, 1000, 23_834_568),
        # Trainable parameters of Keras's MobileNet.
        ("mobilenet_imagenet", 224, 1000, 4_231_976),
        # MobileNet of github.com/kuangliu/pytorch-cifar.
        ("mobilenet", 32, 10, 3_217_226),
        # Caffe's cifar10_quick, 145,578, less its biases.
        ("cnn3", 32, 10, 145_578 - 202),
    ],
)
def test_numbers_that_are_published(name, side, classes, published):
    params = _shapes(name, (side, side, 3), classes)[2]["params"]
    assert _count(params) == published + ACTIVATIONS[name]


def test_rounded_numbers_that_are_published():
    # He et al. 2016, Table 6.
    assert round(_count(_shapes("resnet20")[2]["params"]) / 1e6, 2) == 0.27
    assert _count(_shapes("cnet", (28, 28, 1))[2]["params"]) == 870_831


# --- Strides, which numbers of parameters do not show -------------------------------------------


@pytest.mark.parametrize(
    "name, side, layer, shape",
    [
        # Szegedy et al. 2016, Table 1.
        ("inception_v3", 299, "stem", (35, 35, 192)),
        ("inception_v3", 299, "mixed5d", (35, 35, 288)),
        ("inception_v3", 299, "mixed6a", (17, 17, 768)),
        ("inception_v3", 299, "mixed6e", (17, 17, 768)),
        ("inception_v3", 299, "mixed7a", (8, 8, 1280)),
        ("inception_v3", 299, "mixed7c", (8, 8, 2048)),
        # He et al. 2016, Table 1.
        ("resnet50", 224, "stem", (112, 112, 64)),
        ("resnet50", 224, "stage1_block3", (56, 56, 256)),
        ("resnet50", 224, "stage2_block1", (28, 28, 512)),
        ("resnet50", 224, "stage4_block3", (7, 7, 2048)),
        # Howard et al. 2017, Table 1.
        ("mobilenet_imagenet", 224, "block1", (112, 112, 64)),
        ("mobilenet_imagenet", 224, "block2", (56, 56, 128)),
        ("mobilenet_imagenet", 224, "block11", (14, 14, 512)),
        ("mobilenet_imagenet", 224, "block13", (7, 7, 1024)),
        # The same without the stem's stride.
        ("mobilenet", 32, "stem", (32, 32, 32)),
        ("mobilenet", 32, "block13", (2, 2, 1024)),
        ("vgg16_imagenet", 224, "conv13", (14, 14, 512)),
    ],
)
def test_shapes_between_layers(name, side, layer, shape):
    assert _layers(name, side)[layer]["__call__"][0].shape == (2, *shape)


@functools.cache
def _layers(name, side):
    """What the layers of a network give, in shapes."""
    model, x, variables = _shapes(name, (side, side, 3))

    def layers(variables, x):
        return model.apply(variables, x, capture_intermediates=True, mutable="intermediates")[1]

    return jax.eval_shape(layers, variables, x)["intermediates"]


def test_bottlenecks_stride_in_the_middle():
    block = _layers("resnet50", 224)["stage2_block1"]
    sides = [block[f"conv{i}"]["__call__"][0].shape[1] for i in (1, 2, 3)]
    assert sides == [56, 28, 28]


def test_zeros_around_the_image_count_in_an_average():
    ones = jnp.ones((1, 3, 3, 1))
    expected = jnp.array([[4, 6, 4], [6, 9, 6], [4, 6, 4]]) / 9
    assert jnp.allclose(inception.smooth(ones)[0, :, :, 0], expected)


# --- λ ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SMALL)
def test_one_lambda_an_activation(name, monkeypatch):
    calls = []
    relu = nn.relu
    monkeypatch.setattr(nn, "relu", lambda x: (calls.append(x.shape), relu(x))[1])
    _, _, variables = _shapes.__wrapped__(name)  # traced anew, with this ReLU
    assert len(_lams(variables["params"])) == len(calls) == ACTIVATIONS[name]


@pytest.mark.parametrize("name", EACH)
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
        ("cnn3", (8, 8, 1), 2),
        ("cnn3", (28, 37, 3), 100),
        ("cnn4", (4, 4, 1), 2),
        ("vgg15", (32, 40, 3), 100),
        ("vgg16", (32, 32, 1), 10),
        ("vgg16", (64, 47, 3), 100),
        ("vgg16_imagenet", (32, 95, 3), 10),
        ("resnet34", (32, 33, 3), 100),
        ("resnet50", (32, 32, 1), 2),
        pytest.param("resnet50", (50, 77, 3), 1000, marks=pytest.mark.long),
        ("mobilenet", (16, 16, 1), 10),
        ("mobilenet", (28, 31, 1), 10),
        ("mobilenet_imagenet", (32, 32, 3), 10),
        ("mobilenet_imagenet", (61, 224, 3), 1000),
        pytest.param("inception_v3", (75, 75, 1), 10, marks=pytest.mark.long),
        ("inception_v3", (100, 131, 3), 1000),
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
        ("cnn3", (7, 28, 1), 8),
        ("cnn4", (28, 3, 1), 4),
        ("vgg15", (28, 28, 1), 32),
        ("vgg16", (28, 28, 1), 32),
        ("vgg16", (32, 31, 3), 32),
        ("vgg16_imagenet", (224, 31, 3), 32),
        ("resnet34", (31, 32, 3), 32),
        ("resnet50", (28, 28, 1), 32),
        ("mobilenet", (8, 8, 1), 16),
        ("mobilenet_imagenet", (31, 224, 3), 32),
        ("inception_v3", (74, 75, 3), 75),
    ],
)
def test_images_too_small_are_refused(name, shape, least):
    with pytest.raises(InputError, match=rf"{name} needs images of at least {least}×{least}"):
        models.create(name, image_shape=shape, num_classes=10)


def test_an_unknown_name_is_refused_with_a_suggestion():
    with pytest.raises(InputError, match="did you mean 'resnet20'"):
        models.create("resnet-20", image_shape=(32, 32, 3), num_classes=10)


# --- Dtypes -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", EACH)
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
