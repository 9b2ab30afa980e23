"""The walk through a jaxpr that turns equations into nodes, and what it says of those it cannot."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core
from jaxtyping import Array

from tcl_jax import graph as g
from tcl_jax.clipping import CLIP_CALL
from tcl_jax.graph.nodes import free
from tcl_jax.tracing import advice
from tcl_jax.tracing.randomness import ELEMENTWISE, Drawn

# Of the significand, without the leading one: bfloat16 has the fewest that networks compute in.
FEWEST_BITS = 7

Rule = Callable[..., Any]
"""From the tracer, an equation and its inputs to a signal, a list of them, or `Refused`."""

_WHOLE = (
    "arithmetic on whole numbers wraps and rounds",
    "cast the images first, as in x.astype(jnp.float32)",
)
_RANDOM = ("each image meets random numbers of its own", "dropout? use inference mode")


@dataclass(frozen=True)
class Signal:
    """A value that depends on the input.

    Nodes keep the batch first and channels last whatever the function's own layout, so that its
    transpositions cost nothing.

    Attributes:
        node: number of the node that makes it.
        axes: for each axis of the traced value, that of the node's value; 0 is the batch's.
    """

    node: int
    axes: tuple[int, ...]

    @property
    def batch(self) -> int:
        """The traced value's axis of images."""
        return self.axes.index(0)


class Refused:
    """A value of which nothing is known, for what makes it was refused.

    Where it has a place for the batch and is no choice or count, a `Placeholder` stands for it, so
    that tracing finds what else is to be refused.
    """


@dataclass(frozen=True)
class Placeholder:
    """What a node does whose making was refused; no graph that is returned holds one."""

    shape: tuple[int, ...]


