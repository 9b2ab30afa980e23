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
    tx = optimizer.make(config, total_steps=1000, batch_size=1)
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
    schedule = optimizer.learning_rate(
        OptimConfig(lr=0.1, milestones=(0.5, 0.75)), 200, batch_size=1
    )
    rates = np.array([schedule(step) for step in range(200)])
    expected = np.repeat([0.1, 0.01, 0.001], [100, 50, 50])
    np.testing.assert_allclose(rates, expected, rtol=1e-6)  # float32 products of tenths


def test_the_paper_s_milestones_fall_on_its_epochs():
    imagenet = OptimConfig(lr=1.0, milestones=(0.3, 0.6, 0.8))
    schedule = optimizer.learning_rate(imagenet, total_steps=100, batch_size=1)
    rates = [float(schedule(step)) for step in range(100)]
    drops = [step for step in range(1, 100) if rates[step] < rates[step - 1]]
    assert drops == [30, 60, 80]


def test_a_learning_rate_for_another_batch_is_scaled_after_a_warm_up():
    """Goyal et al. 2017: 0.1 for 256 images is 3.2 for 8192, reached in 5 of 90 epochs."""
    config = OptimConfig(lr=0.1, lr_batch=256, warmup=5 / 90, milestones=(1 / 3,))
    schedule = optimizer.learning_rate(config, total_steps=900, batch_size=8192)
    rates = np.array([schedule(step) for step in range(900)])
    rise = 3.2 * np.arange(1, 51) / 50
    np.testing.assert_allclose(rates[:50], rise, rtol=1e-6)
    np.testing.assert_allclose(rates[50:], np.repeat([3.2, 0.32], [250, 600]), rtol=1e-6)


@pytest.mark.parametrize("warmup", [0.0, 0.004, 0.006])
def test_a_warm_up_of_one_step_is_none(warmup):
    config = OptimConfig(lr=0.5, warmup=warmup)
    schedule = optimizer.learning_rate(config, total_steps=100, batch_size=64)
    assert [float(schedule(step)) for step in range(3)] == [0.5] * 3
    # Unscaled, it is what it was to the last bit.
    rates = [optimizer.highest_rate(OptimConfig(lr=0.05), batch) for batch in range(1, 1000)]
    assert rates == [0.05] * 999


def test_milestones_that_fall_on_one_step_all_count():
    schedule = optimizer.learning_rate(OptimConfig(lr=1.0, milestones=(0.5, 0.75)), 3, batch_size=1)
    np.testing.assert_allclose([schedule(s) for s in range(3)], [1, 1, 0.01], rtol=1e-6)
