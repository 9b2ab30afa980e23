"""What no spiking network can do is refused, with the user's own line."""

import inspect
import re
from collections.abc import Callable

import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax._src.numpy import lax_numpy  # where padding is done
from jax.extend.core import primitives

from tcl_jax import TCL, InputError, clip
from tcl_jax.conversion import UnsupportedOperation, evaluate, trace
from tcl_jax.promotion import implicit
from tcl_jax.tracing import advice


def _image(x):
    return x.reshape(x.shape[0], 2, 2, 1)


def _max_pool(x):
    return nn.max_pool(_image(x), (2, 2))  # here


def _gelu(x):
    return nn.gelu(x)  # here


def _exact_gelu(x):
    return nn.gelu(x, approximate=False)  # here


def _square(x):
    return x * x  # here


def _power(x):
    return x**2  # here


def _tanh(x):
    return jnp.tanh(x)  # here


def _sigmoid(x):
    return nn.sigmoid(x)  # here


def _softmax(x):
    return nn.softmax(x)  # here


def _clip_alone(x):
    return clip(x, 2.0)  # here


def _attention(x):
    return jnp.einsum("bi,bj->bij", x, x)  # here


def _leaky(x):
    return jnp.maximum(x, 0.1)  # here


def _divided(x):
    return 1.0 / x  # here


def _jitted_by_jax(x):
    return jnp.cumprod(x, 1)  # here


def _over_the_batch(x):
    return x - x.mean(0)  # here


