"""What the command lines share: options, one sentence for each mistake, and what to run next."""

import contextlib
import difflib
import io
import itertools
import re
import shlex
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, TypeVar

import tyro

from tcl_jax.errors import InputError

T = TypeVar("T")

Folder = Annotated[Path | None, tyro.conf.arg(metavar="PATH", help_behavior_hint="")]
"""A folder that may be left out; the help says what is taken then."""
Whole = Annotated[int | None, tyro.conf.arg(metavar="INT", help_behavior_hint="")]
"""Likewise a whole number."""

# As tyro's help calls them; the list comes first, for it contains the word of its elements.
_KINDS = {"[FLOAT": "numbers", "INT": "a whole number", "FLOAT": "a number", "PATH": "a path"}


def program() -> str:
    """What runs, as its help calls it: the script, or the installed command."""
    return Path(sys.argv[0]).name


def preset_and_options(presets: Mapping[str, Any]) -> tuple[str, list[str]]:
    """Split the command line into the preset's name, which comes first, and the rest.

    Raises:
        InputError: no preset is named.
    """
    prog, arguments = program(), sys.argv[1:]
    if arguments and arguments[0] in ("-h", "--help"):
        print(f"usage: {prog} PRESET [--option value ...]\n\npresets:")
        print("\n".join(f"  {name}" for name in presets))
        print(f"\n{prog} PRESET --help lists the options and the preset's settings.")
        raise SystemExit(0)
    if not arguments or arguments[0].startswith("-"):
        raise InputError(f"name a preset first, as in '{prog} {next(iter(presets))}'")
    return arguments[0], arguments[1:]


def check_options(
    kind: type[T],
    default: T | None = None,
    arguments: Sequence[str] | None = None,
    *,
    prog: str | None = None,
    instead: Mapping[str, str] | None = None,
) -> T:
    """Parse options by a dataclass.

    Args:
        kind: the dataclass.
        default: one of it, for what is not given; None where all has a default.
        arguments: those of the command line if None.
        prog: the program's name; `program` if None.
        instead: what to write for options that there are not, by these.

    Raises:
        InputError: an option is unknown, or its value does not fit.
    """
    prog = prog or program()
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    complaint = io.StringIO()
    defaults: dict[str, Any] = {} if default is None else {"default": default}
    try:
        with contextlib.redirect_stderr(complaint):
            options, unknown = tyro.cli(
                kind, args=arguments, prog=prog, return_unknown_args=True, **defaults
            )
    except SystemExit as error:
        if error.code in (0, None):
            raise
        if (ours := _ours(error)) is not None:
            raise ours from None
        sentence = _sentence(complaint.getvalue(), arguments)
        raise InputError(f"{sentence} (see {prog} --help)") from None
    if unknown:
        option = unknown[0].split("=")[0]
        close = difflib.get_close_matches(option, _options(kind), n=1, cutoff=0.5)
        hint = f": did you mean {close[0]}?" if close else ""
        if instead and option in instead:
            hint = f": write {instead[option]}"
        what = "unknown option" if unknown[0].startswith("-") else "nothing takes the argument"
        raise InputError(f"{what} {unknown[0]}{hint} ({prog} --help lists the options)")
    found: T = options
    return found


def command(name: str, *arguments: object) -> str:
    """What runs another of the command lines, as this one was run: for the same shell.

    A script is run by the Python that runs now, which has the libraries; the shell's own may not.
    """
    running = Path(sys.argv[0])
    if running.name.startswith("tcl-"):  # installed
        other = running.with_name(f"tcl-{name}")
        known = shutil.which(other.name) == str(other)
        return shlex.join([other.name if known else str(other), *map(str, arguments)])
    python, found = Path(sys.executable), Path(shutil.which("python") or "")
    # A virtual environment's is a link to the one that it was made with.
    if found.parent == python.parent and found.resolve() == python.resolve():
        python = Path("python")
    elif python.is_relative_to(Path.cwd()):
        python = python.relative_to(Path.cwd())
    return shlex.join([str(python), str(running.with_name(f"{name}.py")), *map(str, arguments)])


def in_options(error: InputError, kind: type) -> str:
    """An error's sentence, in which arguments are the options that give them.

    >>> from dataclasses import dataclass
    >>> @dataclass
    ... class Options:
    ...     batch_size: int = 100
    ...     resume: bool = False
    >>> in_options(InputError("is 0: give batch_size=64", "batch_size"), Options)
    '--batch-size is 0: give --batch-size 64'
    >>> in_options(InputError("there is a run: continue it with resume=True"), Options)
    'there is a run: continue it with --resume'
    """
    options = _options(kind)

    def option(name: str) -> str | None:
        spelled = f"--{name.replace('_', '-')}"
        return spelled if spelled in options else None

    def subject(name: str) -> str | None:
        within = [known for known in options if known.endswith(f".{name.replace('_', '-')}")]
        return option(name) or (within[0] if len(within) == 1 else None)

    def said(found: re.Match[str]) -> str:
        name, value = found[1], (found[2] or "").strip('="')
        # A single word is a word; with a dot, as optim.lr, it is a setting's name.
        if (spelled := option(name)) is None or not (value or "." in name):
            return found[0]
        return spelled if value in ("", "True") else f"{spelled} {value}"

    sentence = str(error)
    if error.argument and (spelled := subject(error.argument)):
        sentence = spelled + sentence.removeprefix(error.argument)
    return re.sub(r'(?<![\w:,./-])([a-z][a-z_.]*\b)(?!:)(="[^"]*"|=[\w.:/-]*\w)?', said, sentence)


def _ours(error: BaseException | None) -> InputError | None:
    """What a dataclass said of its values, which tyro reports as if it came from a library."""
    while error is not None and not isinstance(error, InputError):
        error = error.__context__
    return error


def _options(kind: type) -> list[str]:
    """All options of a dataclass, as its help spells them."""
    told = io.StringIO()
    with contextlib.redirect_stdout(told), contextlib.suppress(SystemExit):
        tyro.cli(kind, args=["--help"])
    return sorted(set(re.findall(r"--[a-z][a-z0-9.-]*", told.getvalue())))


def _sentence(box: str, arguments: Sequence[str]) -> str:
    """What a framed, wrapped complaint of tyro's says, in one sentence."""
    words = re.sub(r"[╭╮╰╯│─┌┐└┘]|\x1b\[[0-9;]*m", " ", box)
    words = re.split(r"For full helptext", " ".join(words.split()))[0]
    if match := re.search(r"Error parsing (\S+): .* Argument helptext: (.*)", words):
        option, described = match.groups()
        kind = next((k for name, k in _KINDS.items() if name in described), "another value")
        return f"{option} takes {kind}, got {_given(option, arguments)!r}"
    if match := re.search(r"invalid choice '(.*)' for argument '(\S+)'. .* \((.*)\)", words):
        value, option, choices = match.groups()
        return f"{option} must be one of {choices.replace(chr(39), '')}, got {value!r}"
    if match := re.search(r"Missing value for argument '(\S+)'", words):
        return f"{match[1]} needs a value"
    if match := re.search(r"Missing from .*?: (\S+) (.*?)\.? \(required\)", words):
        return f"{match[1]} is missing: {match[2]}"
    return words.strip(" .") or "bad options"


def _given(option: str, arguments: Sequence[str]) -> str:
    """The words that follow an option on the command line."""
    words = [w for a in arguments for w in (a.split("=", 1) if a.startswith("--") else [a])]
    after = words[words.index(option) + 1 :] if option in words else []
    return " ".join(itertools.takewhile(lambda w: not w.startswith("--"), after))
