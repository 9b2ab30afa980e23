"""Architectures whose layers are joined in other ways than those of the zoo: small, but whole."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tcl_jax import TCL, convert, simulation
from tcl_jax.conversion import evaluate, fold, trace
from tcl_jax.promotion import implicit

TIMES = (100, 1000)


class Layer(nn.Module):
    """Convolution, batch norm, and a clipped ReLU."""

    features: int
    side: int = 3
    stride: int = 1
    groups: int = 1

    @nn.compact
    def __call__(self, x):
        window, strides = (self.side, self.side), (self.stride, self.stride)
        x = nn.Conv(
            self.features, window, strides, use_bias=False, feature_group_count=self.groups
        )(x)
        return TCL()(nn.relu(nn.BatchNorm(use_running_average=True)(x)))


class UNet(nn.Module):
    """Down, and by transposed convolutions up again beside what was before: a class per pixel."""

    @nn.compact
    def __call__(self, x):
        skips = []
        for features in (4, 6):
            x = Layer(features)(x)
            skips.append(x)
            x = nn.avg_pool(x, (2, 2), (2, 2))
        x = Layer(8)(x)
        for skip in reversed(skips):
            x = nn.ConvTranspose(skip.shape[-1], (2, 2), (2, 2))(x)
            x = Layer(skip.shape[-1])(jnp.concatenate([skip, x], -1))
        return nn.Conv(3, (1, 1))(x)


class FeaturePyramid(nn.Module):
    """What is coarse is enlarged and added to what is fine; values of all of them in one row."""

    method: str

    @nn.compact
    def __call__(self, x):
        levels = []
        for features in (4, 6, 8):
            x = Layer(features, stride=2)(x)
            levels.append(nn.Conv(4, (1, 1))(x))
        top, found = levels[-1], [levels[-1]]
        for level in reversed(levels[:-1]):
            top = level + jax.image.resize(top, level.shape, self.method)
            found.append(Layer(4)(top))
        return jnp.concatenate([nn.Conv(2, (1, 1))(f).reshape(len(x), -1) for f in found], 1)


class DenseNet(nn.Module):
    """Every layer reads all before it, and norms come first."""

    @nn.compact
    def __call__(self, x):
        x = nn.Conv(6, (3, 3))(x)
        for _ in range(2):
            for _ in range(3):
                y = TCL()(nn.relu(nn.BatchNorm(use_running_average=True)(x)))
                x = jnp.concatenate([x, nn.Conv(4, (3, 3), use_bias=False)(y)], -1)
            y = TCL()(nn.relu(nn.BatchNorm(use_running_average=True)(x)))
            x = nn.avg_pool(nn.Conv(x.shape[-1] // 2, (1, 1))(y), (2, 2), (2, 2))
        return nn.Dense(5)(x.mean((1, 2)))


class ShuffleNet(nn.Module):
    """Halves of the channels go different ways, and are shuffled."""

    @nn.compact
    def __call__(self, x):
        x = Layer(8, stride=2)(x)
        for _ in range(2):
            kept, y = jnp.split(x, 2, -1)
            y = Layer(4, side=1)(Layer(4, groups=4)(Layer(4, side=1)(y)))
            x = jnp.concatenate([kept, y], -1)
            x = x.reshape(*x.shape[:-1], 2, 4).swapaxes(-1, -2).reshape(x.shape)
        return nn.Dense(5)(x.mean((1, 2)))


ARCHITECTURES = {
    "U-Net": UNet(),
    "feature pyramid": FeaturePyramid("nearest"),
    "feature pyramid, bilinear": FeaturePyramid("bilinear"),
    "DenseNet": DenseNet(),
    "ShuffleNet": ShuffleNet(),
}
BRIEFLY = ("U-Net", "feature pyramid")


@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=[pytest.mark.long] * (n not in BRIEFLY)) for n in ARCHITECTURES],
)
def test_it_converts_and_converges(name, randomised, rng):
    model = ARCHITECTURES[name]
    x = jnp.asarray(rng.normal(0, 1, (2, 8, 8, 3)), jnp.float32)
    init, apply = implicit()(model.init), implicit()(model.apply)
    variables = randomised(jax.eval_shape(init, jax.random.key(0), x))
    logits = np.asarray(jax.jit(apply)(variables, x))
    scale = np.abs(logits).max()
    traced = trace(lambda x: apply(variables, x), x)
    graph = convert(apply, variables, [x])
    for stage in (traced, fold(traced), graph):
        np.testing.assert_allclose(jax.jit(evaluate)(stage, x), logits, atol=1e-5 * scale)

    def mean_logits(state, *_):
        return state.output.membrane + state.output.counts

    found = jax.jit(lambda graph, x: simulation.run(graph, x, TIMES[-1], mean_logits)[1])(graph, x)
    early, late = (
        np.abs(found[t - 1] / t * graph.output.op.unit - logits).max() / scale for t in TIMES
    )
    assert late < 0.02
    assert late < early / 4  # ten, but for what is left to chance at any one t
