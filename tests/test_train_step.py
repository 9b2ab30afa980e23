"""One training step and all that large batches need of it, against arithmetic by hand."""

import re
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from trajectory import Network

from tcl_jax import cluster, data, models
from tcl_jax.runs.trained import open_run
from tcl_jax.training import config as configs
from tcl_jax.training import fit, optimizer, presets
from tcl_jax.training.checkpoints import Checkpoints
from tcl_jax.training.config import Config, DataConfig, ModelConfig, OptimConfig
from tcl_jax.training.headlines import headlines
from tcl_jax.training.log import read
from tcl_jax.training.placement import CUT, bytes_on_each, placed
from tcl_jax.training.recorder import as_items
from tcl_jax.training.step import cross_entropy, init_state, make_train_step, read_metrics

INFO = data.DataInfo("random", (8, 8, 1), 10, 100, 100, (0.3,), (0.35,))
TX = optimizer.make(OptimConfig(lr=0.05), total_steps=100, batch_size=32)
fresh = partial(init_state, Network(), TX, INFO, seed=0)


def batch(seed: int, images: int = 32) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {
        "image": rng.integers(0, 256, (images, 8, 8, 1), np.uint8),
        "label": rng.integers(0, 10, images).astype(np.int32),
    }


def smoothed(logits: jax.Array, labels: Any, smoothing: float) -> jax.Array:
    """Mean cross entropy with labels of 1 − s + s/10 and s/10."""
    targets = np.full(logits.shape, smoothing / 10, np.float32)
    targets[np.arange(len(labels)), labels] += 1 - smoothing
    return -jnp.mean(jnp.sum(targets * jax.nn.log_softmax(logits), -1))


def gradient(state: Any, part: dict[str, Any], smoothing: float) -> tuple[Any, Any, Any]:
    """Loss, batch statistics after it, and gradient of one part."""

    def loss(params: Any) -> tuple[jax.Array, Any]:
        images = data.standardize(jnp.asarray(part["image"]), INFO)
        logits, updated = Network().apply(
            {"params": params, "batch_stats": state.batch_stats},
            images,
            train=True,
            mutable=["batch_stats"],
        )
        return smoothed(logits, part["label"], smoothing), updated["batch_stats"]

    (value, stats), grads = jax.jit(jax.value_and_grad(loss, has_aux=True))(state.params)
    return value, stats, grads


def assert_near(found: Any, expected: Any) -> None:
    """But for rounding of sums in another order."""
    for path, value in jax.tree_util.tree_leaves_with_path(expected):
        there = np.asarray(dict(jax.tree_util.tree_leaves_with_path(found))[path], np.float64)
        largest = np.max(np.abs(value), initial=0)
        np.testing.assert_allclose(there, value, rtol=1e-5, atol=2e-6 * largest, err_msg=str(path))


@pytest.mark.parametrize("accumulate, smoothing", [(1, 0.0), (4, 0.0), (1, 0.1), (2, 0.25)])
def test_parts_one_after_another(accumulate, smoothing):
    """Gradients are averaged, statistics those of one part and then the next; one update."""
    step = make_train_step(Network(), TX, INFO, smoothing=smoothing, accumulate=accumulate)
    images, before = batch(1), fresh()
    losses, total = [], jax.tree.map(jnp.zeros_like, before.params)
    for first in range(accumulate):
        part = {name: values[first::accumulate] for name, values in images.items()}
        loss, stats, grads = gradient(before, part, smoothing)
        before = before.replace(batch_stats=stats)
        losses.append(loss.item())
        total = jax.tree.map(lambda t, g: t + g / accumulate, total, grads)
    updates, velocity = TX.update(total, before.opt_state, before.params)
    after, metrics = step(fresh(), images)
    assert_near(after.params, optax.apply_updates(before.params, updates))
    assert_near(after.batch_stats, before.batch_stats)
    assert_near(after.opt_state, velocity)
    found = read_metrics(metrics)
    assert found["loss"] == pytest.approx(np.mean(losses), rel=1e-6)
    assert after.sums["loss"].item() == found["loss"]
    assert after.sums["accuracy"].item() == found["accuracy"]
    assert after.step.item() == 1 and found["smallest_lambda"] == after.params["act"]["tcl"]["lam"]


class WithoutNorm(nn.Module):
    @nn.compact
    def __call__(self, x: Any, *, train: bool = False) -> Any:
        return nn.Dense(10)(nn.relu(nn.Dense(20)(x.reshape(x.shape[0], -1))))


