"""Conversion proves itself: what it returns computes what the function does, or is refused."""

import weakref
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import wiring

from tcl_jax import InputError, clip, conversion, convert, simulation
from tcl_jax import graph as g
from tcl_jax.conversion import calibrate, evaluate, fold, norm_method, normalise, trace
from tcl_jax.promotion import implicit
from tcl_jax.tracing.trace import traced


def small(w, x):
    return clip(jax.nn.relu(x @ w), 2.0) @ w


W = jnp.asarray([[0.5, -0.25], [0.25, 0.75]])
X = jnp.asarray([[1.0, 0.5], [0.25, 2.0], [0.5, 0.5]])


# --- The proof ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "join",
    [
        lambda a: jnp.concatenate([a, a, a], -1),
        lambda a: jnp.concatenate([a, a + a, a], -1),
        lambda a: jnp.concatenate([a, jnp.concatenate([a, a], -1)], -1),
        lambda a: jnp.concatenate([a, a, a], -1) + jnp.concatenate([a, a, a], -1),
    ],
)
def test_a_value_read_several_times_in_several_amplitudes(join, rng):
    draw = [jnp.asarray(rng.normal(size=s), jnp.float32) for s in ((3, 2), (2, 2), (6, 3), (4, 3))]
    w, inner, out, x = draw
    lam = jnp.asarray([0.3, 0.5, 1.0, 2.0, 3.0, 4.0])

    def network(_, x):
        a = clip(jax.nn.relu(x @ w), 0.7) @ inner
        return clip(jax.nn.relu(join(a)), lam) @ out

    graph = convert(network, None, [x])
    np.testing.assert_allclose(evaluate(graph, x), network(None, x), rtol=1e-5, atol=1e-5)
    assert all((np.asarray(n.op.threshold) == 1).all() for n in graph.spiking)


def test_what_normalisation_spoils_is_refused_where_it_was_spoiled(monkeypatch):
    def network(w, x):
        a = clip(jax.nn.relu(x @ w), 2.0)
        return clip(jax.nn.relu(a @ w), 3.0) @ w

    def spoiled(graph):
        found = normalise(graph)
        last = [n for n in found.nodes if isinstance(n.op, g.Dense)][1]
        return wiring.changed(found, last, replace(last.op, kernel=1.01 * last.op.kernel))

    monkeypatch.setattr(conversion, "normalise", spoiled)
    with pytest.raises(InputError, match=r"normalised gives logits .* \(they part at 'neuron_2'\)"):
        convert(network, W, X)


def test_what_folding_spoils_is_refused(monkeypatch):
    def spoiled(graph):
        found = fold(graph)
        first = next(n for n in found.nodes if isinstance(n.op, g.Dense))
        return wiring.changed(found, first, replace(first.op, kernel=1.01 * first.op.kernel))

    monkeypatch.setattr(conversion, "fold", spoiled)
    with pytest.raises(InputError, match=r"folded gives logits that .* \(they part at 'neuron'\)"):
        convert(small, W, X)


def test_currents_that_do_not_fit_their_thresholds_are_refused(monkeypatch):
    """What one layer makes twice as large the next makes half as large: the logits do not tell."""

    def network(w, x):
        return jax.nn.relu(x @ w) @ w

    def spoiled(graph):
        found = normalise(graph)
        for number, factor in enumerate((2.0, 0.5)):
            node = [n for n in found.nodes if isinstance(n.op, g.Dense)][number]
            found = wiring.changed(found, node, replace(node.op, kernel=factor * node.op.kernel))
        np.testing.assert_allclose(evaluate(found, X), network(W, X), rtol=1e-6)
        return found

    monkeypatch.setattr(conversion, "normalise", spoiled)
    with pytest.raises(InputError, match=r"normalised gives logits .* \(they part at 'relu'\)"):
        convert(network, W, X, norm="percentile:50")


