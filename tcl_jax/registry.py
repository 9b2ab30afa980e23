"""Things by name: a table for each kind of which there are several, and one way to write a choice.

A choice is a frozen dataclass whose fields are its options.  It is written as it is made in Python:

    Percentile(99.9, channel=True)    percentile:99.9/channel
    IF(v0=0.5, leak=0.1)              if:v0=0.5,leak=0.1

Whoever adds to a table registers one class; reading, printing, help and compilation follow from its
fields.
"""

import dataclasses
import difflib
import re
import types
from collections.abc import Callable
from typing import (
    Any,
    ClassVar,
    Generic,
    Literal,
    TypeVar,
    Union,
    get_args,
    get_origin,
    get_type_hints,
)

from tcl_jax.errors import InputError
from tcl_jax.pytrees import pytree

_T = TypeVar("_T")


class Registry(dict[str, _T], Generic[_T]):
    """What there is of one kind, by name.

    Args:
        kind: what it is to a user, as in ``network``.
        known: to begin with.

    >>> from tcl_jax.registry import Registry
    >>> colours = Registry("colour", {"red": 0xFF0000})
    >>> colours.register("blue")(0x0000FF)
    255
    >>> colours.find("rde")
    Traceback (most recent call last):
    tcl_jax.errors.InputError: unknown colour 'rde': did you mean 'red'?
    """

    def __init__(self, kind: str, known: dict[str, _T] | None = None):
        super().__init__(known or {})
        self.kind = kind

    def register(self, name: str) -> Callable[[_T], _T]:
        """Enters what is decorated or given; a name is taken once."""

        def enter(entry: _T) -> _T:
            if name in self:
                raise ValueError(f"there is a {self.kind} {name!r} already")
            self[name] = entry
            return entry

        return enter

    def find(self, name: str) -> _T:
        """What has this name.

        Raises:
            InputError: nothing has; with the names that are like it, or all that there are.
        """
        if name in self:
            return self[name]
        close = difflib.get_close_matches(name, self, n=2)
        meant = f"did you mean {' or '.join(map(repr, close))}?"
        hint = meant if close else f"choose from {self.usage()}"
        raise InputError(f"unknown {self.kind} {name!r}: {hint}")

    def usage(self) -> str:
        """All that can be written, for help and errors; but for variants, as ``x-short`` of x."""
        variants = {name for name in self for other in self if name.startswith(f"{other}-")}
        return ", ".join(name for name in self if name not in variants)


@dataclasses.dataclass(frozen=True)
class Choice:
    """Base of the frozen dataclasses in a table of choices; ``str`` gives the text that reads it.

    A field that may be given by position is written bare, one that is keyword-only by its name, and
    a true or false one as a suffix; what is at its default is left out.
    """

    name: ClassVar[str]
    """In its table, which sets it."""
    reference: ClassVar[str] = ""
    """Who it is from."""

    def __str__(self) -> str:
        by_place, by_name, suffixes = _options(type(self))
        given = {f.name: getattr(self, f.name) for f in (*by_place, *by_name, *suffixes)}
        while by_place and _same(given[by_place[-1].name], by_place[-1].default):
            by_place.pop()
        words = [_spelled(given[f.name]) for f in by_place] + [
            f"{f.name}={_spelled(given[f.name])}"
            for f in by_name
            if not _same(given[f.name], f.default)
        ]
        flags = "".join(f"/{f.name}" for f in suffixes if given[f.name])
        return self.name + (":" + ",".join(words) if words else "") + flags


_C = TypeVar("_C", bound=Choice)