class _Module(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.Dense(4)(x)
        return nn.max_pool(_image(x), (2, 2))  # here


def _in_a_module(x):
    return _Module().apply({"params": {"Dense_0": {"kernel": jnp.eye(4), "bias": jnp.ones(4)}}}, x)


def _line(fn: Callable) -> str:
    source = _Module if fn is _in_a_module else fn
    lines, first = inspect.getsourcelines(source)
    (offset,) = (i for i, line in enumerate(lines) if line.rstrip().endswith("# here"))
    return f"{__file__}:{first + offset}"


@pytest.mark.parametrize(
    "fn, says",
    [
        (_max_pool, "max-pooling is not affine (use average pooling and train again)"),
        (_in_a_module, "max-pooling is not affine"),
        (_gelu, "gelu is not piecewise linear (use tcl_jax.TCL and train again)"),
        (_exact_gelu, "gelu is not piecewise linear (use tcl_jax.TCL and train again)"),
        (_square, "not affine"),
        (_power, "not affine"),
        (_tanh, "tanh is not piecewise linear (use tcl_jax.TCL and train again)"),
        (_sigmoid, "sigmoid is not piecewise linear (use tcl_jax.TCL and train again, or return"),
        (_softmax, "softmax is not affine (return the logits, which have the same order)"),
        (_clip_alone, "clip without a ReLU before it (write clip(nn.relu(x), lam), or use TCL)"),
        (_attention, "the product of two signals is not affine (attention?)"),
        (_leaky, "other than 0 is no ReLU (write max(a, b) as b + nn.relu(a - b))"),
        (_divided, "division by the signal is not affine"),
        (_jitted_by_jax, "cumprod is not affine"),
        (_over_the_batch, "a sum over the batch mixes images"),
    ],
)
@pytest.mark.parametrize("jitted", [False, True])
def test_refused_with_file_and_line(fn, says, jitted):
    with pytest.raises(UnsupportedOperation) as refused:
        trace(implicit()(jax.jit(fn) if jitted else fn), jnp.zeros((1, 4)))
    message = str(refused.value)
    assert f"{_line(fn)}: " in message
    assert says in message
    assert isinstance(refused.value, InputError)


# --- All of them, each once -----------------------------------------------------------------------


def _messages(fn, x) -> list[tuple[int, str]]:
    """Line, counted from the function's first, and text of every refusal."""
    with pytest.raises(UnsupportedOperation) as refused:
        trace(fn, x)
    text = str(refused.value).removeprefix("cannot convert this network: ")
    parts = [re.fullmatch(r"(.+):(\d+): (.*)", part) for part in text.split("; ")]
    assert {part[1] for part in parts} == {__file__}
    return [(int(part[2]) - inspect.getsourcelines(fn)[1], part[3]) for part in parts]


def test_all_refusals_are_in_one_message():
    def network(x):
        a = nn.max_pool(_image(x), (2, 2))
        return a.reshape(x.shape[0], 1) + jnp.sum(jnp.tanh(x), 1, keepdims=True)

    found = _messages(network, jnp.zeros((1, 4)))
    assert [line for line, _ in found] == [1, 2]


def test_all_refusals_of_a_chain_are_in_one_message():
    """What follows an operation that is refused is looked at too."""

    def network(x):
        x = nn.Conv(3, (3, 3)).init_with_output(jax.random.key(0), x)[0]
        x = nn.BatchNorm(use_running_average=False).init_with_output(jax.random.key(0), x)[0]
        x = nn.max_pool(nn.relu(x), (2, 2))
        x = nn.LayerNorm(use_scale=False, use_bias=False).apply({}, x)
        x = jnp.transpose(nn.gelu(x), (1, 0, 2, 3))
        x = jnp.concatenate([x, x * x], -1).transpose(1, 0, 2, 3)
        return nn.softmax(x.reshape(x.shape[0], -1))

    found = _messages(network, jnp.zeros((2, 6, 6, 2)))
    assert [line for line, _ in found] == [2, 3, 4, 5, 6, 7]
    for (_, text), says in zip(
        found,
        ("mixes images", "max-pooling", "a norm of the data", "gelu", "product of two", "softmax"),
        strict=True,
    ):
        assert says in text


def test_what_follows_from_a_refusal_is_not_refused_for_it():
    """The clip's ReLU lies behind the pool, and the choice rests on a comparison."""

    def network(x):
        x = clip(nn.max_pool(nn.relu(_image(x)), (2, 2)), 2.0).reshape(x.shape[0], -1)
        return jnp.where(x > 0, x, 0.1 * x)

    found = _messages(network, jnp.zeros((1, 4)))
    assert [line for line, _ in found] == [1, 2]
    assert "max-pooling" in found[0][1] and "a comparison" in found[1][1]


def test_a_line_with_two_reasons_gives_both():
    def network(x):
        return nn.softmax(nn.gelu(x))

    assert [text.split()[0] for _, text in _messages(network, jnp.zeros((1, 4)))] == [
        "gelu",
        "softmax",
    ]


def test_a_softmax_by_hand_is_told_to_return_the_logits_too():
    def network(x):
        e = jnp.exp(x - x.max(-1, keepdims=True))
        return e / e.sum(-1, keepdims=True)

    found = _messages(network, jnp.zeros((1, 4)))
    assert [line for line, _ in found] == [1, 1, 2]
    assert all("if it is a softmax return the logits" in text for _, text in found[:2])


# --- True, and with a way out ---------------------------------------------------------------------

_LINEAR = {
    "fourier": lambda x: jnp.fft.rfft(x).real,
    "solved": lambda x: jax.scipy.linalg.solve_triangular(jnp.eye(4), x.T).T,
}


@pytest.mark.parametrize("name", _LINEAR)
def test_what_is_linear_is_not_called_anything_else(name):
    with pytest.raises(UnsupportedOperation, match="is linear, but is not converted") as refused:
        trace(_LINEAR[name], jnp.zeros((1, 4)))
    message = str(refused.value)
    assert advice.DEFAULT not in message and "is not affine" not in message


_l, _u = -0.5, 0.75
_SPELLINGS = {
    "leaky_relu": (lambda x: nn.leaky_relu(x, 0.1), lambda x: nn.relu(x) - 0.1 * nn.relu(-x)),
    "maximum": (lambda x: jnp.maximum(x, 0.3), lambda x: 0.3 + nn.relu(x - 0.3)),
    "two": (lambda x: jnp.maximum(x, 0.1 * x), lambda x: 0.1 * x + nn.relu(x - 0.1 * x)),
    "minimum": (lambda x: jnp.minimum(x, 0.3), lambda x: 0.3 - nn.relu(0.3 - x)),
    "hard_tanh": (nn.hard_tanh, lambda x: clip(nn.relu(x + 1), 2.0) - 1),
    "clip": (lambda x: jnp.clip(x, _l, _u), lambda x: _l + clip(nn.relu(x - _l), _u - _l)),
    "clamp": (lambda x: jax.lax.clamp(_l, x, _u), lambda x: _l + clip(nn.relu(x - _l), _u - _l)),
    "abs": (jnp.abs, lambda x: nn.relu(x) + nn.relu(-x)),
}


@pytest.mark.parametrize("name", _SPELLINGS)
def test_what_is_advised_converts_and_means_the_same(name, rng):
    refused, advised = _SPELLINGS[name]
    x = jnp.asarray(rng.normal(0, 1, (64, 4)), jnp.float32)
    with pytest.raises(UnsupportedOperation) as error:
        trace(refused, x)
    assert "use tcl_jax.TCL" not in str(error.value), "that is another function"
    np.testing.assert_allclose(evaluate(trace(implicit()(advised), x), x), refused(x), atol=1e-6)


_PRELU = nn.PReLU()


@pytest.mark.parametrize(
    ("name", "fn"),
    [
        ("leaky_relu", nn.leaky_relu),
        ("PReLU", lambda x: _PRELU.apply(_PRELU.init(jax.random.key(0), x), x)),
        ("hard_tanh", nn.hard_tanh),
    ],
)
def test_other_activations_are_not_told_to_be_relus(name, fn):
    with pytest.raises(UnsupportedOperation, match=f"{name} is no ReLU .write it as"):
        trace(fn, jnp.zeros((1, 4)))


def test_every_name_that_is_advised_on_exists():
    """A name that a library gives up would be refused for another reason, without a word."""
    known = {name.removesuffix("_p") for name in dir(primitives)}
    assert {name.replace("-", "_") for name in advice._PRIMITIVES} - known == set()
    rooms = (jax.nn, jnp, jnp.linalg, lax_numpy, nn, nnx, eqx.nn)
    names = {name.removesuffix(".__call__") for name in advice._FUNCTIONS}
    assert {name for name in names if not any(hasattr(room, name) for room in rooms)} == set()


# --- A choice by constants ------------------------------------------------------------------------


def test_a_choice_by_constants_is_exact(rng):
    x = jnp.asarray(rng.normal(0, 1, (8, 4)), jnp.float32)
    mask, which = jnp.array([True, False, False, True]), jnp.array([0, 1, 2, 1])
    constant = jnp.array([1.0, 2.0, 3.0, 4.0])
    for fn in (
        lambda x: jnp.where(mask, x, 0.0),
        lambda x: jnp.where(mask, constant, x),
        lambda x: jnp.where(mask, nn.relu(x), 3.0 * x),
        lambda x: jax.lax.select_n(
            jnp.broadcast_to(which, x.shape), x, jnp.ones_like(x) * constant, 2.0 * x
        ),
    ):
        np.testing.assert_array_equal(evaluate(trace(implicit()(fn), x), x), implicit()(fn)(x))


def test_a_choice_that_differs_between_images_is_refused():
    with pytest.raises(UnsupportedOperation, match="differs between the images"):
        trace(lambda x: jnp.where(jnp.arange(x.shape[0])[:, None] > 2, x, 0.0), jnp.zeros((1, 4)))


# --- Weights that are not finite ------------------------------------------------------------------


def _spoilt(part, key, value):
    """A network of convolution, batch norm and TCL with one weight of another value."""

    class Spoilt(nn.Module):
        @nn.compact
        def __call__(self, x):
            x = nn.Conv(3, (2, 2), name="conv")(x)
            x = nn.BatchNorm(use_running_average=True, name="norm")(x)
            return TCL(name="tcl")(x).reshape(x.shape[0], -1)

    x = jnp.zeros((1, 4, 4, 2))
    variables = Spoilt().init(jax.random.key(0), x)
    kind = "batch_stats" if key in ("mean", "var") else "params"
    array = variables[kind][part][key]
    variables[kind][part][key] = array.ravel().at[1 % array.size].set(value).reshape(array.shape)
    return lambda x: Spoilt().apply(variables, x), x


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize(
    ("part", "key", "names"),
    [
        (
            "conv",
            "kernel",
            r"the kernel of 'Spoilt/conv' .* at \[0, 0, 0, 1\], the first of 1 such",
        ),
        ("conv", "bias", r"the shift of 'Spoilt/conv.*' .* at \[0, 0, 1\]"),
        ("norm", "mean", r"the shift of 'Spoilt/norm.*' .* at \[0, 0, 1\]"),
        ("norm", "bias", r"the shift of 'Spoilt/norm.*' .* at \[0, 0, 1\]"),
        ("norm", "scale", r"the scale of 'Spoilt/norm.*' .* at \[0, 0, 1\]"),
    ],
)
def test_weights_that_are_not_finite_are_named_with_their_place(part, key, names, value):
    with pytest.raises(UnsupportedOperation, match=names) as refused:
        trace(*_spoilt(part, key, value))
    message = str(refused.value)
    assert str(abs(value)) in message and f"{__file__}:" in message
    assert "images" not in message and message.count("not finite") == 1


def test_a_variance_or_lambda_that_is_not_a_number_is_named():
    with pytest.raises(UnsupportedOperation, match=r"the scale of 'Spoilt/norm.*' is not finite"):
        trace(*_spoilt("norm", "var", np.nan))
    with pytest.raises(UnsupportedOperation, match="a λ is not a number"):
        trace(*_spoilt("tcl", "lam", np.nan))


@pytest.mark.parametrize("lam", [0.0, -1.0])
def test_a_lambda_that_is_no_bound_is_refused(lam):
    with pytest.raises(UnsupportedOperation, match="a λ is not above 0"):
        trace(lambda x: clip(nn.relu(x), lam), jnp.zeros((1, 4)))


def test_a_lambda_that_depends_on_the_input_is_refused():
    with pytest.raises(UnsupportedOperation, match="λ depends on the input"):
        trace(lambda x: clip(nn.relu(x), nn.relu(x) + 1.0), jnp.zeros((1, 4)))


@pytest.mark.parametrize(
    "fn, advice",
    [(lambda x: (x, x), r"; join them, as by .*, axis=1\)"), (lambda x: jnp.ones(3), "")],
    ids=["two", "constant"],
)
def test_a_function_that_returns_no_logits_is_refused(fn, advice):
    says = f"must return one array of logits, computed from its input, images first{advice}"
    with pytest.raises(UnsupportedOperation, match=f"{says}\\Z"):
        trace(fn, jnp.zeros((1, 4)))


def test_outputs_that_are_joined_as_advised_are_converted():
    def heads(x):
        heads = nn.relu(x)[:, :2].reshape(len(x), 2, 1), nn.relu(x) * 2.0
        return jnp.concatenate([a.reshape(len(a), -1) for a in heads], axis=1)

    x = jnp.asarray([[1.0, -1.0, 0.5, 2.0]])
    np.testing.assert_array_equal(evaluate(trace(heads, x), x), heads(x))
