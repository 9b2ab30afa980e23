"""The networks, by name."""

from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax.numpy as jnp

from tcl_jax.errors import InputError
from tcl_jax.models.cnet import CNET as CNET
from tcl_jax.models.cnet import cnn4
from tcl_jax.models.cnn3 import CNN3 as CNN3
from tcl_jax.models.inception import InceptionV3 as InceptionV3
from tcl_jax.models.mobilenet import MobileNet as MobileNet
from tcl_jax.models.mobilenet import mobilenet, mobilenet_imagenet
from tcl_jax.models.resnet import ResNet as ResNet
from tcl_jax.models.resnet import resnet20, resnet34, resnet50
from tcl_jax.models.vgg import VGG as VGG
from tcl_jax.models.vgg import vgg15, vgg16, vgg16_imagenet
from tcl_jax.registry import Registry


class Network(NamedTuple):
    """A network that has a name.

    Attributes:
        make: its module, of `num_classes`, `tcl`, `lam` and `dtype`.
        smallest: side of the smallest image of which its strides and pools leave something.
    """

    make: Callable[..., nn.Module]
    smallest: int


NETWORKS = Registry(
    "network",
    {
        "cnet": Network(CNET, 4),
        "cnn3": Network(CNN3, 8),
        "cnn4": Network(cnn4, 4),
        "vgg15": Network(vgg15, 32),
        "vgg16": Network(vgg16, 32),
        "vgg16_imagenet": Network(vgg16_imagenet, 32),
        "resnet20": Network(resnet20, 4),
        "resnet34": Network(resnet34, 32),
        "resnet50": Network(resnet50, 32),
        "mobilenet": Network(mobilenet, 16),
        "mobilenet_imagenet": Network(mobilenet_imagenet, 32),
        "inception_v3": Network(InceptionV3, 75),
    },
)
"""All that `create` knows."""


def create(
    name: str,
    *,
    image_shape: tuple[int, int, int],
    num_classes: int,
    tcl: bool = True,
    lam: float = 4.0,
    dtype: Any = jnp.float32,
) -> nn.Module:
    """Make a network by name, for images of one shape.

    Args:
        name: one of `NETWORKS`.
        image_shape: height, width and channels of its images; checked against what the network
            can pool, channels are free.
        num_classes: number of logits.
        tcl: clip every ReLU at a trainable λ; False gives the plain network of the baselines.
        lam: λ of every layer before training.
        dtype: computation type.  Parameters, batch statistics and λ stay float32, logits too.

    Raises:
        InputError: unknown name, images too small for the network, or λ ≤ 0.

    >>> from tcl_jax import models
    >>> models.create("cnet", image_shape=(28, 28, 1), num_classes=10).tcl
    True
    """
    make, smallest = NETWORKS.find(name)
    height, width, _ = image_shape
    if min(height, width) < smallest:
        raise InputError(
            f"{name} needs images of at least {smallest}×{smallest}, got {height}×{width}: pad "
            f"them with data.pad_to={smallest}, or choose another network"
        )
    if not lam > 0:
        raise InputError(f"λ must start above 0, got {lam}")
    return make(num_classes=num_classes, tcl=tcl, lam=lam, dtype=dtype)
