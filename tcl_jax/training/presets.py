"""Recipes by name, `<dataset>-<network>`: the paper's (§IV), and short ones for a small machine.

From the paper: 200 epochs on CIFAR and 100 on ImageNet, the learning rate divided by ten at epochs
100 and 150, and 30, 60 and 80; it starts at 0.1, but at 0.01 for VGG-16 and CNET on CIFAR; λ starts
at 4.0; α is that of Table II.  Ours, where the paper is silent: batch 128 (256 on ImageNet, where
the learning rate is scaled with it), momentum 0.9, weight decay 5e-4 (1e-4 on ImageNet), crop and
flip; and all of CIFAR-100, where a network has its settings for CIFAR-10.

CNN-3, CNN-4, VGG-15 and Inception-V3 stand in Table II as others' work, which the paper did not
train: their learning rates and α are ours too, those of the networks most like them.
"""

from dataclasses import replace

from tcl_jax.registry import Registry
from tcl_jax.training.config import Config, DataConfig, ModelConfig, OptimConfig

_CIFAR = {
    "cnet": OptimConfig(lr=0.01, alpha=5e-4),
    "vgg16": OptimConfig(lr=0.01, alpha=5e-4),
    "resnet20": OptimConfig(lr=0.1, alpha=1e-4),
    "mobilenet": OptimConfig(lr=0.1, alpha=1e-4),
}


def _cifar(data: str, network: str, optim: OptimConfig) -> Config:
    return Config(ModelConfig(network), DataConfig(data, augment="crop_flip"), optim, epochs=200)


def _imagenet(network: str, image_size: int | None = None) -> Config:
    return Config(
        ModelConfig(network),
        DataConfig("imagenet2012", augment="resized_crop_flip", image_size=image_size),
        OptimConfig(
            lr=0.1, lr_batch=256, alpha=1e-4, weight_decay=1e-4, milestones=(0.3, 0.6, 0.8)
        ),
        epochs=100,
        batch_size=256,
    )


def _fashion(network: str, epochs: int, pad_to: int | None = None) -> Config:
    return Config(
        ModelConfig(network),
        DataConfig("fashion_mnist", pad_to=pad_to),
        OptimConfig(lr=0.05, alpha=1e-3),
        epochs=epochs,
    )


def _digits(network: str, epochs: int, pad_to: int | None = None) -> Config:
    return Config(
        ModelConfig(network),
        DataConfig("digits", pad_to=pad_to),
        OptimConfig(lr=0.05, alpha=1e-3),
        epochs=epochs,
        batch_size=64,
    )


def _short(config: Config) -> Config:
    return replace(config, epochs=5)


PRESETS = Registry(
    "preset",
    {
        "digits-cnet": _digits("cnet", epochs=40),
        "digits-resnet20": _digits("resnet20", epochs=20),
        "digits-vgg16": _digits("vgg16", epochs=5, pad_to=32),
        "digits-mobilenet": _digits("mobilenet", epochs=10, pad_to=16),
        "fashion_mnist-cnet": _fashion("cnet", epochs=20),
        "fashion_mnist-resnet20": _fashion("resnet20", epochs=15),
        "fashion_mnist-vgg16": _fashion("vgg16", epochs=5, pad_to=32),
        "fashion_mnist-mobilenet": _fashion("mobilenet", epochs=5, pad_to=32),
        **{f"{d}-{n}": _cifar(d, n, _CIFAR[n]) for d in ("cifar10", "cifar100") for n in _CIFAR},
        **{
            f"{d}-{n}-short": _short(_cifar(d, n, _CIFAR[n]))
            for d in ("cifar10", "cifar100")
            for n in _CIFAR
        },
        "imagenet2012-vgg16": _imagenet("vgg16_imagenet"),
        "imagenet2012-resnet34": _imagenet("resnet34"),
        "imagenet2012-resnet50": _imagenet("resnet50"),
        "imagenet2012-mobilenet": _imagenet("mobilenet_imagenet"),
        # Of other people's networks.
        **{f"cifar10-{n}": _cifar("cifar10", n, _CIFAR["cnet"]) for n in ("cnn3", "cnn4", "vgg15")},
        "imagenet2012-vgg15": _imagenet("vgg15"),
        "imagenet2012-inception_v3": _imagenet("inception_v3", image_size=299),
    },
)
"""Recipes, to `find` by name."""
