"""The same graph in the form that a platform simulates fast."""

import math
from collections.abc import Callable, Iterable
from functools import singledispatch
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from tcl_jax import graph as g
from tcl_jax.graph.convolution import is_depthwise
from tcl_jax.graph.ops.base import Shape
from tcl_jax.graph.synapses import stored
from tcl_jax.simulation.costs import Costs, costs
from tcl_jax.simulation.neurons import NeuronModel
from tcl_jax.simulation.split import PLATFORMS, split
from tcl_jax.simulation.winograd import Winograd

Parts = dict[str, g.Kind]
"""Operations, one after the other; by name, the last one's is ''."""


class Form(NamedTuple):
    """A way to compute an operation.

    Attributes:
        name: what people call it.
        seconds: what it takes for an image, on one core.
        parts: makes the operations that do it.
    """

    name: str
    seconds: float
    parts: Callable[[], Parts]


def lower(
    graph: g.Graph, platform: str | None = None, neurons: NeuronModel | None = None
) -> g.Graph:
    """Replace what a platform runs slowly by what computes the same in less time.

    A convolution takes the form that needs the least time by `costs`: see `forms`.  It stays as it
    is on platforms of which nothing was measured.  Sums come in another order, so that membrane
    potentials may differ in their last bits.  Weights of bfloat16 are written in the float32 that
    they are multiplied in, once and not at every step; but for a TPU, which multiplies spikes with
    what it can do exactly in bfloat16: see `tcl_jax.simulation.split`.

    Args:
        graph: any.
        platform: ``cpu``, ``gpu`` or ``tpu``; JAX's default backend when None.
        neurons: what hidden neurons will be; None knows nothing of their spikes.

    Returns:
        A graph with the same neurons and the same outputs.  In Winograd's form weights take 16/9 of
        the memory, and in that of a map of the whole signal 64 MiB at most.

    >>> import jax, jax.numpy as jnp
    >>> from tcl_jax.conversion import trace
    >>> from tcl_jax.simulation import lower
    >>> def network(x):
    ...     return jax.lax.conv_general_dilated(
    ...         x, jnp.ones((3, 3, 1, 1)), (1, 1), "SAME",
    ...         dimension_numbers=("NHWC", "HWIO", "NHWC"))
    >>> graph = trace(network, jnp.zeros((1, 2, 2, 1)))
    >>> [type(node.op).__name__ for node in lower(graph, "cpu").nodes]
    ['Input', 'Reshape', 'Dense', 'Reshape', 'Output']
    """
    whole = jnp.issubdtype(graph.dtype, jnp.integer)
    if neurons and not whole and (platform or jax.default_backend()) in PLATFORMS:
        graph = split(graph, neurons)
    if any(leaf.dtype == jnp.bfloat16 for leaf in jax.tree.leaves(graph)):
        graph = stored(graph, graph.dtype)
    known = costs(platform)
    if known is None:
        return graph
    found = _found(graph, known)
    names = {node.name for node in graph.nodes}
    nodes: list[g.Node[g.Kind]] = []
    now: list[int] = []  # of every node of the graph, its number among the new ones
    for node in graph.nodes:
        inputs = tuple(now[i] for i in node.inputs)
        form = found.get(node.name)
        for what, op in form.parts().items() if form else [("", node.op)]:
            name = g.free(f"{node.name}/{what}", names) if what else node.name
            nodes.append(g.Node(op, inputs, name))
            inputs = (len(nodes) - 1,)
        now.append(len(nodes) - 1)
    return g.Graph(tuple(nodes))


def chosen(graph: g.Graph, platform: str | None = None) -> dict[str, str]:
    """By name of a convolution, the form that `lower` gives it; none where it changes nothing."""
    known = costs(platform)
    return {} if known is None else {name: f.name for name, f in _found(graph, known).items()}


def _found(graph: g.Graph, known: Costs) -> dict[str, Form]:
    """By name of a node that has forms, that which takes the least time."""
    shapes = list(g.shapes(graph).values())
    found = {}
    for number, node in enumerate(graph.nodes):
        sizes = (shapes[i] for i in (*node.inputs, number))
        if several := list(forms(node.op, known, *sizes)):
            found[node.name] = min(several, key=lambda form: form.seconds)
    return found