def test_without_batch_norm_parts_are_the_whole():
    images = batch(2)
    whole, parts = (
        make_train_step(WithoutNorm(), TX, INFO, accumulate=k)(
            init_state(WithoutNorm(), TX, INFO, seed=0), images
        )[0]
        for k in (1, 8)
    )
    assert_near(jax.device_get(parts), jax.device_get(whole))


def test_parts_are_a_loop_where_loops_are_fast():
    """XLA's CPU compiler computes gradients of convolutions in loops many times slower."""
    traced = make_train_step(Network(), TX, INFO, accumulate=4).trace(fresh(), batch(0))
    on_tpu, on_cpu = (
        traced.lower(lowering_platforms=(platform,)).as_text() for platform in ("tpu", "cpu")
    )
    assert on_tpu.count("stablehlo.while") == 1 and "stablehlo.while" not in on_cpu


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_smoothed_labels(smoothing):
    logits = np.random.default_rng(0).normal(0, 3, (7, 10)).astype(np.float32)
    labels = np.arange(7)
    wide = logits.astype(np.float64)
    log_p = wide - np.log(np.exp(wide).sum(-1, keepdims=True))
    expected = -(1 - smoothing) * log_p[labels, labels] - smoothing * log_p.mean(-1)
    found = cross_entropy(jnp.asarray(logits), jnp.asarray(labels), smoothing)
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_the_running_mean_is_of_weights_and_statistics():
    """With a decay that is less at first: the initial weights are soon forgotten."""
    state = fresh(average=True)
    step = make_train_step(Network(), TX, INFO, ema=0.25)
    expected = jax.device_get(state.network)
    for number, decay in enumerate([0.1, 2 / 11, 0.25, 0.25]):
        state, _ = step(state, batch(number))
        now = {"params": state.params, "batch_stats": state.batch_stats}
        expected = jax.tree.map(
            lambda mean, new, d=decay: d * mean + (1 - d) * new, expected, jax.device_get(now)
        )
    assert_near(jax.device_get(state.average), expected)
    assert state.network is state.average
    kernel = state.params["fc"]["kernel"]
    assert np.max(np.abs(expected["params"]["fc"]["kernel"] - kernel)) > 1e-4


def test_a_state_is_float32_whatever_the_network_computes_in():
    """λ, statistics and weights: each has digits that bfloat16 has not."""
    low, high = (
        make_train_step(Network(dtype), TX, INFO, ema=0.9, accumulate=2)
        for dtype in (jnp.bfloat16, jnp.float32)
    )
    state, exact = fresh(average=True), fresh(average=True)
    assert "bf16" in low.lower(state, batch(0)).as_text()
    for number in range(3):
        state, metrics = low(state, batch(number))
        exact, expected = high(exact, batch(number))
    for path, leaf in jax.tree_util.tree_leaves_with_path(state):
        assert leaf.dtype in (jnp.float32, jnp.int32), path
        if path[0].name in ("params", "batch_stats", "average", "opt_state") and leaf.size > 1:
            assert np.any(leaf.astype(jnp.bfloat16).astype(jnp.float32) != leaf), path
    lam = state.params["act"]["tcl"]["lam"]
    assert lam.astype(jnp.bfloat16).astype(jnp.float32) != lam
    assert metrics.dtype == jnp.float32
    np.testing.assert_allclose(metrics, expected, rtol=0.05)
    assert metrics[0] != expected[0]


@pytest.mark.parametrize("cut", [False, True], ids=["whole", "cut"])
def test_a_state_is_changed_where_it_lies(cut):
    """It is made on all devices at once, donated, and stays as it is placed."""
    four = cluster.everywhere()
    shapes = jax.eval_shape(partial(fresh, average=True))
    where = placed(shapes, four, shard_optimizer=cut)
    state = fresh(average=True, where=where)
    step = make_train_step(Network(), TX, INFO, ema=0.9, accumulate=2, where=where)
    images = four.put(batch(0))
    compiled = step.lower(state, images).compile()
    after, metrics = step(state, images)
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(state))
    for leaf, sharding in zip(jax.tree.leaves(after), jax.tree.leaves(where), strict=True):
        assert leaf.sharding == sharding
    on_first = [leaf.addressable_shards[0].data.nbytes for leaf in jax.tree.leaves(after)]
    assert bytes_on_each(shapes, where) == sum(on_first)
    assert compiled.memory_analysis().alias_size_in_bytes == sum(on_first)
    assert metrics.is_fully_replicated and step._cache_size() == 1
    # No device is sent images of another.
    gathered = re.findall(r"all-to-all|collective-permute|all-gather.*u8", compiled.as_text())
    assert gathered == []
    assert ("all-gather" in compiled.as_text()) == cut