def test_a_function_that_is_another_at_each_call_is_refused():
    calls = []

    def network(w, x):
        calls.append(1)
        return clip(jax.nn.relu(x @ w), 2.0) @ w * (2.0 if len(calls) > 2 else 1.0)

    with pytest.raises(InputError, match="is the function the same at every call"):
        convert(network, W, X)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_precision_is_that_of_the_narrowest_type(dtype):
    def network(w, x):
        x = x.astype(dtype)
        return (clip(jax.nn.relu(x @ w.astype(dtype)), 2.0) @ w.astype(dtype)).astype(jnp.float32)

    _, epsilon = traced(lambda x: network(W, x), X)
    assert epsilon == jnp.finfo(dtype).eps
    graph = convert(network, W, X)
    error = np.abs(evaluate(graph, X) - network(W, X)).max()
    assert error <= jnp.finfo(dtype).eps * np.abs(network(W, X)).max()


def test_float64_is_proved_in_float64():
    with jax.enable_x64(True):
        w, x = np.asarray(W, np.float64), np.asarray(X, np.float64)
        _, epsilon = traced(lambda x: small(w, x), x)
        assert epsilon == np.finfo(np.float64).eps
        assert convert(small, w, x).dtype == np.float64


def test_numpy_images_in_float64_are_taken_as_jax_takes_them():
    graph = convert(small, W, np.asarray(X, np.float64))
    assert graph.dtype == np.float32


# --- The batch ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "network",
    [
        lambda x: x / x.shape[0],
        lambda x: x * len(x),
        lambda x: x + jnp.ones(x.shape[0]).sum(),
        lambda x: x @ jnp.eye(2) if x.shape[0] > 10 else x,
        lambda x: x @ (jnp.eye(2) / x.shape[0]),
        lambda x: clip(jax.nn.relu(x), float(x.shape[0])),
        lambda x: jnp.pad(x, ((0, 0), (x.shape[0], 0)))[:, -2:],
    ],
)
def test_what_depends_on_the_number_of_images_is_refused(network):
    with pytest.raises(InputError, match=r"number of images in the batch.*whatever x\.shape"):
        trace(network, X)


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize(
    "noise",
    [
        lambda key, n: jax.random.bernoulli(key, 0.9, (n, 1)),
        lambda key, n: (jax.random.uniform(key, (n, 1)) < 0.95).astype(jnp.float32),
        lambda key, n: 1 - jax.jit(lambda k: jax.random.randint(k, (n, 1), 0, 30) == 0)(key),
        lambda key, n: jax.vmap(lambda k: jax.random.bernoulli(k, 0.95, (1,)))(
            jax.random.split(key, n)
        ),
        lambda key, n: jnp.ones((n, 2)) / jax.random.bernoulli(key, 0.95, (n, 2)),
        lambda key, n: jnp.broadcast_to(jax.random.bernoulli(key, 0.95, (n,))[:, None], (n, 2)),
        lambda key, n: jnp.where(jax.random.uniform(key, (n, 1)) < 0.95, 1.0, 0.0),
        lambda key, n: jax.random.bernoulli(jax.random.PRNGKey(7), 0.95, (2, n)).T,
    ],
)
def test_random_numbers_for_each_image_are_refused_whatever_the_key(noise, seed):
    with pytest.raises(InputError, match=r"random numbers of its own.*inference mode"):
        trace(implicit()(lambda x: x * noise(jax.random.key(seed), x.shape[0])), X)


def test_random_numbers_cannot_pass_as_the_zero_of_a_relu():
    @implicit()
    def network(x):
        return jnp.maximum(x, 1 - jax.random.bernoulli(jax.random.key(0), 0.9999, (len(x), 1)))

    with pytest.raises(InputError, match="random numbers of its own"):
        trace(network, X)


