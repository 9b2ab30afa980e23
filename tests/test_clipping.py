"""The clip of Eq. 9 and its gradients of Eq. 10."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from jax.sharding import NamedSharding, PartitionSpec

from tcl_jax import TCL, clip, cluster

# Quarters: sums of their products are exact in float32, and ties with λ are frequent.
quarters = st.integers(-12, 40).map(lambda n: n / 4)
bounds = st.integers(1, 20).map(lambda n: n / 4)


@st.composite
def clips(draw):
    """Activations, a λ that broadcasts against them, and the gradient of a loss by the output."""
    shape = draw(hnp.array_shapes(min_dims=1, max_dims=4, max_side=4))
    lam_shape = draw(st.sampled_from([(), shape[-1:], (1, *shape[1:-1], 1)[-len(shape) :]]))
    a = draw(hnp.arrays(np.float32, shape, elements=quarters))
    lam = draw(hnp.arrays(np.float32, lam_shape, elements=bounds))
    return a, lam, draw(hnp.arrays(np.float32, shape, elements=quarters))


def _sum_to(values: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    values = values.sum(axis=tuple(range(values.ndim - len(shape))))
    return values.sum(axis=tuple(i for i, n in enumerate(shape) if n == 1), keepdims=True)


@given(clips())
def test_forward_is_eq_9(case):
    a, lam, _ = case
    expected = a.copy()
    at_or_above = a >= lam
    expected[at_or_above] = np.broadcast_to(lam, a.shape)[at_or_above]
    np.testing.assert_array_equal(clip(a, lam), expected)


@given(clips())
def test_gradients_are_eq_10(case):
    a, lam, g = case
    to_a, to_lam = jax.vjp(clip, jnp.asarray(a), jnp.asarray(lam))[1](jnp.asarray(g))
    at_or_above = (a >= lam).astype(np.float32)
    np.testing.assert_array_equal(to_a, g * (1 - at_or_above))
    np.testing.assert_array_equal(to_lam, _sum_to(g * at_or_above, lam.shape).reshape(lam.shape))
    assert to_a.shape == a.shape and to_lam.shape == lam.shape


def test_a_tie_gives_the_whole_gradient_to_lambda():
    assert [g.item() for g in jax.grad(clip, (0, 1))(2.0, 2.0)] == [0.0, 1.0]
    # Which is where the obvious implementation differs.
    assert [g.item() for g in jax.grad(jnp.minimum, (0, 1))(2.0, 2.0)] == [0.5, 0.5]


@given(
    hnp.arrays(np.float64, (6,), elements=st.floats(-3, 6)),
    st.floats(0.5, 4),
)
def test_gradients_agree_with_finite_differences_away_from_ties(a, lam):
    h, weights = 1e-6, np.arange(1.0, 7.0)
    a = np.where(np.abs(a - lam) < 1e-3, a + 1e-2, a)

    def loss(a, lam):
        return np.sum(np.sin(np.minimum(a, lam)) * weights)

    numeric_lam = (loss(a, lam + h) - loss(a, lam - h)) / (2 * h)
    numeric_a = [(loss(a + s, lam) - loss(a - s, lam)) / (2 * h) for s in h * np.eye(6)]
    with jax.enable_x64(True):
        to_a, to_lam = _gradient_of_sines(jnp.asarray(a), jnp.asarray(lam), jnp.asarray(weights))
    assert to_a.dtype == to_lam.dtype == jnp.float64
    # Central differences of sin: h²/6 in theory, and 1e-16·21/h of rounding.
    np.testing.assert_allclose(to_lam, numeric_lam, atol=2e-8, rtol=0)
    np.testing.assert_allclose(to_a, numeric_a, atol=2e-8, rtol=0)


@jax.jit
def _gradient_of_sines(a, lam, weights):
    return jax.grad(lambda a, lam: jnp.sum(jnp.sin(clip(a, lam)) * weights), (0, 1))(a, lam)


def test_the_lambda_gradient_is_summed_in_float32_under_bfloat16():
    count = 67014
    a = jnp.full(count, 3.0, jnp.bfloat16)
    to_lam = jax.grad(lambda lam: clip(a, lam).astype(jnp.float32).sum())(jnp.float32(2.0))
    assert to_lam.dtype == jnp.float32
    assert to_lam.item() == count
    # bfloat16 has 8 bits of mantissa: it cannot even hold the number.
    naive = jnp.sum(jnp.ones(count, jnp.bfloat16))
    assert naive.dtype == jnp.bfloat16 and naive.item() != count


def test_comparison_is_in_the_wider_dtype():
    # In bfloat16, λ would round down to 1 and count as reached.
    a, lam = jnp.ones(3, jnp.bfloat16), jnp.float32(1.001)
    to_lam = jax.grad(lambda lam: clip(a, lam).astype(jnp.float32).sum())(lam)
    assert to_lam.item() == 0.0


def test_jit_changes_nothing(rng):
    a = jnp.asarray(rng.integers(-8, 24, (3, 5, 2)) / 4, jnp.float32)
    lam = jnp.asarray([2.0, 3.0], jnp.float32)
    for fn in (clip, jax.grad(lambda a, lam: jnp.sum(clip(a, lam) ** 2), (0, 1))):
        plain, jitted = fn(a, lam), jax.jit(fn)(a, lam)
        for one, other in zip(jax.tree.leaves(plain), jax.tree.leaves(jitted), strict=True):
            np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("axes", [(0, None), (None, 0), (0, 0)])
def test_vmap_is_a_loop(axes, rng):
    gradient = jax.grad(lambda a, lam: jnp.sum(clip(a, lam) ** 2), (0, 1))
    a = jnp.asarray(rng.integers(0, 24, (4, 6)) / 4, jnp.float32)
    lam = jnp.asarray([1.0, 2.0, 3.0, 4.0])
    a_in = a if axes[0] == 0 else a[0]
    lam_in = lam if axes[1] == 0 else lam[0]
    mapped = jax.vmap(gradient, axes)(a_in, lam_in)
    for i in range(4):
        alone = gradient(a[i] if axes[0] == 0 else a[0], lam[i] if axes[1] == 0 else lam[0])
        np.testing.assert_array_equal(mapped[0][i], alone[0])
        np.testing.assert_array_equal(mapped[1][i], alone[1])


def test_second_derivatives_of_a_smooth_function_of_the_clip():
    a = jnp.asarray([0.5, 1.0, 3.0, 4.0])
    # Σ clip³ is Σ_{a<λ} a³ + n λ³, n the number of the others.
    loss = lambda a, lam: jnp.sum(clip(a, lam) ** 3)  # noqa: E731
    assert jax.grad(jax.grad(loss, 1), 1)(a, 2.0).item() == 2 * 6 * 2.0
    assert jax.hessian(loss, 1)(a, 2.0).item() == 2 * 6 * 2.0
    np.testing.assert_array_equal(jax.hessian(loss)(a, 2.0), np.diag([3.0, 6.0, 0.0, 0.0]))


def test_gradient_of_a_gradient_norm():
    a = jnp.asarray([0.5, 1.0, 3.0])

    def squared_norm(lam):
        to_a, to_lam = jax.grad(lambda a, lam: jnp.sum(clip(a, lam) ** 2), (0, 1))(a, lam)
        return jnp.sum(to_a**2) + to_lam**2

    # (2·0.5)² + (2·1)² + (2λ)², of which only the last moves: 8λ.
    assert squared_norm(2.0).item() == 1 + 4 + 16
    assert jax.grad(squared_norm)(2.0).item() == 16.0


@pytest.mark.parametrize("lam_shape", [(), (3,)])
def test_four_devices_give_the_gradient_of_one(lam_shape, rng):
    # Quarters again, so that the order of a sum cannot change it.
    a = jnp.asarray(rng.integers(0, 24, (8, 5, 3)) / 4, jnp.float32)
    lam = jnp.full(lam_shape, 2.5)
    gradient = jax.jit(jax.grad(lambda a, lam: jnp.sum(clip(a, lam) ** 2), (0, 1)))
    four = cluster.everywhere()
    assert four.mesh.size == 4
    split = jax.device_put(a, NamedSharding(four.mesh, PartitionSpec("data")))
    to_a, to_lam = gradient(split, four.replicate(lam))
    assert len(to_a.sharding.device_set) == 4
    one_to_a, one_to_lam = gradient(a, lam)
    np.testing.assert_array_equal(to_a, one_to_a)
    np.testing.assert_array_equal(to_lam, one_to_lam)


@pytest.mark.parametrize("lam_shape", [(), (3,)])
def test_shard_map_sums_the_lambda_gradient_over_devices(lam_shape, rng):
    a = jnp.asarray(rng.integers(0, 24, (8, 5, 3)) / 4, jnp.float32)
    lam = jnp.full(lam_shape, 2.5)
    loss = lambda a, lam: jnp.sum(clip(a, lam) ** 2)  # noqa: E731
    split, whole = PartitionSpec("data"), PartitionSpec()
    parts = jax.shard_map(
        lambda a, lam: jax.lax.psum(loss(a, lam), "data"),
        mesh=cluster.everywhere().mesh,
        in_specs=(split, whole),
        out_specs=whole,
    )
    found = jax.jit(jax.grad(parts, (0, 1)))(a, lam)
    for one, other in zip(found, jax.grad(loss, (0, 1))(a, lam), strict=True):
        np.testing.assert_array_equal(one, other)


def test_layer_has_one_float32_scalar_that_starts_at_4():
    params = TCL().init(jax.random.key(0), jnp.zeros((2, 3), jnp.bfloat16))["params"]
    assert list(params) == ["lam"]
    assert params["lam"].shape == () and params["lam"].dtype == jnp.float32
    assert params["lam"].item() == 4.0


def test_layer_is_relu_then_clip(rng):
    x = rng.normal(0, 4, (5, 7)).astype(np.float32)
    found = TCL().apply({"params": {"lam": jnp.float32(1.5)}}, x)
    np.testing.assert_array_equal(found, np.clip(x, 0, np.float32(1.5)))


@pytest.mark.parametrize("init_value", [0.0, -1.0, float("nan"), float("inf")])
def test_layer_refuses_a_start_that_is_no_bound(init_value):
    with pytest.raises(ValueError, match="λ must start above 0"):
        TCL(init_value).init(jax.random.key(0), jnp.zeros(3))


def test_layer_keeps_bfloat16():
    layer = TCL()
    x = jnp.asarray([-1, 1, 9], jnp.bfloat16)
    out = layer.apply(layer.init(jax.random.key(0), x), x)
    assert out.dtype == jnp.bfloat16
    assert out.tolist() == [0.0, 1.0, 4.0]
