"""Why an operation is refused, and what to write instead: by primitive, and by library function.

A refusal must be true.  "Not affine" is said of what is known not to be, and of nothing else; where
another spelling has the same meaning, that spelling is what is advised.
"""

from pathlib import Path
from typing import Any, NamedTuple

# jax.extend offers no way from an equation to its user's line; should this one go, lines are lost.
from jax._src import source_info_util

from tcl_jax import clipping

DEFAULT = "build the network of affine maps with ReLU or TCL between them"
_TRAIN = "use tcl_jax.TCL and train again"
_LEAKY = "write it as nn.relu(x) - a * nn.relu(-x), a being its slope"
MASK = "multiply by a mask of zeros and ones, and add a constant"

CLAMP = "between l and u write l + clip(nn.relu(x - l), u - l)"
MAXIMUM = "write max(a, b) as b + nn.relu(a - b)"
MINIMUM = "write min(a, b) as b - nn.relu(b - a)"


class Reason(NamedTuple):
    """Why something is refused.

    Attributes:
        why: a clause.
        instead: what to do, as an imperative.
    """

    why: str
    instead: str = DEFAULT


_NORM = Reason("a norm of the data themselves is not affine", "use batch norm in inference mode")
_SOFTMAX = Reason("softmax is not affine", "return the logits, which have the same order")
_ATTENTION = Reason("attention multiplies signals with each other")
_COMPARISON = Reason(
    "a comparison of the signal is not continuous",
    "write a ReLU as nn.relu(x), and a leaky one of slope a as nn.relu(x) - a * nn.relu(-x)",
)
_ORDER = Reason("a choice by the signal's own order is not affine")

_PRIMITIVES = {
    "reduce_window_max": Reason(
        "max-pooling is not affine", "use average pooling and train again"
    ),
    "reduce_max": Reason(
        "a maximum over the signal is not affine",
        "use a mean and train again, or if it is a softmax return the logits",
    ),
    "exp": Reason(
        "exp is not piecewise linear", f"{_TRAIN}, or if it is a softmax return the logits"
    ),
    "reduce_min": Reason("a minimum over the signal is not affine", "use a mean and train again"),
    "argmax": Reason("argmax is not continuous", "return the logits"),
    "argmin": Reason("argmin is not continuous", "return the logits"),
    "abs": Reason("|x| is not affine", "write it as nn.relu(x) + nn.relu(-x)"),
    "clamp": Reason("a clamp is no ReLU", CLAMP),
    "logistic": Reason(
        "sigmoid is not piecewise linear", f"{_TRAIN}, or return the logits if it is the end"
    ),
    "integer_pow": Reason("a power of the signal is not affine"),
    "pow": Reason("a power of the signal is not affine"),
    "square": Reason("a power of the signal is not affine", "use batch norm if it is for a norm"),
    "cond": Reason("control flow depends on the data", "choose the branch outside the network"),
    "while": Reason(
        "control flow depends on the data", "write the loop in Python, or as a scan"
    ),
    **dict.fromkeys(
        ("fft", "triangular_solve", "linear_solve"),
        Reason("this is linear, but is not converted", "multiply by a constant matrix instead"),
    ),
    **dict.fromkeys(("gt", "ge", "lt", "le", "eq", "ne"), _COMPARISON),
    **{
        name: Reason(f"{name} is not continuous")
        for name in ("sign", "floor", "ceil", "round", "is_finite")
    },
    **dict.fromkeys(
        ("sort", "top_k", "cummax", "cummin", "reduce_window_min", "select_and_gather_add"),
        _ORDER,
    ),
    **{
        name: Reason(f"{name} is not piecewise linear", _TRAIN)
        for name in (
            "exp2", "log", "log1p", "expm1", "sin", "cos", "tan", "asin", "acos", "atan",
            "atan2", "sinh", "cosh", "tanh", "asinh", "acosh", "atanh", "erf", "erfc", "erf_inv",
            "lgamma", "digamma",
        )
    },
    **{
        name: Reason(f"{name} is not affine", "use batch norm if it is for a norm")
        for name in ("sqrt", "rsqrt", "cbrt")
    },
    **{
        name: Reason(f"{name} is not affine")
        for name in ("rem", "cumprod", "cumlogsumexp", "reduce_prod", "nextafter")
    },
}  # fmt: skip

