"""Products accurate to float32 on every backend, whatever type a run was trained in."""

import json
import re
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cli import succeed, train

from tcl_jax import clip, cluster, convert, data, models, simulation
from tcl_jax.calibration.spike_norm import _largest_current
from tcl_jax.conversion import evaluate, load, trace
from tcl_jax.graph import synapses
from tcl_jax.runs.trained import open_run
from tcl_jax.simulation import adaptive
from tcl_jax.tracing.trace import traced
from tcl_jax.training.evaluation import make_eval_step, no_sums

_PLATFORMS = ("cpu", "cuda", "tpu")


def _network(weights, x):
    """Dense, full and depthwise convolution: all that multiplies."""
    dims = ("NHWC", "HWIO", "NHWC")
    for kernel, groups in ((weights["full"], 1), (weights["depthwise"], 4)):
        x = jax.lax.conv_general_dilated(
            x, kernel, (1, 1), "SAME", dimension_numbers=dims, feature_group_count=groups
        )
        x = clip(nn.relu(x), 1.0)
    return x.reshape(x.shape[0], -1) @ weights["dense"]


@pytest.fixture
def weights(rng):
    shapes = {"full": (3, 3, 2, 4), "depthwise": (3, 3, 1, 4), "dense": (64, 3)}
    return {k: jnp.asarray(rng.normal(0, 0.3, s), jnp.float32) for k, s in shapes.items()}


@pytest.fixture
def images(rng):
    return jnp.asarray(rng.uniform(0, 1, (5, 4, 4, 2)), jnp.float32)


def _evaluated(graph, x):
    return evaluate(graph, x)


def _simulated(graph, x):
    return simulation.simulate(graph, x, timesteps=3).output.counts


def _measured(graph, x):
    batch = {"image": x, "label": jnp.zeros(5, jnp.int32), "mask": jnp.ones(5, bool)}
    return simulation.correct_by_latency(graph, *batch.values(), timesteps=3)


def _balanced(graph, x):
    return _largest_current(graph, x, timesteps=3)


def _adapted(graph, x):
    nothing = jnp.zeros(5, jnp.int32)
    at = adaptive._Slots(simulation.init_state(graph, 5), nothing, nothing, nothing)
    inputs = {"x": x, "fresh": jnp.ones(5, bool)}
    least = jnp.float32(1)
    how = simulation.Simulation(), adaptive.CHARGE
    return adaptive._advance(graph, at, inputs, least, 3, 2, *how).classes


def _products(run, graph, images, platform):
    """The lines of a program that multiply matrices or convolve."""
    text = jax.jit(run).trace(graph, images).lower(lowering_platforms=(platform,)).as_text()
    return [
        li for li in text.splitlines() if re.search(r"stablehlo\.(dot_general|convolution)", li)
    ]


@pytest.mark.parametrize("platform", _PLATFORMS)
@pytest.mark.parametrize("run", [_evaluated, _simulated, _measured, _balanced, _adapted])
def test_every_product_is_of_the_highest_precision(run, platform, weights, images):
    graph = simulation.lower(convert(_network, weights, images), platform)
    # A user's own setting is for the user's own products.
    with jax.default_matmul_precision("bfloat16"):
        products = _products(run, graph, images, platform)
    # On a CPU the depthwise one is a sum of elementwise products.
    assert len(products) == (2 if platform == "cpu" else 3)
    for line in products:
        assert line.count("HIGHEST") == 2, line


@pytest.mark.parametrize("precision", ["HIGHEST", None])
def test_an_evaluation_multiplies_as_it_is_told(precision):
    """A run's float32 network as its spiking one; in training, as the user has set."""
    model = models.create("cnet", image_shape=(8, 8, 1), num_classes=10)
    info = data.DataInfo("random", (8, 8, 1), 10, 5, 5, (0.3,), (0.35,))
    step = make_eval_step(model, info, precision and precision.lower())
    variables = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 8, 8, 1)))
    batch = {"image": jnp.zeros((8, 8, 8, 1), jnp.uint8), "label": jnp.zeros(8, jnp.int32)}
    batch["mask"] = jnp.ones(8, bool)
    traced = step.trace(variables, no_sums(cluster.everywhere().mesh), batch)
    lowered = traced.lower(lowering_platforms=("tpu",))
    products = re.findall(r".*stablehlo\.(?:dot_general|convolution).*", lowered.as_text())
    assert len(products) == 6
    assert all(line.count(precision or "DEFAULT") == 2 for line in products)