@pytest.mark.parametrize(
    "draw",
    [
        lambda key, x: jax.random.uniform(key, (2,)),
        lambda key, x: jnp.broadcast_to(jax.random.uniform(key, (2,)), x.shape),
        lambda key, x: jax.random.uniform(key, (2,)) + jnp.zeros_like(x),
        lambda key, x: jnp.where(jax.random.uniform(key, (2,)) < 0.5, jnp.ones_like(x), 0.5),
        lambda key, x: jax.random.uniform(key, (2, 1)).T,
        lambda key, x: jax.random.uniform(key),
    ],
)
def test_random_numbers_that_all_images_share_are_constants(draw):
    @implicit()
    def network(w, x):
        return small(w, x * draw(jax.random.key(0), x))

    graph = convert(network, W, X)
    np.testing.assert_allclose(evaluate(graph, X), network(W, X), rtol=1e-5)


@pytest.mark.parametrize(
    "network, shape, says",
    [
        (lambda x: x.reshape(32, 2, 3).sum(2), (32, 6), "written for a batch of 32 images"),
        (lambda x: x + jnp.ones((5, 6)), (5, 6), "if it is a batch, write x.shape[0]"),
        (lambda x: x @ jnp.eye(4), (4,), "if that is one image, put the images' axis in front"),
        (lambda x: x.reshape(-1) @ jnp.ones((12, 3)), (4, 12), "takes one image of shape (12,)"),
        (lambda x: x.reshape(len(x), 12) @ jnp.ones((12, 3)), (3, 4), "put the images' axis"),
    ],
)
def test_a_function_that_takes_something_else_is_told_what(network, shape, says):
    with pytest.raises(InputError) as error:
        trace(implicit()(network), jnp.zeros(shape))
    assert says in str(error.value) and f"{__file__}:" in str(error.value)


def test_a_function_that_draws_its_weights_at_every_call_is_refused(rng):
    with pytest.raises(InputError, match=r"something else at every call .*outside the function"):
        trace(lambda x: x @ jnp.asarray(rng.normal(size=(2, 2)), jnp.float32), X)