def test_a_cut_optimizer_does_what_a_whole_one_does():
    four, shapes = cluster.everywhere(), jax.eval_shape(partial(fresh, average=True))
    found = {}
    for cut in (False, True):
        where = placed(shapes, four, shard_optimizer=cut)
        state = fresh(average=True, where=where)
        step = make_train_step(Network(), TX, INFO, ema=0.9, where=where)
        for number in range(3):
            state, _ = step(state, four.put(batch(number)))
        found[cut] = four.to_writer(state)
        restored = four.place(found[cut], where)
        assert jax.tree.map(lambda x: x.sharding, restored) == where
        network = four.gathered(state.network)
        assert all(leaf.is_fully_replicated for leaf in jax.tree.leaves(network))
    assert_near(found[True], found[False])
    (kernel,) = (
        leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(where.opt_state)
        if "fc" in jax.tree_util.keystr(path) and "kernel" in jax.tree_util.keystr(path)
    )
    assert kernel.shard_shape((128, 10)) == (32, 10)


def test_a_state_is_the_same_wherever_it_is_made():
    four = cluster.everywhere()
    where = placed(jax.eval_shape(fresh), four, shard_optimizer=True)
    jax.tree.map(np.testing.assert_array_equal, fresh(), fresh(where=where))


@pytest.mark.parametrize(
    "shape, spec", [((3, 4, 8), (None, None, "data")), ((8, 3), ("data",)), ((3,), ()), ((), ())]
)
def test_what_can_be_cut_evenly(shape, spec):
    assert tuple(cluster.everywhere().cut(shape).spec) == spec


def test_what_is_not_as_usual_is_said():
    recipe = Config(
        ModelConfig("cnet"),
        DataConfig("digits"),
        OptimConfig(lr=0.1, lr_batch=256),
        batch_size=8192,
    )
    four = cluster.everywhere()
    model = models.create("cnet", image_shape=(8, 8, 1), num_classes=10)
    shapes = jax.eval_shape(partial(init_state, model, TX, INFO, seed=0, average=True))
    usual = headlines(presets.PRESETS.find("digits-cnet"), INFO, four, shapes, placed(shapes, four))
    assert len(usual) == 1 and "λ of 5 layers" in usual[0] and "4 cpu devices" in usual[0]
    where = placed(shapes, four, shard_optimizer=True)
    first, rate, cut = headlines(recipe, INFO, four, shapes, where)
    assert first.startswith("cnet, 0.13 M parameters")
    assert rate == "learning rate 3.2: 0.1 for batches of 256, scaled to 8192"
    whole = sum(x.size * 4 for name in CUT for x in jax.tree.leaves(getattr(shapes, name)))
    each, not_ = map(float, re.findall(r"([\d.]+) MB", cut))
    assert cut.startswith("optimizer state cut over 4 devices: ")
    assert not_ == round(whole / 1e6, 2) and whole / 4e6 < each + 0.005 < 0.3 * not_


def test_a_running_mean_is_what_is_tested_and_converted(tmp_path):
    recipe = configs.Config(
        ModelConfig("cnet"), DataConfig("digits"), OptimConfig(lr=0.05, ema=0.95), epochs=1
    )
    fit(recipe, tmp_path, shard_optimizer=True)
    (record,) = (r for r in read(tmp_path / "metrics.jsonl") if r["kind"] == "epoch")
    run = open_run(tmp_path)
    with Checkpoints(tmp_path / "checkpoints") as checkpoints:
        fresh = jax.eval_shape(partial(init_state, run.model, TX, INFO, seed=0, average=True))
        saved = checkpoints.restore(run.step, as_items(fresh))
    right = total = 0
    for images in run.batches("test", 100):
        correct = run.logits(images["image"]).argmax(-1) == images["label"]
        right += int((correct & images["mask"]).sum())
        total += int(images["mask"].sum())
    assert right / total == record["test_accuracy"]
    lam = run.variables["params"]["act1"]["tcl"]["lam"]
    assert record["lambda"]["act1"] == lam != saved["training"]["params"]["act1"]["tcl"]["lam"]