_ROWS = 16
"""Images, or steps of one, that share the weights: as many as a block has at best."""
_BYTES = 1 << 26
"""What a linear map of a whole signal may take."""


@singledispatch
def forms(op: g.Kind, known: Costs, *sizes: Shape) -> Iterable[Form]:
    """All forms of an operation, where there are several.  Of a convolution:

    - the convolution itself; XLA runs one whose window has more places than its map, as 3×3 on 2×2,
      up to 100 times slower than others on a CPU;
    - a linear map of the channels, of a window of one place;
    - Winograd's form, of a 3×3 window: 2.25 times fewer products, but more to move;
    - a linear map of the whole signal, of such slow ones: its zeros are multiplied, too.

    Args:
        op: of any kind.
        known: costs of the platform.
        sizes: shapes of what it reads, and last of its value.
    """
    return ()


@forms.register
def _(conv: g.Conv, known: Costs, before: Shape, after: Shape) -> Iterable[Form]:
    window, places = math.prod(conv.kernel.shape[:-2]), math.prod(before[:-1])
    sites, size = math.prod(after[:-1]), conv.kernel.dtype.itemsize
    products = sites * conv.kernel.size

    def form(
        name: str, seconds: float, weights: int, parts: Callable[[], Parts], *, within: int = 1
    ) -> Form:
        """With so many weights, within so many products."""
        times = 1 if weights * size / within <= known.cache else 2
        return Form(name, seconds + times * known.weight * size * weights / _ROWS, parts)

    crowded = places < window
    seconds = (known.crowded if crowded else known.convolution) * products
    if crowded and conv.groups > 1:
        seconds = known.crowded_output * math.prod(after)
    yield form("convolution", seconds, conv.kernel.size, lambda: {"": conv})
    if is_depthwise(conv.kernel, conv.padding, conv.groups):
        return  # a sum of shifted products, which nothing here surpasses
    if conv.groups == window == 1 and set(conv.strides) == {1} and before[:-1] == after[:-1]:
        seconds = known.product * products
        yield form("maps of channels", seconds, conv.kernel.size, lambda: {"": _by_place(conv)})
    if Winograd.computes(conv):
        multiplied, moved = Winograd.work(conv, after)
        seconds = known.product * multiplied + known.byte * size * moved
        weights = conv.kernel.size * 16 // 9
        yield form("Winograd's form", seconds, weights, lambda: {"": Winograd.of(conv)}, within=16)
    weights = math.prod(before) * math.prod(after)
    if crowded and weights * size <= _BYTES:
        seconds = known.product * weights
        yield form("maps of the whole", seconds, weights, lambda: _whole(conv, before, after))


def _by_place(conv: g.Conv) -> g.Dense:
    return g.Dense(conv.kernel.reshape(conv.kernel.shape[-2:]), conv.bias)


def _whole(conv: g.Conv, before: Shape, after: Shape) -> Parts:
    size = math.prod(before)
    matrix = jnp.asarray(_matrix(conv, before, after).reshape(size, -1))
    bias = conv.bias
    if bias is not None:
        bias = jnp.broadcast_to(bias, after).reshape(-1)
    return {"flat": g.Reshape((size,)), "product": g.Dense(matrix, bias), "": g.Reshape(after)}


def _matrix(conv: g.Conv, before: Shape, after: Shape) -> np.ndarray:
    """The weight between every input and every output, each with its position and channel.

    Made on the host: the convolution itself, run on a basis, would be the slow one.
    """
    kernel = np.asarray(conv.kernel)
    matrix = np.zeros((*before, *after), kernel.dtype)
    ins, outs = kernel.shape[-2], kernel.shape[-1] // conv.groups
    for to in np.ndindex(*after[:-1]):
        for tap in np.ndindex(*kernel.shape[:-2]):
            at = tuple(
                o * stride + k * dilation - low
                for o, stride, k, dilation, (low, _) in zip(
                    to, conv.strides, tap, conv.dilation, conv.padding, strict=True
                )
            )
            if not all(0 <= i < n for i, n in zip(at, before, strict=False)):
                continue
            for group in range(conv.groups):
                seen = slice(group * ins, (group + 1) * ins)
                made = slice(group * outs, (group + 1) * outs)
                matrix[(*at, seen, *to, made)] = kernel[(*tap, slice(None), made)]
    return matrix
