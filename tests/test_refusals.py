"""What no spiking network can do is refused, with the user's own line."""

import inspect
import re
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest

from tcl_jax import InputError, clip
from tcl_jax.conversion import UnsupportedOperation, trace


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
    return jnp.where(jnp.arange(4) > 1, x, 0.0)  # here


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
        (_gelu, "a power of the signal is not affine"),
        (_exact_gelu, "gelu?) is no ReLU (use tcl_jax.TCL)"),
        (_square, "not affine"),
        (_power, "not affine"),
        (_tanh, "tanh is no ReLU (use tcl_jax.TCL)"),
        (_sigmoid, "sigmoid is no ReLU"),
        (_softmax, ""),
        (_clip_alone, "clip without a ReLU before it (write clip(nn.relu(x), lam), or use TCL)"),
        (_attention, "the product of two signals is not affine (attention?)"),
        (_leaky, "max of the signal with something other than 0 is no ReLU"),
        (_divided, "division by the signal is not affine"),
        (_jitted_by_jax, "a choice between values is not affine"),
        (_over_the_batch, "a sum over the batch mixes images"),
    ],
)
@pytest.mark.parametrize("jitted", [False, True])
def test_refused_with_file_and_line(fn, says, jitted):
    with pytest.raises(UnsupportedOperation) as refused:
        trace(jax.jit(fn) if jitted else fn, jnp.zeros((1, 4)))
    message = str(refused.value)
    assert f"{_line(fn)}: " in message
    assert says in message
    assert isinstance(refused.value, InputError)


def test_all_refusals_are_in_one_message():
    def network(x):
        return _max_pool(x).reshape(x.shape[0], 1) + jnp.sum(_tanh(x), 1, keepdims=True)

    with pytest.raises(UnsupportedOperation) as refused:
        trace(network, jnp.zeros((1, 4)))
    assert re.findall(rf"{re.escape(__file__)}:\d+", str(refused.value)) == [
        _line(_max_pool),
        _line(_tanh),
    ]


@pytest.mark.parametrize("lam", [0.0, -1.0])
def test_a_lambda_that_is_no_bound_is_refused(lam):
    with pytest.raises(UnsupportedOperation, match="a λ is not above 0"):
        trace(lambda x: clip(nn.relu(x), lam), jnp.zeros((1, 4)))


def test_a_lambda_that_depends_on_the_input_is_refused():
    with pytest.raises(UnsupportedOperation, match="λ depends on the input"):
        trace(lambda x: clip(nn.relu(x), nn.relu(x) + 1.0), jnp.zeros((1, 4)))


@pytest.mark.parametrize("fn", [lambda x: (x, x), lambda x: jnp.ones(3)], ids=["two", "constant"])
def test_a_function_that_returns_no_logits_is_refused(fn):
    with pytest.raises(UnsupportedOperation, match="must return one array of logits"):
        trace(fn, jnp.zeros((1, 4)))