class Tracer:
    """The walk through a jaxpr: the nodes made so far, and what was refused."""

    def __init__(
        self,
        jaxpr: Any,
        batch: int,
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
        self.batch = batch
        self.nodes: list[g.Node[Any]] = []  # of the graph, and placeholders
        self.names: set[str] = set()
        self.shapes: dict[int, tuple[int, ...]] = {}  # of nodes that were reshaped
        self.reshaped: dict[int, int] = {}  # by node, what it is in another shape
        self.arrangements: dict[tuple[int, tuple[int, ...]], int] = {}  # nodes with axes reordered
        self.refusals: dict[tuple[str, str], advice.Reason] = {}  # by place, and function or reason
        self.calls: list[Any] = []  # the equations that surround the one at hand
        self.origins: dict[str, tuple[Any, ...]] = {}  # equations that a node was made of
        self.drawn = Drawn()
        self.bits = jnp.finfo(dtype).nmant  # the fewest that any signal has had

    def run(self, jaxpr: Any, consts: Any, args: list[Any]) -> list[Any]:
        env: dict[Any, Any] = dict(zip(jaxpr.constvars, consts, strict=True))
        env |= dict(zip(jaxpr.invars, args, strict=True))

        def read(var: Any) -> Any:
            if isinstance(var, core.Literal):
                return var.val
            # Of what has no numbers, as a margin of no width, nothing had to be computed.
            return env[var] if var.aval.size else np.zeros(var.aval.shape, var.aval.dtype)

        for eqn in _needed(jaxpr):
            found = self.equation(eqn, [read(v) for v in eqn.invars])
            env |= dict(zip(eqn.outvars, found, strict=True))
        return [read(v) for v in jaxpr.outvars]

    def equation(self, eqn: Any, values: list[Any]) -> list[Any]:
        name = eqn.primitive.name
        if eqn.params.get("name") == CLIP_CALL:
            name = CLIP_CALL
        if not any(isinstance(v, Signal | Refused) for v in values):
            return self.constant(eqn, values)
        if name not in self.takes_refused and any(isinstance(v, Refused) for v in values):
            return self.unknown(eqn, values)
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
        if isinstance(found, Refused):
            return self.unknown(eqn, values)
        if isinstance(found, list):
            return found
        return [found] * len(eqn.outvars)

    def unknown(self, eqn: Any, values: list[Any]) -> list[Any]:
        """What stands for the results of an equation that is not carried out."""
        batches = [v.batch for v in values if isinstance(v, Signal)]
        return [self._stand_in(var.aval, *batches[:1]) for var in eqn.outvars]

    def _stand_in(self, aval: Any, batch: int | None = None) -> Any:
        places = [a for a, size in enumerate(aval.shape) if size == self.batch]
        if batch not in places:
            batch = places[0] if len(places) == 1 else None
        if batch is None or not jnp.issubdtype(aval.dtype, jnp.floating):
            return Refused()
        rest = [a for a in range(len(aval.shape)) if a != batch]
        node = self.append(Placeholder(tuple(aval.shape[a] for a in rest)), (), "refused")
        return Signal(node, tuple(int(a) for a in np.argsort((batch, *rest))))

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
            found: list[Any] = self.rules[eqn.primitive.name](self, eqn, *values)
            return found
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

    def append(self, op: Any, inputs: tuple[int, ...], name: str) -> int:
        """A new node's number; its name, or where that is taken one made of it."""
        name = free(name, self.names)
        self.names.add(name)
        self.nodes.append(g.Node(op, inputs, name))
        return len(self.nodes) - 1

    def add(
        self, eqn: Any, kind: str, op: g.Kind, inputs: tuple[int, ...], axes: tuple[int, ...]
    ) -> Signal:
        """A new node, named by the scopes of the modules that surround it."""
        scopes = [str(where.source_info.name_stack) for where in (*self.calls, eqn)]
        scope = "/".join(filter(None, scopes))
        alone = scope and scope not in self.names
        number = self.append(op, inputs, scope if alone else f"{scope}/{kind}".strip("/"))
        self.check_finite(eqn, self.nodes[number])
        self.origins[self.nodes[number].name] = (eqn, *reversed(self.calls))
        return Signal(number, axes)

    def in_shape(self, eqn: Any, node: int, shape: tuple[int, ...]) -> int:
        """The node whose value is that of another in another shape, without the batch."""
        # What gives an axis of length one and takes it away again leaves no trace.
        before = self.reshaped.get(node)
        if before is not None and self.shapes.get(before) == shape:
            return before
        made = self.add(eqn, "reshape", g.Reshape(shape), (node,), ()).node
        self.reshaped[made] = node
        return made

    def arranged(self, x: Signal, axes: tuple[int, ...]) -> Signal:
        """The same traced value from a node whose axes lie as wanted, the batch's first."""
        if x.axes == axes:
            return x
        order = tuple(x.axes[axes.index(i)] for i in range(len(axes)))
        if (x.node, order) not in self.arrangements:
            name = f"{self.nodes[x.node].name}/" + "".join(map(str, order))
            transpose = g.Transpose(tuple(i - 1 for i in order[1:]))
            self.arrangements[x.node, order] = self.append(transpose, (x.node,), name)
        return Signal(self.arrangements[x.node, order], axes)

    def refuse(
        self, eqn: Any, why: str = "", instead: str = "", *, certain: bool = False
    ) -> Refused:
        """Refuse an equation.

        Args:
            eqn: the equation.
            why, instead: the reason, if it is not the primitive's own.
            certain: the reason is not to give way to one that is known of the function around it.
        """
        around = (eqn, *reversed(self.calls))
        function = "" if certain else advice.function_of(*around)
        reason = advice.of_primitive(eqn.primitive.name)
        if why:
            reason = advice.Reason(why, instead or advice.DEFAULT)
        reason = advice.of_function(function) or reason
        self.refusals.setdefault((advice.place_of(*around), function or reason.why), reason)
        return Refused()

    def check_finite(self, eqn: Any, node: g.Node[Any]) -> None:
        """Refuse weights that are not finite."""
        for path, value in jax.tree_util.tree_leaves_with_path(node.op):
            # Under an outer jit, weights may have no values yet; a threshold of ∞ is no clip.
            if isinstance(value, jax.core.Tracer) or isinstance(node.op, g.Population):
                continue
            array = np.asarray(value)
            finite = np.isfinite(array)
            if not finite.all():
                wrong = np.argwhere(~finite)
                first = tuple(wrong[0].tolist())
                self.refuse(
                    eqn,
                    f"the {path[-1].name} of {node.name!r} is not finite: {array[first]} at "
                    f"{list(first)}, the first of {len(wrong)} such among {array.size}",
                    "mend it, or give earlier weights if training diverged",
                    certain=True,
                )


def _needed(jaxpr: Any) -> list[Any]:
    """The equations that the results depend on, in their order."""
    found: list[Any] = []
    wanted = set(_with_numbers(jaxpr.outvars))
    for eqn in reversed(jaxpr.eqns):
        if not wanted.isdisjoint(_with_numbers(eqn.outvars)):
            found.append(eqn)
            wanted.update(_with_numbers(eqn.invars))
    return found[::-1]


def _with_numbers(variables: Any) -> list[Any]:
    return [v for v in variables if not isinstance(v, core.Literal) and v.aval.size]
