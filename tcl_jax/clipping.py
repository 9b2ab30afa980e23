"""Trainable clipping (Ho & Chang, DAC 2021, §III-B): the function `clip`, the Flax layer `TCL`."""

import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Real

from tcl_jax.promotion import against, wider

LAMBDA = "lam"
"""Name of the clipping bound among a network's parameters; the optimizer's masks go by it."""

CLIP_CALL = "tcl_jax.clip"
"""Name under which a clip stands in a jaxpr; conversion finds the spiking layers by it."""


@jax.custom_vjp
def clip(a: Float[ArrayLike, "*shape"], lam: Real[ArrayLike, "..."]) -> Float[Array, "*shape"]:
    r"""Clip activations from above at a trainable bound (Eqs. 9 and 10).

    .. math::
        \bar a = \begin{cases} \lambda & a \ge \lambda \\ a & \text{else} \end{cases}
        \qquad
        \frac{\partial \bar a}{\partial \lambda} =
        \begin{cases} 1 & a \ge \lambda \\ 0 & \text{else} \end{cases}

    and :math:`\partial \bar a / \partial a = 1 - \partial \bar a / \partial \lambda`.  At a tie the
    whole gradient goes to λ, where `jnp.minimum` would give each side a half.

    Args:
        a: activations (after ReLU), of any floating dtype.
        lam: the bound λ > 0, a scalar or an array that broadcasts against `a` (one λ per channel).
            Keep it in float32: it is compared in the wider of the two dtypes, and its gradient,
            a sum over the whole activation, is accumulated in float32 even when `a` is bfloat16.

    Returns:
        The clipped activations, with the shape and dtype of `a`.

    >>> import jax, jax.numpy as jnp
    >>> from tcl_jax import clip
    >>> a = jnp.array([0.5, 2.0, 3.0])
    >>> clip(a, 2.0).tolist()
    [0.5, 2.0, 2.0]
    >>> jax.grad(lambda lam: clip(a, lam).sum())(2.0).item()
    2.0
    """
    return _clipped(a, lam)


def _clipped(a: Any, lam: Any) -> Array:
    def tcl_clip(a: Array, lam: Any) -> Array:
        lam = against(jnp.asarray(lam), a)
        return jnp.where(_saturated(a, lam), lam.astype(a.dtype), a)

    tcl_clip.__name__ = CLIP_CALL
    found: Array = jax.jit(tcl_clip)(jnp.asarray(a), lam)
    return found


def _saturated(a: Array, lam: Array) -> Array:
    wide = wider(a.dtype, lam.dtype)
    return a.astype(wide) >= against(lam, a).astype(wide)


def _clip_forward(a: Any, lam: Any) -> tuple[Array, tuple[Array, Array]]:
    a, lam = jnp.asarray(a), jnp.asarray(lam)
    return _clipped(a, lam), (_saturated(a, lam), lam)


def _clip_backward(residuals: tuple[Array, Array], g: Array) -> tuple[Array, Array]:
    saturated, lam = residuals
    to_a = jnp.where(saturated, jnp.zeros_like(g), g)
    # The transpose of λ's broadcast sums over what it was broadcast to, devices of a shard_map too.
    accumulate = wider(lam.dtype, jnp.float32)
    nothing = jnp.zeros((), accumulate)
    _, sum_up = jax.vjp(
        lambda lam: jnp.where(saturated, against(lam, saturated), nothing), lam.astype(accumulate)
    )
    (to_lam,) = sum_up(g.astype(accumulate))
    return to_a, to_lam.astype(lam.dtype)


clip.defvjp(_clip_forward, _clip_backward)


class TCL(nn.Module):
    """ReLU followed by a clip with a trainable bound: the activation of a network to be converted.

    One float32 scalar λ a layer, under the parameter name ``lam``.  It becomes the layer's
    norm-factor, and so the amplitude of its neurons' spikes (Eq. 5).

    Attributes:
        init_value: λ before training; the paper's value is 4.0.

    >>> import jax, jax.numpy as jnp
    >>> from tcl_jax import TCL
    >>> layer = TCL()
    >>> variables = layer.init(jax.random.key(0), jnp.zeros((1, 3)))
    >>> variables["params"]["lam"].item()
    4.0
    >>> layer.apply(variables, jnp.array([[-1.0, 1.0, 9.0]])).tolist()
    [[0.0, 1.0, 4.0]]
    """

    init_value: float = 4.0

    @nn.compact
    def __call__(self, x: Float[Array | np.ndarray, "*shape"]) -> Float[Array, "*shape"]:
        if not (math.isfinite(self.init_value) and self.init_value > 0):
            raise ValueError(f"λ must start above 0, got {self.init_value}")
        lam = self.param(LAMBDA, nn.initializers.constant(self.init_value), (), jnp.float32)
        return clip(nn.relu(x), lam)
