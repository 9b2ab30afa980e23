"""The walk through a jaxpr that turns equations into nodes, and what it says of those it cannot."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
import numpy as np

# jax.extend offers no way from an equation to its user's line; should this one go, lines are lost.
from jax._src import source_info_util
from jax.extend import core
from jaxtyping import Array

from tcl_jax import clipping
from tcl_jax.clipping import CLIP_CALL
from tcl_jax.conversion import graph as g
from tcl_jax.conversion.nodes import free
from tcl_jax.conversion.randomness import ELEMENTWISE, Drawn

# Of the significand, without the leading one: bfloat16 has the fewest that networks compute in.
FEWEST_BITS = 7

Rule = Callable[..., Any]
"""From the tracer, an equation and its inputs to a signal, a list of them, or `Refused`."""

DEFAULT_ADVICE = "build the network of affine maps with ReLU or TCL between them"
_NORM = "a norm of the data themselves? use batch norm in inference mode"
_WHOLE = (
    "arithmetic on whole numbers wraps and rounds",
    "cast the images first, as in x.astype(jnp.float32)",
)
_RANDOM = ("each image meets random numbers of its own", "dropout? use inference mode")
_COMPARISON = ("a comparison of the signal is not affine", "write a ReLU as nn.relu(x)")
_ADVICE = {
    "reduce_window_max": ("max-pooling is not affine", "use average pooling and train again"),
    "reduce_max": ("a maximum over the signal is not affine", "use an average and train again"),
    "argmax": ("argmax is not affine", "return the logits"),
    "erf": ("this activation (gelu?) is no ReLU", "use tcl_jax.TCL"),
    "erfc": ("this activation (gelu?) is no ReLU", "use tcl_jax.TCL"),
    "tanh": ("tanh is no ReLU", "use tcl_jax.TCL"),
    "logistic": ("sigmoid is no ReLU", "use tcl_jax.TCL"),
    "exp": ("exp (softmax?) is not affine", "return the logits without softmax"),
    "integer_pow": ("a power of the signal is not affine", DEFAULT_ADVICE),
    "square": ("a power of the signal is not affine", _NORM),
    "rsqrt": ("rsqrt is not affine", _NORM),
    "sqrt": ("sqrt is not affine", _NORM),
    "select_n": ("a choice between values is not affine", "dropout? use inference mode"),
    **dict.fromkeys(("gt", "ge", "lt", "le", "eq", "ne"), _COMPARISON),
    "cond": ("control flow depends on the data", "choose the branch outside the network"),
    "while": ("control flow depends on the data", "write the loop in Python, or as a scan"),
}


@dataclass(frozen=True)
class Signal:
    """A value that depends on the input.

    Nodes keep the batch first and channels last whatever the function's own layout, so that its
    transpositions cost nothing.

    Attributes:
        node: what makes it.
        axes: for each axis of the traced value, that of the node's value; 0 is the batch's.
    """

    node: str
    axes: tuple[int, ...]

    @property
    def batch(self) -> int:
        """The traced value's axis of images."""
        return self.axes.index(0)


class Refused:
    """The value of an operation that was refused, so that tracing finds all the others too."""


