"""The optimizer: stochastic gradient descent with L2 terms masked by parameter name (Eq. 11)."""

from typing import Any

import jax
import optax

from tcl_jax.clipping import LAMBDA
from tcl_jax.promotion import implicit
from tcl_jax.training.config import OptimConfig


def named(params: Any, name: str) -> Any:
    """Mask over a parameter tree: True at every leaf called `name`.

    By name and never by number of dimensions: λ is a scalar, and the usual idioms that tell
    kernels from biases by their rank treat it differently from one another.
    """
    return jax.tree_util.tree_map_with_path(lambda path, _: path[-1].key == name, params)


def highest_rate(config: OptimConfig, batch_size: int) -> float:
    r"""The learning rate before the first milestone: η · batch_size / lr_batch.

    Scaled linearly, a step with k times the images moves weights as far as k steps do (Goyal et al.
    2017, *Accurate, Large Minibatch SGD*, §2.1).

    >>> from tcl_jax.training import optimizer
    >>> from tcl_jax.training.config import OptimConfig
    >>> optimizer.highest_rate(OptimConfig(lr=0.1, lr_batch=256), batch_size=8192)
    3.2
    """
    return config.lr * (batch_size / (config.lr_batch or batch_size))


def learning_rate(config: OptimConfig, total_steps: int, batch_size: int) -> optax.Schedule:
    """A tenth at every milestone, after a linear warm-up, all of them fractions of `total_steps`.

    Of n steps of warm-up, step i = 0 … n − 1 has (i + 1)/n of what it would have without one.
    """
    steps = [round(m * total_steps) for m in config.milestones]
    # In a run of few steps milestones may fall on the same one.
    drops = {s: 0.1 ** steps.count(s) for s in steps}
    rate = optax.piecewise_constant_schedule(highest_rate(config, batch_size), drops)
    warmup = round(config.warmup * total_steps)
    if warmup > 1:
        rise = optax.linear_schedule(1 / warmup, 1.0, warmup - 1)
        return implicit()(lambda step: rise(step) * rate(step))
    return implicit()(rate)


def make(config: OptimConfig, total_steps: int, batch_size: int) -> optax.GradientTransformation:
    r"""SGD with momentum, α on λ alone and weight decay on kernels alone.

    Without momentum a step moves λ by Eq. 11,

    .. math:: \lambda \leftarrow \lambda - \eta\alpha\lambda - \eta\,\partial_\lambda L . \quad (11)

    With it, the L2 term enters the momentum like the gradient it belongs to.

    >>> import jax.numpy as jnp
    >>> from tcl_jax.training.config import OptimConfig
    >>> from tcl_jax.training import optimizer
    >>> params = {"tcl": {"lam": jnp.float32(4.0)}}
    >>> config = OptimConfig(lr=0.5, momentum=0.0, alpha=0.25)
    >>> tx = optimizer.make(config, total_steps=10, batch_size=1)
    >>> updates, _ = tx.update({"tcl": {"lam": jnp.float32(1.0)}}, tx.init(params), params)
    >>> updates["tcl"]["lam"].item()  # −0.5·0.25·4 − 0.5·1
    -1.0
    """
    return optax.chain(
        optax.add_decayed_weights(config.alpha, mask=lambda p: named(p, LAMBDA)),
        optax.add_decayed_weights(config.weight_decay, mask=lambda p: named(p, "kernel")),
        optax.sgd(learning_rate(config, total_steps, batch_size), momentum=config.momentum),
    )
