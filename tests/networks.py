"""Six small networks that a user might write, of weights to choose: what laws and records are of.

Between them they have every operation that is traced, one λ a layer and a channel, and values that
are read more than once.
"""

from collections.abc import Callable
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from tcl_jax import clip
from tcl_jax.promotion import implicit

SHAPE = (8, 8, 2)
"""Of an image."""

LAM_OUT = 0.25


class Weights(Protocol):
    """What a network's numbers are drawn from; the same at every call of the network."""

    def kernel(self, *shape: int) -> np.ndarray: ...
    def bias(self, channels: int) -> np.ndarray: ...
    def gamma(self, channels: int) -> np.ndarray: ...
    def lam(self, *shape: int) -> np.ndarray: ...


class Dyadic:
    """Multiples of powers of two, and λ that are such: nothing that is added is ever rounded."""

    def __init__(self, seed: int) -> None:
        self.rng = np.random.default_rng(seed)

    def kernel(self, *shape: int) -> np.ndarray:
        size = 2.0 ** np.round(np.log2((2 / np.prod(shape[:-1])) ** 0.5))
        return np.round(4 * self.rng.normal(0, 1, shape)) / 4 * size

    def bias(self, channels: int) -> np.ndarray:
        return self.rng.integers(-2, 4, channels) / 8

    def gamma(self, channels: int) -> np.ndarray:
        return self.rng.choice((1.0, 2.0, 0.5, -1.0), channels)

    def lam(self, *shape: int) -> np.ndarray:
        return self.rng.choice((0.5, 1.0, 2.0), shape)


class Gaussian:
    """Numbers of all their bits: no membrane potential meets its threshold by chance."""

    def __init__(self, seed: int) -> None:
        self.rng = np.random.default_rng(seed)

    def kernel(self, *shape: int) -> np.ndarray:
        return self.rng.normal(0, (2 / np.prod(shape[:-1])) ** 0.5, shape)

    def bias(self, channels: int) -> np.ndarray:
        return self.rng.normal(0.1, 0.2, channels)

    def gamma(self, channels: int) -> np.ndarray:
        return self.rng.uniform(0.5, 1.5, channels) * self.rng.choice((1, 1, 1, -1), channels)

    def lam(self, *shape: int) -> np.ndarray:
        return self.rng.uniform(0.5, 2.0, shape)


Activation = Callable[[jax.Array, np.ndarray], jax.Array]


def tcl(x: jax.Array, lam: np.ndarray) -> jax.Array:
    return clip(jax.nn.relu(x), lam)


def relu(x: jax.Array, lam: np.ndarray) -> jax.Array:
    return jax.nn.relu(x)


