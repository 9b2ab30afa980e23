"""A spiking network in NumPy, written from Eqs. 1 to 5 and 7 of the paper and nothing else.

One image at a time, loops over time, layers and positions, channels last.  It shares no code and no
structure with `tcl_jax.conversion` and `tcl_jax.simulation`, which are tested against it.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np


@dataclass(frozen=True)
class BatchNorm:
    """Eq. 6: γ/σ (a − μ) + β."""

    gamma: np.ndarray
    beta: np.ndarray
    mean: np.ndarray
    sigma: np.ndarray


@dataclass(frozen=True)
class Conv:
    """Neurons of norm-factor `lam` behind a convolution, ``kernel[row, column, in, out]``."""

    kernel: np.ndarray
    bias: np.ndarray
    lam: float = 1.0
    stride: int = 1
    padding: int = 0
    norm: BatchNorm | None = None


@dataclass(frozen=True)
class Dense:
    """Neurons of norm-factor `lam` behind a linear map of all inputs, ``kernel[in, out]``."""

    kernel: np.ndarray
    bias: np.ndarray
    lam: float = 1.0
    norm: None = None


@dataclass(frozen=True)
class AveragePool:
    """Means over squares of side `size`; no neurons."""

    size: int


@dataclass(frozen=True)
class Residual:
    """Two convolutions and a shortcut; the second's neurons integrate both paths.

    Attributes:
        first: with its own neurons.
        second: its `lam` is that of the neurons after the addition.
        shortcut: a 1×1 convolution, or None for the identity.
        identity: factor of the identity path.
    """

    first: Conv
    second: Conv
    shortcut: Conv | None = None
    identity: float = 1.0


Layer = Conv | Dense | AveragePool | Residual


def without_batch_norm(layer: Layer) -> Layer:
    """Eq. 7."""
    if isinstance(layer, Residual):
        return replace(
            layer,
            first=without_batch_norm(layer.first),
            second=without_batch_norm(layer.second),
            shortcut=layer.shortcut and without_batch_norm(layer.shortcut),
        )
    if isinstance(layer, AveragePool) or layer.norm is None:
        return layer
    norm = layer.norm
    factor = norm.gamma / norm.sigma
    kernel = layer.kernel * factor
    bias = factor * (layer.bias - norm.mean) + norm.beta
    return replace(layer, kernel=kernel, bias=bias, norm=None)


def _eq_5(layer: Conv | Dense, before: float, own: float) -> Conv | Dense:
    return replace(layer, kernel=layer.kernel * (before / own), bias=layer.bias / own, lam=1.0)


def normalised(layers: Sequence[Layer]) -> list[Layer]:
    """Eqs. 7 and 5, layer by layer; the analog input has norm-factor 1."""
    before, result = 1.0, []
    for layer in map(without_batch_norm, layers):
        match layer:
            case Conv() | Dense():
                result.append(_eq_5(layer, before, layer.lam))
                before = layer.lam
            case AveragePool():
                result.append(layer)
            case Residual(first, second, shortcut):
                own = second.lam
                result.append(
                    Residual(
                        _eq_5(first, before, first.lam),
                        _eq_5(second, first.lam, own),
                        shortcut and _eq_5(shortcut, before, own),
                        before / own,
                    )
                )
                before = own
    return result


def convolution(x: np.ndarray, layer: Conv) -> np.ndarray:
    side, stride, padding = layer.kernel.shape[0], layer.stride, layer.padding
    padded = np.pad(x, ((padding, padding), (padding, padding), (0, 0)))
    height, width = ((n - side) // stride + 1 for n in padded.shape[:2])
    out = np.zeros((height, width, layer.kernel.shape[3]), x.dtype)
    for row in range(height):
        for column in range(width):
            top, left = row * stride, column * stride
            window = padded[top : top + side, left : left + side]
            for feature in range(out.shape[2]):
                out[row, column, feature] = np.sum(window * layer.kernel[..., feature])
    return out + layer.bias


def linear(x: np.ndarray, layer: Dense) -> np.ndarray:
    out = np.array(layer.bias, x.dtype)
    for j, value in enumerate(x.ravel()):
        out = out + value * layer.kernel[j]
    return out


def average_pool(x: np.ndarray, size: int) -> np.ndarray:
    out = np.zeros((x.shape[0] // size, x.shape[1] // size, x.shape[2]), x.dtype)
    for row in range(out.shape[0]):
        for column in range(out.shape[1]):
            window = x[row * size : (row + 1) * size, column * size : (column + 1) * size]
            out[row, column] = window.mean(axis=(0, 1))
    return out


@dataclass
class Neurons:
    """Integrate-and-fire neurons of one layer with threshold 1, and every spike they fired."""

    potential: np.ndarray | float = 0.0
    raster: list[np.ndarray] = field(default_factory=list)

    def step(self, z: np.ndarray) -> np.ndarray:
        self.potential = self.potential + z
        spikes = (self.potential >= 1.0).astype(z.dtype)  # Eq. 2
        self.potential = self.potential - spikes  # Eq. 3
        self.raster.append(spikes)
        return spikes


def rasters(layers: Sequence[Layer], image: np.ndarray, timesteps: int) -> list[np.ndarray]:
    """Spikes ``[t, ...]`` of every population of a network with norm-factors 1, input to output."""
    populations = [
        [Neurons(), Neurons()] if isinstance(n, Residual) else [Neurons()] for n in layers
    ]
    for _ in range(timesteps):
        signal = image  # analog, the same at every step
        for layer, neurons in zip(layers, populations, strict=True):
            match layer:
                case Conv():
                    signal = neurons[0].step(convolution(signal, layer))
                case Dense():
                    signal = neurons[0].step(linear(signal, layer))
                case AveragePool(size):
                    signal = average_pool(signal, size)
                case Residual(first, second, shortcut, identity):
                    spikes = neurons[0].step(convolution(signal, first))
                    path = convolution(signal, shortcut) if shortcut else signal * identity
                    signal = neurons[1].step(convolution(spikes, second) + path)
    return [np.stack(n.raster) for group in populations for n in group if n.raster]


def activations(layers: Sequence[Layer], image: np.ndarray) -> np.ndarray:
    """The analog network's logits (Eqs. 4, 6 and 9), before any conversion."""
    signal = image
    for index, layer in enumerate(layers):
        last = index == len(layers) - 1
        layer = without_batch_norm(layer)
        match layer:
            case Conv() | Dense():
                z = convolution(signal, layer) if isinstance(layer, Conv) else linear(signal, layer)
                signal = z if last else np.clip(z, 0, layer.lam)
            case AveragePool(size):
                signal = average_pool(signal, size)
            case Residual(first, second, shortcut):
                inner = np.clip(convolution(signal, first), 0, first.lam)
                path = convolution(signal, shortcut) if shortcut else signal
                signal = np.clip(convolution(inner, second) + path, 0, second.lam)
    return signal
