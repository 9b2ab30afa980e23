"""The update of Eq. 11 and what its L2 terms act on, against arithmetic by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tcl_jax.training import optimizer
from tcl_jax.training.config import OptimConfig

# Powers of two, so that the hand's arithmetic and float32's agree to the bit.
LR, ALPHA, DECAY = 0.5, 0.25, 0.125


def _params():
    return {
        "conv": {"kernel": jnp.full((3, 3, 1, 2), 2.0), "bias": jnp.full(2, 2.0)},
        "norm": {"scale": jnp.full(2, 2.0), "bias": jnp.full(2, 2.0)},
        "scalar": {"bias": jnp.float32(2.0)},
        "act": {"tcl": {"lam": jnp.float32(2.0)}},
    }


def _steps(config: OptimConfig, params, gradients):
    tx = optimizer.make(config, total_steps=1000)
    state = tx.init(params)
    for g in gradients:
        updates, state = tx.update(g, state, params)
        params = optax.apply_updates(params, updates)
    return params


def _config(**changes) -> OptimConfig:
    values = {"lr": LR, "momentum": 0.0, "alpha": ALPHA, "weight_decay": DECAY} | changes
    return OptimConfig(**values)


def test_one_step_without_momentum_is_eq_11():
    lam, gradient = 4.0, 1.5
    params = {"tcl": {"lam": jnp.float32(lam)}}
    found = _steps(_config(), params, [{"tcl": {"lam": jnp.float32(gradient)}}])
    assert found["tcl"]["lam"].item() == lam - LR * ALPHA * lam - LR * gradient


def test_two_steps_with_momentum():
    momentum, lam, gradients = 0.5, 4.0, (1.5, -0.25)
    velocity = 0.0
    for g in gradients:
        velocity = momentum * velocity + (g + ALPHA * lam)
        lam -= LR * velocity
    found = _steps(
        _config(momentum=momentum),
        {"tcl": {"lam": jnp.float32(4.0)}},
        [{"tcl": {"lam": jnp.float32(g)}} for g in gradients],
    )
    assert found["tcl"]["lam"].item() == lam


@pytest.mark.parametrize(
    "config, moved, coefficient",
    [
        (_config(weight_decay=0.0), "['act']['tcl']['lam']", ALPHA),
        (_config(alpha=0.0), "['conv']['kernel']", DECAY),
    ],
    ids=["alpha acts on λ only", "weight decay acts on kernels only"],
)
def test_l2_terms_act_on_their_own(config, moved, coefficient):
    before = _params()
    after = _steps(config, before, [jax.tree.map(jnp.zeros_like, before)])
    for path, value in jax.tree_util.tree_leaves_with_path(after):
        expected = 2.0 - LR * coefficient * 2.0 if jax.tree_util.keystr(path) == moved else 2.0
        np.testing.assert_array_equal(value, np.full(value.shape, expected), err_msg=str(path))


def test_gradients_move_everything():
    before = _params()
    after = _steps(
        _config(alpha=0.0, weight_decay=0.0), before, [jax.tree.map(jnp.ones_like, before)]
    )
    for value in jax.tree.leaves(after):
        np.testing.assert_array_equal(value, np.full(value.shape, 2.0 - LR))


def test_schedule_is_piecewise_constant():
    schedule = optimizer.learning_rate(OptimConfig(lr=0.1, milestones=(0.5, 0.75)), 200)
    rates = np.array([schedule(step) for step in range(200)])
    expected = np.repeat([0.1, 0.01, 0.001], [100, 50, 50])
    np.testing.assert_allclose(rates, expected, rtol=1e-6)  # float32 products of tenths


def test_the_paper_s_milestones_fall_on_its_epochs():
    imagenet = OptimConfig(lr=1.0, milestones=(0.3, 0.6, 0.8))
    schedule = optimizer.learning_rate(imagenet, total_steps=100)
    rates = [float(schedule(step)) for step in range(100)]
    drops = [step for step in range(1, 100) if rates[step] < rates[step - 1]]
    assert drops == [30, 60, 80]


def test_milestones_that_fall_on_one_step_all_count():
    schedule = optimizer.learning_rate(OptimConfig(lr=1.0, milestones=(0.5, 0.75)), 3)
    np.testing.assert_allclose([schedule(s) for s in range(3)], [1, 1, 0.01], rtol=1e-6)
