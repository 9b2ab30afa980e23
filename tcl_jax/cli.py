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


def preset_and_options(prog: str, presets: Mapping[str, Any]) -> tuple[str, list[str]]:
    """Split the command line into the preset's name, which comes first, and the rest.

    Raises:
        InputError: no preset is named.
    """
    arguments = sys.argv[1:]
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
    default: T | None,
    arguments: Sequence[str] | None = None,
    *,
    prog: str,
    instead: Mapping[str, str] | None = None,
) -> T:
    """Parse options by a dataclass.

    Args:
        kind: the dataclass.
        default: one of it, for what is not given; None where all has a default.
        arguments: those of the command line if None.
        prog: the program's name.
        instead: what to write for options that there are not, by these.

    Raises:
        InputError: an option is unknown, or its value does not fit.
    """
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
        sentence = (
            _ours(error) or f"{_sentence(complaint.getvalue(), arguments)} (see {prog} --help)"
        )
        raise InputError(sentence) from None
    if unknown:
        option = unknown[0].split("=")[0]
        close = difflib.get_close_matches(option, _options(kind), n=1, cutoff=0.5)
        hint = f": did you mean {close[0]}?" if close else ""
        if instead and option in instead:
            hint = f": write {instead[option]}"
        what = "unknown option" if unknown[0].startswith("-") else "nothing takes the argument"
        raise InputError(f"{what} {unknown[0]}{hint} ({prog} --help lists the options)")
    return options


def command(script: str, *arguments: object) -> str:
    """The command line that runs one of the scripts beside the running one, for the same shell.

    By the Python that runs now, which has the libraries; the shell's own may not.
    """
    python, found = Path(sys.executable), Path(shutil.which("python") or "")
    # A virtual environment's is a link to the one that it was made with.
    if found.parent == python.parent and found.resolve() == python.resolve():
        python = Path("python")
    elif python.is_relative_to(Path.cwd()):
        python = python.relative_to(Path.cwd())
    return shlex.join([str(python), str(Path(sys.argv[0]).with_name(script)), *map(str, arguments)])


def _ours(error: BaseException | None) -> str:
    """What a dataclass said of its values, which tyro reports as if it came from a library."""
    while error is not None and not isinstance(error, InputError):
        error = error.__context__
    return str(error or "")


def _options(kind: type) -> list[str]:
    """All options of a dataclass, as its help spells them."""
    return sorted(
        set(re.findall(r"--[a-z][a-z0-9.-]*", tyro.extras.get_parser(kind).format_help()))
    )


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
