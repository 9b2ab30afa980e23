"""Several devices compute what one does."""

import itertools
import json
import os
import re
import subprocess
import sys

import jax
import numpy as np
import pytest
from cli import ROOT, devices, succeed
from cli import converted as converted
from cli import trained as trained

from tcl_jax import cluster, data, models
from tcl_jax.training import build_model, config, optimizer, presets
from tcl_jax.training.evaluation import evaluate, make_eval_step, no_sums
from tcl_jax.training.step import init_state, make_train_step


@pytest.mark.long
def test_four_devices_train_as_one_does():
    """Step for step, from the same state: differences of rounding would grow from one to the next.

    Batch norm is over the whole batch: statistics of each device's part would show here.
    """
    preset, dataset = presets.PRESETS.find("digits-cnet"), data.load("digits")
    four = cluster.everywhere()
    one = cluster.here(1)
    model = build_model(preset, dataset.info)
    tx = optimizer.make(preset.optim, total_steps=100, batch_size=1)
    step = make_train_step(model, tx, dataset.info)
    batches = data.train_batches(dataset, batch_size=preset.batch_size, seed=preset.seed)
    before = jax.device_get(init_state(model, tx, dataset.info, preset.seed))
    for batch in itertools.islice(batches, 5):
        parts = four.put(batch)
        assert [len(shard.data) for shard in parts["image"].addressable_shards] == [16] * 4
        of_one, _ = step(one.replicate(before), one.put(batch))
        of_four, _ = step(four.replicate(before), parts)
        after, found = jax.device_get((of_one, of_four))
        for was, expected, value in zip(*map(jax.tree.leaves, (before, after, found)), strict=True):
            change = np.max(np.abs(np.asarray(expected, np.float64) - was), initial=0)
            np.testing.assert_allclose(value, expected, rtol=1e-6, atol=1e-4 * change)
        before = after
    batches.close()


def test_eight_devices_simulate_as_one_does(trained, converted, tmp_path):
    found = {}
    for count in (1, 8):
        output = tmp_path / str(count)
        options = ["--snn", converted, "--timesteps", 20, "--batch-size", 64, "--output", output]
        succeed("simulate", trained.folder, *options, **devices(count))
        found[count] = json.loads((output / "summary.json").read_text())
        assert found[count]["hardware"]["devices"] == count
        assert found[count]["images"] == 359
    assert found[8]["ann_accuracy"] == found[1]["ann_accuracy"]
    for t, accuracy in found[1]["snn_accuracy"].items():
        # A sum in another order may flip a spike, and so the class of an image on the border.
        assert found[8]["snn_accuracy"][t] == pytest.approx(accuracy, abs=2 / 359)


@pytest.mark.parametrize(
    "setting, batch_size, expected",
    [
        ({}, 12, 4),
        ({}, 6, 3),
        ({}, 7, 1),
        ({"JAX_NUM_CPU_DEVICES": "1"}, 12, 1),
        ({"XLA_FLAGS": "--xla_force_host_platform_device_count=2"}, 12, 2),
    ],
)
def test_every_core_is_a_device(setting, batch_size, expected):
    program = (
        "import os, jax; os.sched_getaffinity = lambda _: range(5); from tcl_jax import cluster; "
        f"cluster.cores_as_devices({batch_size}); print(jax.device_count())"
    )
    kept = {k: v for k, v in os.environ.items() if k not in ("JAX_NUM_CPU_DEVICES", "XLA_FLAGS")}
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=kept | {"JAX_PLATFORMS": "cpu"} | setting,
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert int(done.stdout) == expected


def test_devices_evaluate_each_on_its_own():
    """Many steps in flight deadlock on CPU devices where they meet in an all-reduce: none does."""
    info = data.DataInfo("random", (8, 8, 1), 10, 100, 100, (0.3,), (0.35,))
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (150, 8, 8, 1), np.uint8)
    labels = rng.integers(0, 10, 150).astype(np.int32)
    model = models.create("cnet", image_shape=(8, 8, 1), num_classes=10)
    four = cluster.everywhere()
    assert four.mesh.size == 4
    tx = optimizer.make(config.OptimConfig(), total_steps=10, batch_size=1)
    state = four.replicate(init_state(model, tx, info, 0))
    step = make_eval_step(model, info)
    source = data.ArraySource(images, labels)
    calls = []
    variables = state.network
    found = evaluate(variables, step, source, 32, four, done=lambda: calls.append(len(calls)))
    assert len(calls) == 5 and step._cache_size() == 1

    (batch, *_) = data.eval_batches(source, batch_size=32)
    traced = step.lower(variables, no_sums(four.mesh), four.put(batch))
    program = traced.compile().as_text()
    assert "num_partitions=4" in program
    assert not re.findall("all-|reduce-scatter|collective|send|recv", program)

    logits = model.apply(variables, data.standardize(images, info), train=False)
    logits = np.asarray(logits, np.float64)
    log_sum = np.log(np.exp(logits).sum(-1))
    loss = np.mean(log_sum - logits[np.arange(150), labels])
    assert found["accuracy"] == np.mean(logits.argmax(-1) == labels)
    assert found["loss"] == pytest.approx(loss, rel=1e-5)
