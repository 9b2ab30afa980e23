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


def learning_rate(config: OptimConfig, total_steps: int) -> optax.Schedule:
    """Piecewise constant: a tenth at every milestone, each a fraction of `total_steps`."""
    steps = [round(m * total_steps) for m in config.milestones]
    # In a run of few steps milestones may fall on the same one.
    rate = optax.piecewise_constant_schedule(config.lr, {s: 0.1 ** steps.count(s) for s in steps})
    return implicit()(rate)


def make(config: OptimConfig, total_steps: int) -> optax.GradientTransformation:
    r"""SGD with momentum, α on λ alone and weight decay on kernels alone.

    Without momentum a step moves λ by Eq. 11,

    .. math:: \lambda \leftarrow \lambda - \eta\alpha\lambda - \eta\,\partial_\lambda L . \quad (11)

    With it, the L2 term enters the momentum like the gradient it belongs to.

    >>> import jax.numpy as jnp
    >>> from tcl_jax.training.config import OptimConfig
    >>> from tcl_jax.training import optimizer
    >>> params = {"tcl": {"lam": jnp.float32(4.0)}}
    >>> tx = optimizer.make(OptimConfig(lr=0.5, momentum=0.0, alpha=0.25), total_steps=10)
    >>> updates, _ = tx.update({"tcl": {"lam": jnp.float32(1.0)}}, tx.init(params), params)
    >>> updates["tcl"]["lam"].item()  # −0.5·0.25·4 − 0.5·1
    -1.0
    """
    return optax.chain(
        optax.add_decayed_weights(config.alpha, mask=lambda p: named(p, LAMBDA)),
        optax.add_decayed_weights(config.weight_decay, mask=lambda p: named(p, "kernel")),
        optax.sgd(learning_rate(config, total_steps), momentum=config.momentum),
    )