class Choices(Registry[type[_C]], Generic[_C]):
    """Classes of choices, which texts stand for.

    Registered classes are pytrees.  Their numbers are leaves, so that one compiled program serves
    all values; what is no number, and a field with ``metadata={"static": True}``, is structure.

    >>> from dataclasses import dataclass, field
    >>> from tcl_jax.registry import Choice, Choices
    >>> CHEESES = Choices("cheese")
    >>> @CHEESES.register("gouda")
    ... @dataclass(frozen=True)
    ... class Gouda(Choice):
    ...     months: int
    ...     fat: float = field(default=0.48, kw_only=True)
    ...     smoked: bool = False
    >>> CHEESES.read("gouda:18,fat=0.5/smoked")
    Gouda(months=18, fat=0.5, smoked=True)
    >>> str(Gouda(6, smoked=True)), CHEESES.usage()
    ('gouda:6/smoked', 'gouda:MONTHS[,fat=0.48][/smoked]')
    """

    def register(self, name: str) -> Callable[[type[_C]], type[_C]]:
        """Enters a frozen dataclass, and makes it a pytree."""

        def enter(cls: type[_C]) -> type[_C]:
            cls.name = name
            data = [f.name for f in dataclasses.fields(cls) if _is_leaf(f, _types(cls)[f.name])]
            return super(Choices, self).register(name)(pytree(*data)(cls))

        return enter

    def read(self, text: str) -> _C:
        """The choice that a text stands for.

        Raises:
            InputError: there is none of that name, it has no such option, or a value does not fit.
        """
        head, *suffixes = text.split("/")
        name, colon, arguments = head.partition(":")
        cls = self.find(name)
        by_place, by_name, flags = _options(cls)
        values: dict[str, Any] = {}
        places = iter(by_place)
        try:
            for word in arguments.split(",") if colon else []:
                option, equals, value = word.rpartition("=")
                if not equals:
                    option = next((f.name for f in places), "")
                if option in values or option not in {f.name for f in (*by_place, *by_name)}:
                    raise InputError(f"{word!r} is no option of it")
                values[option] = _read(option, value, _types(cls)[option])
            for suffix in suffixes:
                if suffix in values or suffix not in {f.name for f in flags}:
                    raise InputError(f"{'/' + suffix!r} is no suffix of it")
                values[suffix] = True
            for f in by_place:
                if f.default is dataclasses.MISSING and f.name not in values:
                    raise InputError(f"it needs its {f.name}")
        except InputError as error:
            raise InputError(f"{self.kind} {text!r}: {error}; write {_usage(cls)}") from None
        try:
            return cls(**values)
        except InputError as error:
            raise InputError(f"{self.kind} {text!r}: {error}") from None

    def read_all(self, text: str) -> list[_C]:
        """The choices of a list, with commas between them, as there may be within them.

        Raises:
            InputError: as `read`; or two are the same.

        >>> from tcl_jax.calibration import NORMS
        >>> [str(norm) for norm in NORMS.read_all("tcl,percentile:99.9/channel,max")]
        ['tcl', 'percentile:99.9/channel', 'max']
        """
        words = text.split(",")
        texts = words[:1]
        for word in words[1:]:
            last = texts[-1]
            # What is within a choice comes after its colon, and before its suffixes.
            if re.split("[:/]", word)[0] in self or ":" not in last or "/" in last:
                texts.append(word)
            else:
                texts[-1] = f"{last},{word}"
        found = [self.read(one) for one in texts]
        for choice, one in zip(found, texts, strict=True):
            if found.count(choice) > 1:
                raise InputError(f"{self.kind} {one!r} is there more than once in {text!r}")
        return found

    def usage(self) -> str:
        return "; ".join(map(_usage, self.values()))

    def help(self) -> str:
        """All that can be written, and whom it is from."""
        return "; ".join(
            _usage(cls) + f" ({cls.reference})" * bool(cls.reference) for cls in self.values()
        )


_Fields = list["dataclasses.Field[Any]"]


def _options(cls: type[Choice]) -> tuple[_Fields, _Fields, _Fields]:
    """Fields that are given by place, by name, and as suffixes."""
    every = [f for f in dataclasses.fields(cls) if f.init]
    flags = [f for f in every if _types(cls)[f.name] == (bool,)]
    others = [f for f in every if f not in flags]
    return [f for f in others if not f.kw_only], [f for f in others if f.kw_only], flags


def _types(cls: type) -> dict[str, tuple[Any, ...]]:
    """Of every field the types, or the words, that it may be of."""
    found: dict[str, tuple[Any, ...]] = {}
    for name, hint in get_type_hints(cls).items():
        union = get_origin(hint) in (Union, types.UnionType)
        kinds = get_args(hint) if union else (hint,)
        found[name] = tuple(kind for kind in kinds if kind is not type(None))
    return found


def _is_leaf(field: "dataclasses.Field[Any]", kinds: tuple[Any, ...]) -> bool:
    return not field.metadata.get("static") and any(kind in (int, float) for kind in kinds)


def _read(option: str, value: str, kinds: tuple[Any, ...]) -> Any:
    (kind,) = kinds
    if get_origin(kind) is Literal:
        if value not in get_args(kind):
            raise InputError(f"its {option} is {' or '.join(get_args(kind))}, not {value!r}")
        return value
    try:
        return kind(value)
    except ValueError:
        what = "a whole number" if kind is int else "a number"
        raise InputError(f"its {option} is {what}, not {value!r}") from None


def _same(value: Any, default: Any) -> bool:
    return isinstance(value, int | float | str | None) and value == default


def _spelled(value: Any) -> str:
    # repr, as :g would round 99.99999 to 100.
    return repr(float(value)).removesuffix(".0") if isinstance(value, float) else str(value)


def _usage(cls: type[Choice]) -> str:
    by_place, by_name, flags = _options(cls)
    needed = [f.name.upper() for f in by_place if f.default is dataclasses.MISSING]
    free = [f.name.upper() for f in by_place if f.default is not dataclasses.MISSING]
    free += [
        f"{f.name}={_spelled(f.name.upper() if f.default is None else f.default)}" for f in by_name
    ]
    text = cls.name + (":" + ",".join(needed) if needed else "")
    if free:
        text += f"[{',' if needed else ':'}{','.join(free)}]"
    return text + "".join(f"[/{f.name}]" for f in flags)