def test_errors_of_the_function_itself_stay_its_own():
    with pytest.raises(ZeroDivisionError):
        trace(lambda x: x / (1 // 0), X)


# --- Types --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "network, says",
    [
        (lambda x: jax.lax.reduce_precision(x, 5, 1), "a cast to 1 bits rounds"),
        (lambda x: x.astype(jnp.float8_e4m3fn).astype(jnp.float32), "a cast to float8_e4m3fn"),
        (lambda x: x.astype(jnp.float8_e5m2).astype(jnp.float32), "a cast to float8_e5m2 rounds"),
        (lambda x: x.astype(jnp.int32).astype(jnp.float32), "a cast to whole numbers rounds"),
        (lambda x: x.astype(jnp.complex64).real, "no complex numbers"),
    ],
)
def test_casts_that_round_are_refused(network, says):
    with pytest.raises(InputError, match=says):
        trace(network, X)


@pytest.mark.parametrize("dtype", ["uint8", "int8", "int32", "float16", "bfloat16"])
def test_images_of_any_type(dtype, rng):
    images = jnp.asarray(rng.integers(0, 100, (5, 2)), dtype)

    def network(w, x):
        return small(w, x.astype(jnp.float32) / 100 - 0.25)

    graph = convert(network, W, images)
    np.testing.assert_allclose(evaluate(graph, images), network(W, images), rtol=1e-5, atol=1e-6)
    counts = simulation.simulate(graph, images, 10).output.counts
    expected = simulation.simulate(graph, images.astype(jnp.float32), 10).output.counts
    np.testing.assert_array_equal(counts, expected)
    curve = simulation.latency_curve(
        graph,
        [{"image": images, "label": jnp.zeros(5, jnp.int32), "mask": jnp.ones(5, bool)}],
        3,
        simulation.Simulation(coding=simulation.Poisson()),
    )
    assert curve.shape == (3,)


@pytest.mark.parametrize(
    "network",
    [
        lambda x: (x * 2).astype(jnp.float32),
        lambda x: (x - 128).astype(jnp.float32),
        lambda x: (x // 2).astype(jnp.float32),
        lambda x: x.sum(1, keepdims=True).astype(jnp.float32),
        lambda x: (x + x).astype(jnp.float32),
        lambda x: jnp.maximum(x, 0).astype(jnp.float32),
    ],
)
def test_arithmetic_on_whole_numbers_is_refused(network):
    with pytest.raises(InputError, match=r"cast the images first, as in x\.astype|not affine"):
        trace(network, jnp.zeros((1, 2), jnp.uint8))


def test_whole_numbers_may_change_places_before_they_are_cast(rng):
    images = jnp.asarray(rng.integers(0, 256, (5, 2, 3)), jnp.uint8)

    @implicit()
    def network(_, x):
        x = jnp.pad(x.transpose(0, 2, 1), ((0, 0), (1, 0), (0, 0)))[:, :, 1:]
        x = jnp.concatenate([x, x], -1).astype(jnp.int32).reshape(len(x), -1)
        return clip(jax.nn.relu(x / 255.0), 0.5)

    graph = convert(network, None, images)
    np.testing.assert_allclose(evaluate(graph, images), network(None, images), rtol=1e-6)


@pytest.mark.parametrize(
    "calibration, says",
    [
        ((X, jnp.zeros(3)), None),
        ([(X, jnp.zeros(3))], "got a tuple: give the images alone, without labels"),
        ([{"image": X}], 'got a dict: give the images alone, as batch["image"]'),
        ({"image": X}, 'got a dict: give the images alone, as batch["image"]'),
        ([[X, X]], "got a list: give one array, as jnp.stack(images)"),
        ([X, X[:0]], "calibration batch 2 holds no images: leave it out"),
        ([X[:0]], "calibration batch 1 holds no images: leave it out"),
        ([], "there are no calibration images"),
        (3.0, "got a float: give a NumPy or JAX array"),
        (None, "got a NoneType"),
        (["a"], "got a str"),
        (np.array(["a", "b"]), "images must be numbers, got an array of <U1"),
        (jnp.float32(3), "got a single number"),
        ([X, X[:, :1]], "takes images of shape (2,), got (1,)"),
        (list(X), None),
    ],
)
def test_what_is_no_batch_of_images_gets_one_sentence(calibration, says):
    with pytest.raises(InputError) as error:
        convert(small, W, calibration)
    assert "\n" not in str(error.value)
    assert says is None or says in str(error.value)


@pytest.mark.usefixtures("unchecked")
def test_calibrate_takes_what_makes_batches():
    with pytest.raises(InputError, match="got a list: give lambda: batches"):
        calibrate(fold(trace(lambda x: small(W, x), X)), norm_method("max"), [X])


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("call", [evaluate, simulation.constant_values])
def test_readings_take_arrays_alone(call):
    graph = convert(small, W, X)
    with pytest.raises(InputError, match="give the images alone, without labels"):
        call(graph, (X, jnp.zeros(3)))


# --- Streams ------------------------------------------------------------------------------------


@pytest.mark.parametrize("norm", ["tcl", "max", "max/channel"])
def test_calibration_batches_are_not_kept(norm):
    alive, most = [], 0

    def batches():
        nonlocal most
        for _ in range(20):
            batch = np.ones((100, 2), np.float32)
            alive.append(weakref.ref(batch))
            most = max(most, sum(r() is not None for r in alive))
            yield batch
            del batch

    convert(small, W, batches(), norm=norm)
    assert most <= 4


@pytest.mark.parametrize("norm", ["max", "percentile:90", "spike_norm", "model_based"])
def test_iterators_lists_and_arrays_calibrate_alike(norm, rng):
    x = jnp.asarray(rng.uniform(0, 2, (12, 2)), jnp.float32)

    class Stream:
        def __iter__(self):
            return iter([x[:4], x[4:8], x[8:]])

    expected = convert(small, W, [x[:4], x[4:8], x[8:]], norm=norm)
    for calibration in (iter([x[:4], x[4:8], x[8:]]), Stream(), (x[:4], x[4:8], x[8:])):
        found = convert(small, W, calibration, norm=norm)
        jax.tree.map(np.testing.assert_array_equal, found, expected)