class Tracer:
    """The walk through a jaxpr: the nodes made so far, and what was refused."""

    def __init__(
        self,
        jaxpr: Any,
        dtype: Any,
        rules: dict[str, Rule],
        *,
        inlined: Any,
        takes_refused: Any,
        takes_whole: Any,
    ) -> None:
        # That of the whole function serves its parts, which have other arguments.
        self.debug_info = jaxpr.debug_info._replace(arg_names=None, result_paths=None)
        self.dtype = dtype
        self.rules, self.inlined = rules, inlined
        self.takes_refused, self.takes_whole = takes_refused, takes_whole
        self.nodes: dict[str, g.Node] = {}
        self.shapes: dict[str, tuple[int, ...]] = {}  # of nodes that were reshaped
        self.arrangements: dict[tuple[str, tuple[int, ...]], str] = {}  # nodes with axes reordered
        self.refusals: list[str] = []
        self.calls: list[Any] = []  # the equations that surround the one at hand
        self.origins: dict[str, tuple[Any, ...]] = {}  # equations that a node was made of
        self.drawn = Drawn()
        self.bits = jnp.finfo(dtype).nmant  # the fewest that any signal has had

    def run(self, jaxpr: Any, consts: Any, args: list[Any]) -> list[Any]:
        env: dict[Any, Any] = dict(zip(jaxpr.constvars, consts, strict=True))
        env |= dict(zip(jaxpr.invars, args, strict=True))
        for eqn in jaxpr.eqns:
            values = [v.val if isinstance(v, core.Literal) else env[v] for v in eqn.invars]
            env |= dict(zip(eqn.outvars, self.equation(eqn, values), strict=True))
        return [v.val if isinstance(v, core.Literal) else env[v] for v in jaxpr.outvars]

    def equation(self, eqn: Any, values: list[Any]) -> list[Any]:
        name = eqn.primitive.name
        if eqn.params.get("name") == CLIP_CALL:
            name = CLIP_CALL
        if not any(isinstance(v, Signal | Refused) for v in values):
            return self.constant(eqn, values)
        if name not in self.takes_refused and any(isinstance(v, Refused) for v in values):
            return [Refused()] * len(eqn.outvars)
        rule = self.rules.get(name)
        found: Any
        if name not in self.takes_whole and self.whole(eqn, values):
            found = self.refuse(eqn, *_WHOLE)
        elif name in (CLIP_CALL, *ELEMENTWISE) and self.random(values):
            found = self.refuse(eqn, *_RANDOM)
        else:
            found = self.refuse(eqn) if rule is None else rule(self, eqn, *values)
        for var in eqn.outvars:
            if jnp.issubdtype(var.aval.dtype, jnp.floating):
                self.bits = min(self.bits, jnp.finfo(var.aval.dtype).nmant)
        if isinstance(found, list):
            return found
        return [found] * len(eqn.outvars)

    def whole(self, eqn: Any, values: list[Any]) -> bool:
        """Whether a signal of whole numbers, as of pixels, is among what an equation reads."""
        pairs = zip(eqn.invars, values, strict=True)
        types = [v.aval.dtype for v, x in pairs if isinstance(x, Signal)]
        return not all(jnp.issubdtype(t, jnp.floating) for t in types)

    def random(self, values: list[Any]) -> bool:
        """Whether an image meets random numbers drawn for itself, where axes stand side by side."""
        x = next(v for v in values if isinstance(v, Signal))
        return any(
            x.batch - len(x.axes) + np.ndim(v) in self.drawn.axes(v)
            for v in values
            if v in self.drawn
        )

    def constant(self, eqn: Any, values: list[Any]) -> list[Any]:
        """Carry out one equation on constants."""
        if eqn.primitive.name in self.inlined and any(v in self.drawn for v in values):
            return self.rules[eqn.primitive.name](self, eqn, *values)
        read = {
            v: x for v, x in zip(eqn.invars, values, strict=True) if not isinstance(v, core.Literal)
        }
        alone = core.Jaxpr((), list(read), eqn.outvars, [eqn], debug_info=self.debug_info)
        made = list(core.jaxpr_as_fun(core.ClosedJaxpr(alone, ()))(*read.values()))
        self.drawn.follow(eqn, values, made)
        return made

    def inline(self, eqn: Any, jaxpr: Any, values: list[Any]) -> list[Any]:
        """Go through what a call holds."""
        # remat holds an open jaxpr, the others closed ones.
        jaxpr, consts = (jaxpr.jaxpr, jaxpr.consts) if hasattr(jaxpr, "jaxpr") else (jaxpr, ())
        self.calls.append(eqn)
        results = self.run(jaxpr, consts, values)
        self.calls.pop()
        return results

    def array(self, value: Any) -> Array:
        return jnp.asarray(value, self.dtype)

    def add(
        self, eqn: Any, kind: str, make: Callable[[str], g.Node], axes: tuple[int, ...]
    ) -> Signal:
        """A new node, named by the scopes of the modules that surround it."""
        scopes = [str(where.source_info.name_stack) for where in (*self.calls, eqn)]
        scope = "/".join(filter(None, scopes))
        alone = scope and scope not in self.nodes
        name = free(scope if alone else f"{scope}/{kind}".strip("/"), self.nodes)
        self.nodes[name] = make(name)
        self.origins[name] = (eqn, *reversed(self.calls))
        return Signal(name, axes)

    def arranged(self, x: Signal, axes: tuple[int, ...]) -> Signal:
        """The same traced value from a node whose axes lie as wanted, the batch's first."""
        if x.axes == axes:
            return x
        order = tuple(x.axes[axes.index(i)] for i in range(len(axes)))
        if (x.node, order) not in self.arrangements:
            name = free(f"{x.node}/" + "".join(map(str, order)), self.nodes)
            self.nodes[name] = g.Transpose(name, (x.node,), tuple(i - 1 for i in order[1:]))
            self.arrangements[x.node, order] = name
        return Signal(self.arrangements[x.node, order], axes)

    def refuse(self, eqn: Any, why: str = "", instead: str = "") -> Refused:
        place = place_of(eqn, *reversed(self.calls))
        name = eqn.primitive.name
        known_why, known_instead = _ADVICE.get(name, (f"{name} is not affine", DEFAULT_ADVICE))
        self.refusals.append(f"{place}: {why or known_why} ({instead or known_instead})")
        return Refused()


def place_of(*equations: Any) -> str:
    """The line of the user's code that an equation comes from, or else the calls around it.

    What JAX itself has jitted knows no line of the user; the call does.
    """
    frames = [
        frame
        for where in equations
        for frame in source_info_util.user_frames(where.source_info.traceback)
    ]
    libraries = ("/site-packages/flax/", "/site-packages/equinox/", clipping.__file__)
    frame = next((f for f in frames if not any(s in f.file_name for s in libraries)), None)
    return f"{frame.file_name}:{frame.start_line}" if frame else "unknown place"
