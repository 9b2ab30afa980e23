"""What one run of a compiled program costs each device, read from what XLA has made of it."""

import math
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import numpy as np

from tcl_jax.errors import InputError

_COLLECTIVES = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")
_PASSES = {"high": 3, "highest": 6}
# They name what is there anyway: nothing is read or written for them.
_NAMES = ("parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all")

_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) (?:\(.*)?\{$")
_OPERATION = re.compile(
    r"^\s+(?:ROOT )?%?(?P<name>\S+) = (?P<type>\(.*?\)|\S+) (?P<kind>[a-z][a-z\-]*)"
    r"\((?P<operands>.*?)\)(?:, (?P<rest>.*))?$"
)
_ARRAY = re.compile(r"\b(pred|[a-z]+\d+)\w*\[([\d,]*)\](?:\{([^{}]*)\})?")


@dataclass(frozen=True)
class Exchange:
    """What devices tell each other in one run.

    Attributes:
        kind: of collective, as ``all-reduce``.
        times: how often.
        bytes: that one device gives, or is given, whichever is more.
    """

    kind: str
    times: int
    bytes: int


@dataclass(frozen=True)
class Program:
    """One run, on each device.

    Attributes:
        flops: products of convolutions and matrices, and their sums.
        passes: the same as a TPU's matrix units carry them out, which multiply bfloat16: a float32
            product takes 3 passes at high precision, and 6 at the highest.
        bytes: that its operations, one after another, read from the device's memory and write.
        memory: bytes of it that are taken at once.
        exchanges: of each kind.
        cycles: that the compiler expects the operations to take; 0 where it does not say.
    """

    flops: int
    passes: int
    bytes: int
    memory: int
    exchanges: tuple[Exchange, ...]
    cycles: int


def read(compiled: Any) -> Program:
    """The costs of a program.

    Args:
        compiled: a `jax.stages.Compiled`.

    >>> import jax, jax.numpy as jnp
    >>> from tcl_jax import programs
    >>> product = jax.jit(jnp.dot).lower(jnp.ones((8, 4)), jnp.ones((4, 2))).compile()
    >>> found = programs.read(product)
    >>> found.flops, found.bytes  # 2·8·4·2; 4·(8·4 + 4·2 + 8·2)
    (128, 224)
    """
    costs = _Costs(compiled.as_text()).total()
    memory = compiled.memory_analysis()
    return Program(
        flops=costs["flops"],
        passes=costs["passes"],
        bytes=costs["bytes"],
        memory=memory.argument_size_in_bytes
        + memory.output_size_in_bytes
        - memory.alias_size_in_bytes
        + memory.temp_size_in_bytes
        + memory.generated_code_size_in_bytes,
        exchanges=tuple(
            Exchange(kind, costs[kind], costs[f"bytes of {kind}"])
            for kind in _COLLECTIVES
            if costs[kind]
        ),
        cycles=costs["cycles"],
    )


class NoRoom(Exception):
    """A program takes more of a device's memory than there is, both in bytes."""

    def __init__(self, used: float, limit: float):
        super().__init__(f"{used / 2**30:.1f} of {limit / 2**30:.1f} GiB on each chip")
        self.used, self.limit = used, limit


def compiled(lowered: Any) -> Program:
    """What a program costs, compiled for the devices that it was lowered for.

    Args:
        lowered: a `jax.stages.Lowered`.

    Raises:
        NoRoom: it does not fit.
    """
    try:
        return read(lowered.compile())
    except jax.errors.JaxRuntimeError as error:
        # It says so in several ways, first what is needed and then what there is.
        sizes = re.findall(r"\b([\d.]+)([KMG])\b", str(error))
        if "RESOURCE_EXHAUSTED" not in str(error) or len(sizes) < 2:
            raise
        unit = {"K": 2**10, "M": 2**20, "G": 2**30}
        raise NoRoom(*(float(number) * unit[letter] for number, letter in sizes[:2])) from None


def of_batch(
    lowered: Callable[[int], Any],
    batch_size: int,
    *,
    multiple: int,
    fixed: float,
    where: str,
    otherwise: str,
) -> Program:
    """What a program of a batch costs.

    Args:
        lowered: the program, by batch size.
        batch_size: of the one.
        multiple: of which a batch has to be one.
        fixed: bytes that do not grow with it.
        where: the name of the devices.
        otherwise: what to do where no batch fits.

    Raises:
        InputError: it does not fit; with a batch that does, compiled to be sure.
    """
    try:
        return compiled(lowered(batch_size))
    except NoRoom as full:
        fitting = _fitting(lowered, batch_size, multiple, fixed, full)
        advice = f"{fitting} fit" if fitting else otherwise
        raise InputError(f"batch_size={batch_size} needs {full} of {where}: {advice}") from None


def _fitting(
    lowered: Callable[[int], Any], batch_size: int, multiple: int, fixed: float, full: NoRoom
) -> int | None:
    """A batch that fits where another does not; None where there is none."""
    while batch_size > multiple:
        # All else grows in proportion, but for what the compiler makes of it.
        part = min((full.limit - fixed) / (full.used - fixed), 1)
        batch_size = max(int(0.95 * part * batch_size) // multiple, 1) * multiple
        try:
            compiled(lowered(batch_size))
        except NoRoom as again:
            full = again
        else:
            return batch_size
    return None


def flops_as_written(lowered: Any) -> int:
    """Of a program before it is compiled, of any platform; loops of unknown length count once.

    Args:
        lowered: a `jax.stages.Lowered`.

    >>> import jax, jax.numpy as jnp
    >>> from tcl_jax import programs
    >>> programs.flops_as_written(jax.jit(jnp.dot).lower(jnp.ones((8, 4)), jnp.ones((4, 2))))
    128
    """
    return _Costs(lowered.as_text(dialect="hlo")).total()["flops"]


class _Costs:
    """Of a program in its text: the operations as they were scheduled, what is fused being one."""

    def __init__(self, text: str):
        self._operations: dict[str, list[re.Match[str]]] = defaultdict(list)
        self._types: dict[str, list[_Array]] = {}
        self._entry = within = ""
        for line in text.splitlines():
            if begun := _COMPUTATION.match(line):
                within = begun[2]
                self._entry = within if begun[1] else self._entry
            elif operation := _OPERATION.match(line):
                self._operations[within].append(operation)
                self._types[operation["name"]] = list(_arrays(operation["type"]))

    def total(self, computation: str | None = None) -> Counter[str]:
        """Of a computation; of the whole program if None."""
        costs: Counter[str] = Counter()
        for operation in self._operations[computation or self._entry]:
            costs.update(self._of(operation))
        return costs

    def _of(self, operation: re.Match[str]) -> Counter[str]:
        kind, rest = operation["kind"], operation["rest"] or ""
        if kind in _NAMES or kind.endswith(("-done", "-update")):
            return Counter()
        called: Counter[str] = Counter()
        for name in _computations(rest):
            called.update(self.total(name))
        if kind == "while":
            trips = self._trips(rest)
            return Counter({what: trips * cost for what, cost in called.items()})
        if kind in ("call", "conditional", "async-start"):
            return called
        results = self._types[operation["name"]]
        operands = self._operands(operation)
        begun = kind.removesuffix("-start")
        if begun != kind and begun not in _COLLECTIVES:
            # A copy that goes on beside other operations, maybe of a part, named with its source.
            one, other, *_ = results
            copied = min(one.bytes, other.bytes)
            return Counter({"bytes": copied * (one.in_memory + other.in_memory)})
        costs = Counter(
            bytes=sum(array.bytes for array in operands + results if array.in_memory),
            cycles=sum(map(int, re.findall(r'"estimated_cycles":"(\d+)"', rest))),
            # Of what is fused here nothing else goes to the memory.
            flops=called["flops"],
            passes=called["passes"],
        )
        if begun in _COLLECTIVES:
            given, taken = (sum(array.bytes for array in them) for them in (operands, results))
            costs.update({begun: 1, f"bytes of {begun}": max(given, taken)})
        if kind in ("convolution", "dot"):
            count = _of_dot if kind == "dot" else _of_convolution
            costs["flops"] = count(rest, *(array.sides for array in (*operands, *results)))
            asked = _found(r"operand_precision=\{(\w+)", rest) if operands[0].float32 else ""
            costs["passes"] = _PASSES.get(asked, 1) * costs["flops"]
        return costs

    def _trips(self, rest: str) -> int:
        """How often a loop is run; once where only its run shows that."""
        condition = self._operations[_found(r"condition=%?([^\s,]+)", rest)]
        limits = [o["operands"] for o in condition if o["kind"] == "constant"]
        known = _found(r'"known_trip_count":\{"n":"(\d+)"', rest) or "".join(limits)
        return int(known) if known.isdecimal() and len(limits) < 2 else 1

    def _operands(self, operation: re.Match[str]) -> list["_Array"]:
        names = re.findall(r"[\w.\-]+", operation["operands"])
        return [array for name in names for array in self._types.get(name, [])]


def _computations(rest: str) -> list[str]:
    """Those that an operation runs, but for the condition of a loop."""
    found = re.findall(r"\b(?:body|calls|to_apply|\w+_computations?)=(\{[^}]*\}|%?[^\s,]+)", rest)
    return [name for names in found for name in re.findall(r"[\w.\-]+", names)]


class _Array(NamedTuple):
    float32: bool
    sides: list[int]
    bytes: int
    """As it lies, the innermost sides filled up to whole tiles."""
    in_memory: bool
    """And not in what is nearer to the matrix units."""


def _arrays(type_: str) -> Iterator[_Array]:
    """Those of a type, which may be a tuple."""
    for dtype, dims, layout in _ARRAY.findall(type_):
        sides = [int(side) for side in dims.split(",") if side]
        filled = list(sides)
        if sides and (tile := re.search(r"T\((\d+)(?:,(\d+))?\)", layout)):
            innermost = [int(axis) for axis in layout.split(":")[0].split(",")]
            for axis, side in zip(
                innermost, [int(n) for n in tile.groups() if n][::-1], strict=False
            ):
                filled[axis] = -(-sides[axis] // side) * side
        bits = 8 if dtype == "pred" else int(re.sub(r"\D", "", dtype))
        yield _Array(
            dtype == "f32", sides, math.prod(filled) * bits // 8, not re.search(r"S\([^0]", layout)
        )


def _of_dot(rest: str, x: list[int], y: list[int], result: list[int]) -> int:
    """FLOPs of a product of matrices."""
    axes = _found(r"lhs_contracting_dims=\{([\d,]*)\}", rest)
    return 2 * math.prod(result) * math.prod(x[int(axis)] for axis in axes.split(",") if axis)


def _of_convolution(rest: str, x: list[int], kernel: list[int], result: list[int]) -> int:
    """FLOPs of a convolution, but for those with what it is padded or dilated with."""
    labels = _found(r"dim_labels=(\S+?)(?:,|$)", rest).replace("->", "_").split("_")
    before, window, after = (
        dict(zip(axes, sides, strict=True))
        for axes, sides in zip(labels, (x, kernel, result), strict=True)
    )
    how = dict(re.findall(r"(\w+)=([\d_x\-]+)", _found(r"window=\{([^}]*)\}", rest)))
    places = 1
    for axis in sorted(set(labels[0]) - {"b", "f"}):
        of = {what: values.split("x")[int(axis)] for what, values in how.items()}
        low, dilation = int(of.get("pad", "0").split("_")[0]), int(of.get("lhs_dilate", 1))
        steps = np.arange(after[axis]) * int(of.get("stride", 1)) - low
        at = steps[:, None] + np.arange(window[axis]) * int(of.get("rhs_dilate", 1))
        there = (at >= 0) & (at <= (before[axis] - 1) * dilation) & (at % dilation == 0)
        places *= int(np.count_nonzero(there))
    groups = int(_found(r"batch_group_count=(\d+)", rest) or 1)
    return 2 * places * before["b"] // groups * window["i"] * window["o"]


def _found(pattern: str, text: str) -> str:
    found = re.search(pattern, text)
    return found[1] if found else ""
