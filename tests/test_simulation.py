"""Every spike of every neuron at every time step, against the simulator in `reference_snn`.

All numbers are dyadic rationals and all λ powers of two, so that sums of spikes are exact in
float32 in any order: a neuron that reaches its threshold exactly does so in both simulators, and
no tolerance is needed.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference_snn as ref

from tcl_jax import TCL, clip, graph, simulation
from tcl_jax.conversion import evaluate, fold, normalise, trace, with_norms
from tcl_jax.promotion import implicit

TIMESTEPS = 24


class _Draw:
    """Small dyadic numbers."""

    def __init__(self, seed: int) -> None:
        self.rng = np.random.default_rng(seed)

    def __call__(self, *shape: int, unit: float = 1 / 8, reach: int = 6) -> np.ndarray:
        return self.rng.integers(-reach, reach + 1, shape) * unit

    def norm(self, channels: int) -> ref.BatchNorm:
        return ref.BatchNorm(
            gamma=self.rng.choice((-0.5, 0.5, 1.0, 2.0), channels),
            beta=self(channels),
            mean=self(channels),
            sigma=self.rng.choice((0.5, 1.0, 2.0), channels),
        )

    def conv(self, i: int, o: int, lam: float, side: int = 3, **settings) -> ref.Conv:
        norm = self.norm(o) if settings.pop("norm", False) else None
        padding = side // 2
        bias = self(o)
        return ref.Conv(self(side, side, i, o), bias, lam, padding=padding, norm=norm, **settings)

    def dense(self, i: int, o: int, lam: float) -> ref.Dense:
        return ref.Dense(self(i, o), self(o), lam)


def _networks(draw: _Draw) -> dict[str, list[ref.Layer]]:
    """For images of 6×6×2 (dense: 7), with λ that differ between layers."""
    conv, dense = draw.conv, draw.dense
    residual = ref.Residual
    return {
        "dense": [dense(7, 6, 2.0), dense(6, 5, 0.5), dense(5, 4, 4.0)],
        "conv": [conv(2, 3, 2.0), conv(3, 2, 0.5), dense(72, 4, 4.0)],
        "conv with batch norm": [
            conv(2, 3, 2.0, norm=True),
            conv(3, 2, 0.5, norm=True),
            dense(72, 4, 4.0),
        ],
        "strided conv": [conv(2, 3, 2.0, stride=2), conv(3, 2, 1.0, stride=2), dense(8, 4, 2.0)],
        "average pool": [
            conv(2, 3, 0.5),
            ref.AveragePool(2),
            conv(3, 2, 2.0),
            dense(18, 4, 1.0),
        ],
        "average pool at the end": [conv(2, 3, 2.0), ref.AveragePool(2), dense(27, 4, 4.0)],
        "identity shortcut": [
            conv(2, 3, 2.0),
            residual(conv(3, 3, 0.5), conv(3, 3, 4.0)),
            dense(108, 4, 8.0),
        ],
        "1x1-conv shortcut": [
            conv(2, 3, 0.5),
            residual(conv(3, 2, 2.0, stride=2), conv(2, 2, 4.0), conv(3, 2, 1.0, 1, stride=2)),
            dense(18, 4, 2.0),
        ],
        "two blocks with batch norm": [
            conv(2, 3, 2.0, norm=True),
            residual(conv(3, 3, 1.0, norm=True), conv(3, 3, 4.0, norm=True)),
            residual(
                conv(3, 2, 0.5, stride=2, norm=True),
                conv(2, 2, 2.0, norm=True),
                conv(3, 2, 1.0, 1, stride=2, norm=True),
            ),
            ref.AveragePool(2),
            dense(2, 4, 1.0),
        ],
    }


NETWORKS = tuple(_networks(_Draw(0)))


def _conv(x, layer: ref.Conv):
    y = jax.lax.conv_general_dilated(
        x,
        jnp.asarray(layer.kernel, jnp.float32),
        (layer.stride, layer.stride),
        [(layer.padding, layer.padding)] * 2,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )
    y = y + jnp.asarray(layer.bias, jnp.float32)
    if layer.norm is None:
        return y
    n = layer.norm
    gamma, beta, mean, sigma = (
        jnp.asarray(v, jnp.float32) for v in (n.gamma, n.beta, n.mean, n.sigma)
    )
    return gamma / sigma * (y - mean) + beta


def _activation(x, lam: float):
    return clip(nn.relu(x), lam)


def _in_jax(layers: list[ref.Layer]):
    """The network as a plain JAX function, as a user would write it."""

    @implicit()
    def forward(x):
        for layer in layers:
            match layer:
                case ref.Conv():
                    x = _activation(_conv(x, layer), layer.lam)
                case ref.AveragePool(size):
                    x = nn.avg_pool(x, (size, size), strides=(size, size))
                case ref.Residual(first, second, shortcut):
                    y = _activation(_conv(x, first), first.lam)
                    path = x if shortcut is None else _conv(x, shortcut)
                    x = _activation(_conv(y, second) + path, second.lam)
                case ref.Dense():
                    flat = x.reshape(x.shape[0], -1)
                    x = flat @ jnp.asarray(layer.kernel, jnp.float32) + jnp.asarray(
                        layer.bias, jnp.float32
                    )
                    x = x if layer is layers[-1] else _activation(x, layer.lam)
        return x

    return forward


def _converted(fn, images, lam_out: float) -> tuple[graph.Graph, graph.Graph]:
    """With thresholds λ, and normalised."""
    folded = fold(trace(fn, images))
    clipped = with_norms(folded, {folded.output.name: lam_out})
    return clipped, normalise(clipped)


def _case(name: str, seed: int):
    """A drawn network and images on which every population both fires and is silent.

    Silence, or spikes always, would agree in wrong simulators too.
    """
    for attempt in range(seed, 1000, 10):
        draw = _Draw(attempt)
        layers = _networks(draw)[name]
        images = draw(3, *((7,) if name == "dense" else (6, 6, 2)), unit=1 / 4)
        if _all_alive(layers, images):
            return layers, images, jnp.asarray(images, jnp.float32)
    raise AssertionError("no such network")


def _all_alive(layers: list[ref.Layer], images: np.ndarray) -> bool:
    rasters = ref.rasters(ref.normalised(layers), images[0], TIMESTEPS)
    return all(0.02 < raster.mean() < 0.98 for raster in rasters)


def _in_order(converted: graph.Graph, trains) -> list[np.ndarray]:
    return [np.asarray(trains[n.name]) for n in (*converted.neurons, converted.output)]


def _assert_same_spikes(found: list[np.ndarray], layers: list[ref.Layer], images: np.ndarray):
    ready = ref.normalised(layers)
    for index, image in enumerate(images):
        expected = ref.rasters(ready, image, TIMESTEPS)
        assert len(found) == len(expected)
        for layer, (one, other) in enumerate(zip(found, expected, strict=True)):
            np.testing.assert_array_equal(one[:, index], other, err_msg=f"population {layer}")


@pytest.mark.parametrize("seed", [1, 2])
@pytest.mark.parametrize("name", NETWORKS)
def test_every_spike_is_the_reference_s(name, seed):
    layers, images, x = _case(name, seed)
    _, converted = _converted(_in_jax(layers), x, layers[-1].lam)
    trains = jax.jit(simulation.spike_trains, static_argnums=2)(converted, x, TIMESTEPS)
    _assert_same_spikes(_in_order(converted, trains), layers, images)


@pytest.mark.parametrize("name", NETWORKS)
def test_analog_logits_are_the_reference_s(name):
    layers, images, x = _case(name, 1)
    for converted in _converted(_in_jax(layers), x, layers[-1].lam):
        expected = np.stack([ref.activations(layers, image) for image in images])
        # Products along the layers outgrow float32's 24 bits; only spikes stay exact.
        error = np.abs(evaluate(converted, x) - expected).max()
        assert error <= 1e-6 * np.abs(expected).max()


class _FlaxBlock(nn.Module):
    """A stem, a residual block with batch norms, and a linear layer, in Flax."""

    @nn.compact
    def __call__(self, x):
        def norm(name, y):
            # ε = 0: the sum of a power of two and 1e-5 has no dyadic root.
            return nn.BatchNorm(use_running_average=True, epsilon=0.0, name=name)(y)

        x = TCL(name="act0")(norm("norm0", nn.Conv(3, (3, 3), padding=1, name="conv0")(x)))
        y = TCL(name="act1")(norm("norm1", nn.Conv(3, (3, 3), padding=1, name="conv1")(x)))
        y = norm("norm2", nn.Conv(3, (3, 3), padding=1, name="conv2")(y))
        x = TCL(name="act2")(x + y)
        return nn.Dense(4, name="fc")(x.reshape(x.shape[0], -1))


@pytest.mark.parametrize("seed", [1, 4])
def test_every_spike_of_a_flax_network_is_the_reference_s(seed):
    draw = _Draw(seed)
    convs = [draw.conv(i, 3, lam, norm=True) for i, lam in ((2, 2.0), (3, 0.5), (3, 4.0))]
    fc = draw.dense(108, 4, 8.0)
    layers = [convs[0], ref.Residual(convs[1], convs[2]), fc]
    params = {"fc": {"kernel": fc.kernel, "bias": fc.bias}}
    stats = {}
    for i, conv in enumerate(convs):
        params[f"conv{i}"] = {"kernel": conv.kernel, "bias": conv.bias}
        params[f"norm{i}"] = {"scale": conv.norm.gamma, "bias": conv.norm.beta}
        params[f"act{i}"] = {"lam": np.asarray(conv.lam)}
        stats[f"norm{i}"] = {"mean": conv.norm.mean, "var": conv.norm.sigma**2}
    variables = jax.tree.map(
        lambda v: jnp.asarray(v, jnp.float32), {"params": params, "batch_stats": stats}
    )
    images = draw(3, 6, 6, 2, unit=1 / 4)
    assert _all_alive(layers, images)
    x = jnp.asarray(images, jnp.float32)
    _, converted = _converted(lambda x: _FlaxBlock().apply(variables, x), x, fc.lam)
    trains = simulation.spike_trains(converted, x, TIMESTEPS)
    _assert_same_spikes(_in_order(converted, trains), layers, images)