class Layers:
    """Layers of drawn weights, in the order in which they are called."""

    def __init__(self, weights: Weights, activation: Activation) -> None:
        self.w, self.activation = weights, activation

    def act(self, x: jax.Array, *shape: int) -> jax.Array:
        return self.activation(x, self.w.lam(*shape))

    def conv(
        self,
        x: jax.Array,
        features: int,
        side: int = 3,
        stride: int = 1,
        groups: int = 1,
        axes: str = "NHWC",
    ) -> jax.Array:
        kernel = self.w.kernel(side, side, x.shape[axes.index("C")] // groups, features)
        return jax.lax.conv_general_dilated(
            x,
            jnp.asarray(kernel, x.dtype),
            (stride, stride),
            [(side // 2, side // 2)] * 2,
            dimension_numbers=(axes, "HWIO", axes),
            feature_group_count=groups,
        )

    def norm(self, x: jax.Array) -> jax.Array:
        channels = x.shape[-1]
        return x * self.w.gamma(channels) + self.w.bias(channels)

    def dense(self, x: jax.Array, features: int) -> jax.Array:
        return x @ self.w.kernel(x.shape[-1], features) + self.w.bias(features)


def pool(x: jax.Array, side: int = 2, stride: int = 2) -> jax.Array:
    padding = "VALID" if side == stride else "SAME"
    window, strides = (1, side, side, 1), (1, stride, stride, 1)
    return jax.lax.reduce_window(x, 0.0, jax.lax.add, window, strides, padding) / 4


def flat(x: jax.Array) -> jax.Array:
    return x.reshape(x.shape[0], -1)


def _chain(x: jax.Array, to: Layers) -> jax.Array:
    x = to.act(to.norm(to.conv(x, 4)))
    x = to.act(to.norm(to.conv(x, 4, stride=2)))
    x = to.act(to.dense(flat(pool(x)), 6))
    return to.dense(x, 3)


def _residual(x: jax.Array, to: Layers) -> jax.Array:
    x = to.act(to.norm(to.conv(x, 4)))
    y = to.act(to.norm(to.conv(x, 4)))
    x = to.act(to.norm(to.conv(y, 4)) + x)
    y = to.act(to.norm(to.conv(x, 6, stride=2)))
    x = to.act(to.norm(to.conv(y, 6)) + to.norm(to.conv(x, 6, side=1, stride=2)))
    return to.dense(x.mean((1, 2)), 3)


def _depthwise(x: jax.Array, to: Layers) -> jax.Array:
    x = to.act(to.norm(to.conv(x, 4)), 4)
    x = to.act(to.norm(to.conv(x, 8, groups=4, stride=2)), 8)
    x = to.act(to.norm(to.conv(x, 6, side=1)))
    return to.dense(flat(pool(x)), 3)


def _branches(x: jax.Array, to: Layers) -> jax.Array:
    x = to.act(to.conv(x, 4))
    parts = (
        to.act(to.conv(x, 2, side=1)),
        to.act(to.norm(to.conv(x, 3)), 3),
        pool(x, side=3, stride=1),
        to.dense(x, 2),
    )
    x = to.act(to.conv(jnp.concatenate(parts, -1), 5, stride=2))
    return to.dense(x.mean((1, 2)), 3)


def _layouts(x: jax.Array, to: Layers) -> jax.Array:
    x = to.act(to.conv(x.transpose(0, 3, 1, 2), 4, axes="NCHW"), 4, 1, 1)
    x = to.act(to.conv(x, 4, groups=2, stride=2, axes="NCHW"))
    x = jnp.pad(x, ((0, 0), (0, 0), (1, 0), (0, 1)))[:, :, :4, 1::2].transpose(0, 2, 3, 1)
    return to.dense(flat(to.act(to.dense(x, 5))), 3)


def _stack(x: jax.Array, to: Layers) -> jax.Array:
    x = to.act(to.dense(flat(x), 6))
    kernels = jnp.asarray(np.stack([to.w.kernel(6, 6) for _ in range(3)]))

    def block(x: jax.Array, kernel: jax.Array) -> tuple[jax.Array, None]:
        return to.act(x @ kernel + x / 2), None

    x, _ = jax.lax.scan(block, x, kernels)
    return to.dense(x, 3)


NETWORKS: dict[str, Callable[[jax.Array, Layers], jax.Array]] = {
    "chain": _chain,
    "residual": _residual,
    "depthwise": _depthwise,
    "branches": _branches,
    "layouts": _layouts,
    "stack": _stack,
}


def network(
    name: str, draw: type[Dyadic | Gaussian], *, seed: int = 0, clipped: bool = True
) -> Callable[[Any], jax.Array]:
    """From images to logits: a network by name, its weights drawn from a seed."""

    @implicit()
    def logits(x: jax.Array) -> jax.Array:
        return NETWORKS[name](x, Layers(draw(seed), tcl if clipped else relu))

    return logits


def images(count: int, seed: int = 0) -> np.ndarray:
    """Images of eighths from -1 to 1, each of which has a 1: their spikes have dyadic rates."""
    x = np.random.default_rng(seed).integers(-6, 9, (count, *SHAPE)) / 8
    x[:, 0, 0, 0] = 1.0
    return x