# By the qualified name that Python gives the function, in JAX, Flax (Linen and NNX) or Equinox.
_FUNCTIONS = {
    **{
        name: Reason(f"{name.removesuffix('.__call__')} is not piecewise linear", _TRAIN)
        for name in (
            "gelu", "silu", "mish", "softplus", "soft_sign", "squareplus", "elu", "celu", "selu",
            "log_sigmoid",
        )
    },
    "sigmoid": _PRIMITIVES["logistic"],
    "hard_silu": Reason("hard_silu multiplies the signal with a part of itself", _TRAIN),
    "glu": Reason("glu multiplies signals with each other", _TRAIN),
    "leaky_relu": Reason("leaky_relu is no ReLU", _LEAKY),
    "PReLU.__call__": Reason("PReLU is no ReLU", _LEAKY),
    "hard_tanh": Reason("hard_tanh is no ReLU", "write it as clip(nn.relu(x + 1), 2.0) - 1"),
    "clip": Reason("jnp.clip with these bounds is no ReLU with a clip", CLAMP),
    "softmax": _SOFTMAX,
    "log_softmax": _SOFTMAX._replace(why="log_softmax is not affine"),
    "logsumexp": Reason("logsumexp is not affine", "return the logits"),
    **dict.fromkeys(
        ("LayerNorm.__call__", "RMSNorm.__call__", "GroupNorm.__call__", "InstanceNorm.__call__",
         "standardize", "std", "var", "norm"),
        _NORM,
    ),
    **dict.fromkeys(("median", "quantile", "percentile"), _ORDER),
    "remainder": Reason("a remainder is not continuous"),
    "BatchNorm.__call__": Reason(
        "batch norm takes its statistics from the batch, which mixes images",
        "use inference mode, as with use_running_average=True",
    ),
    **dict.fromkeys(
        ("dot_product_attention", "MultiHeadDotProductAttention.__call__",
         "MultiHeadAttention.__call__", "MultiheadAttention.__call__"),
        _ATTENTION,
    ),
}  # fmt: skip

_LIBRARIES = (
    "/site-packages/flax/",
    "/site-packages/equinox/",
    "/site-packages/jaxtyping/",  # whoever checks annotations has these around every call
    "/site-packages/beartype/",
    "<@beartype(",
    str(Path(__file__).parent),
)


def of_primitive(name: str) -> Reason:
    """Why a primitive that has no rule is refused."""
    unknown = f"{name} is an operation that is not known here"
    return _PRIMITIVES.get(name, Reason(unknown))


def of_function(name: str) -> Reason | None:
    """Why a function of a library is refused, where one reason holds for all that is in it."""
    return _FUNCTIONS.get(name)


def function_of(*equations: Any) -> str:
    """The outermost of the named library functions that the user's line calls, or nothing."""
    found = ""
    for where in equations:
        traceback = where.source_info.traceback
        for frame in traceback.frames if traceback else ():
            if _is_user(frame.file_name):
                return found
            if frame.function_name in _FUNCTIONS and frame.file_name != clipping.__file__:
                found = frame.function_name
    return found


def place_of(*equations: Any) -> str:
    """The line of the user's code that an equation comes from, or else the calls around it.

    What JAX itself has jitted knows no line of the user; the call does.
    """
    frames = (
        frame
        for where in equations
        for frame in source_info_util.user_frames(where.source_info.traceback)
    )
    frame = next((f for f in frames if _is_user(f.file_name)), None)
    return f"{frame.file_name}:{frame.start_line}" if frame else "the given function"


def _is_user(file: str) -> bool:
    return (
        source_info_util.is_user_filename(file)
        and file != clipping.__file__
        and not any(library in file for library in _LIBRARIES)
    )