def test_a_setting_of_the_user_changes_neither_graph_nor_proof(weights, images):
    seen = []

    def network(weights, x):
        seen.append(jax.config.jax_default_matmul_precision)
        return _network(weights, x)

    with jax.default_matmul_precision("bfloat16"):
        graph = convert(network, weights, images)
    assert set(seen) == {"highest"}
    expected = convert(_network, weights, images)
    for a, b in zip(jax.tree.leaves(graph), jax.tree.leaves(expected), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(
    ("asked", "bits"),
    [(None, 23), ("highest", 23), ("high", 7), ("default", 7), ("BF16_BF16_F32", 7)],
)
def test_a_function_that_asks_for_less_is_compared_at_less(asked, bits, images):
    """Else what its products round on a TPU or a GPU would count as an error of the conversion."""

    def network(x):
        return jnp.dot(nn.relu(x), jnp.ones((2, 3)), precision=asked)

    def convolution(x):
        return nn.Conv(3, (2, 2), precision=asked).init_with_output(jax.random.key(0), x)[0]

    assert traced(network, images).epsilon == 2.0**-bits
    if asked != "BF16_BF16_F32":  # products alone know algorithms
        assert traced(convolution, images).epsilon == 2.0**-bits


@pytest.mark.parametrize("platform", _PLATFORMS)
def test_bfloat16_weights_are_multiplied_and_summed_in_float32(platform, weights, images):
    """A value that they weight is not rounded: what it is in a bfloat16 is another one."""
    graph = synapses.in_bfloat16(convert(_network, weights, images))
    products = _products(evaluate, graph, images, platform)
    assert len(products) == (2 if platform == "cpu" else 3)
    for line in products:
        _, operands, result = re.split(r" : \(| -> ", line)
        assert operands.count("xf32>") == 2 and result.endswith("xf32>"), line
        assert line.count("HIGHEST") == 2, line


def test_the_trace_of_a_bfloat16_function_holds_what_it_multiplies(rng):
    """Which are rounded weights: the float32 clone of a network has the ones that were trained."""
    x = jnp.asarray(rng.normal(0, 1, (4, 3)), jnp.float32)
    model = nn.Dense(2, dtype=jnp.bfloat16)
    variables = model.init(jax.random.key(0), x)
    kernel = np.asarray(variables["params"]["kernel"])
    rounded = trace(partial(model.apply, variables), x)
    exact = trace(partial(model.clone(dtype=jnp.float32).apply, variables), x)
    assert np.array_equal(exact.nodes[1].op.kernel, kernel)
    assert np.array_equal(
        rounded.nodes[1].op.kernel, kernel.astype(jnp.bfloat16).astype(np.float32)
    )


# --- A run trained in bfloat16 ------------------------------------------------------------------


@pytest.fixture(scope="module")
def in_bfloat16(tmp_path_factory):
    folder = tmp_path_factory.getbasetemp() / "digits-bfloat16"
    run = train(folder, "--model.dtype", "bfloat16")
    converted = succeed("convert", run.folder, "--report-images", 0)
    simulated = succeed("simulate", run.folder, "--timesteps", 60)
    return run.folder, converted, simulated


def test_a_run_trained_in_bfloat16_converts_exactly(in_bfloat16):
    folder, printed, _ = in_bfloat16
    about = json.loads((folder / "snn" / "graph.json").read_text())["about"]
    assert about["trained_in"] == "bfloat16" and about["dtype"] == "float32"
    assert about["matmul_precision"] == "highest"
    found = about["verification"]
    for stage in ("folded", "normalised"):
        assert found[f"max_abs_logit_difference_{stage}"] < 1e-5 * found["largest_logit"]
    assert found["same_class"] == found["images"] == 359
    # bfloat16 rounds at 1 part in 256, again and again: it parts, but not by much.
    ann = about["ann"]
    difference = ann["max_abs_logit_difference_as_trained"] / found["largest_logit"]
    assert 1e-4 < difference < 0.1
    same = ann["same_class_as_trained"]
    assert 350 <= same <= 359
    assert "trained in bfloat16, converted from its float32 weights" in printed.out
    words = " ".join(printed.out.split())
    assert f"the same class on {same} of 359 test images" in words


def test_the_float32_weights_are_what_is_converted(in_bfloat16):
    folder, _, _ = in_bfloat16
    run, graph = open_run(folder), load(folder / "snn").graph
    kernel = np.asarray(run.variables["params"]["fc1"]["kernel"])
    assert kernel.dtype == np.float32
    assert np.any(kernel != kernel.astype(jnp.bfloat16).astype(np.float32)), "nothing to round"
    float32 = run.model.clone(dtype=jnp.float32)
    images = next(run.batches("train", 64))["image"]
    expected = np.asarray(float32.apply(run.variables, images, train=False))
    found = np.asarray(evaluate(graph, images))
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * np.abs(expected).max())
    np.testing.assert_array_equal(run.logits(images), expected)


def test_the_accuracy_in_bfloat16_stands_beside(in_bfloat16):
    folder, _, printed = in_bfloat16
    summary = json.loads((folder / "summary.json").read_text())
    last = json.loads((folder / "metrics.jsonl").read_text().splitlines()[-1])
    assert summary["trained_in"] == "bfloat16"
    assert [summary[k] for k in ("dtype", "matmul_precision")] == ["float32", "highest"]
    assert list(summary["ann_accuracy_in"]) == ["float32", "bfloat16"]
    assert summary["ann_accuracy"] == summary["ann_accuracy_in"]["float32"] > 0.9
    as_trained = summary["ann_accuracy_in"]["bfloat16"]
    assert as_trained == pytest.approx(last["test_accuracy"], abs=1e-9)
    assert f"the ANN in bfloat16, as it was trained: {as_trained:.2%}" in printed.out
    assert summary["snn_accuracy"]["50"] == pytest.approx(summary["ann_accuracy"], abs=0.03)
