"""At a terminal and without one: Ctrl-C, closed pipes, letters that are not there, 80 columns."""

import ast
import io
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from cli import ROOT, environment, finish, run, start, succeeded
from cli import converted as converted
from cli import trained as trained
from hypothesis import given
from hypothesis import strategies as st

from tcl_jax.cli.options import command
from tcl_jax.letters import spelled
from tcl_jax.progress import Console
from tcl_jax.report import tables
from tcl_jax.report.layers import PARTS, AtLatency, Layer
from tcl_jax.report.names import shortened

ASCII = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
CLOSED = "error: the program that the output was piped into has ended: "


def python(code: str, *arguments: str, **how) -> subprocess.CompletedProcess:
    how = {"stdout": subprocess.PIPE, "env": environment(), **how}
    return subprocess.run(
        [sys.executable, "-c", code, *arguments],
        **{"cwd": ROOT, "stderr": subprocess.PIPE, "text": True, "timeout": 120, **how},
    )


# Sends itself Ctrl-C where a library is about to be imported; swallows what an import may raise.
INTERRUPTED = """
import importlib.abc, os, runpy, signal, sys, time

script, library = sys.argv[1:]

class Interrupt(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name == library:
            try:
                os.kill(os.getpid(), signal.SIGINT)
                time.sleep(60)
            except KeyboardInterrupt:
                raise ImportError(name)

sys.meta_path.insert(0, Interrupt())
sys.argv = [script]
runpy.run_path(script, run_name="__main__")
"""


@pytest.mark.parametrize(
    ("script", "library"),
    [
        ("train.py", "tyro"),
        ("convert.py", "jax"),
        ("simulate.py", "numpy"),
        ("tcl_jax/__main__.py", "tyro"),
    ],
)
def test_ctrl_c_while_libraries_are_imported(script, library):
    done = python(INTERRUPTED, str(ROOT / script), library)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "interrupted\n")


def test_a_process_in_the_background_goes_on_ignoring_ctrl_c():
    done = python(
        "import os, signal\n"
        "signal.signal(signal.SIGINT, signal.SIG_IGN)\n"
        "from tcl_jax.cli.terminal import ends_at_ctrl_c\n"
        "with ends_at_ctrl_c():\n"
        "    os.kill(os.getpid(), signal.SIGINT)\n"
        "print('went on')\n"
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "went on\n", "")


PRINTING = """
import os, sys
from tcl_jax.cli.terminal import reported_at_exit

with reported_at_exit():
    {what}
"""
TABLE = "from tcl_jax.report.tables import print_curve; print_curve([0.5], {'float32': 1}, [1], '')"


def unread() -> int:
    """The end to write to of a pipe that nobody reads."""
    reading, writing = os.pipe()
    os.close(reading)
    return writing


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("what", ["print('a table')", "print('help'); sys.exit(0)", TABLE])
def test_a_closed_pipe_is_told_in_one_sentence(what, unbuffered):
    pipe = unread()
    how = environment(PYTHONUNBUFFERED=unbuffered)
    done = python(PRINTING.format(what=what), stdout=pipe, env=how)
    os.close(pipe)
    assert done.returncode == 2
    assert done.stderr.startswith(CLOSED) and done.stderr.count("\n") == 1


def test_another_broken_pipe_is_not_taken_for_it():
    what = "r, w = os.pipe(); os.close(r); os.write(w, b'x')"
    done = python(PRINTING.format(what=what))
    assert done.returncode == 1
    assert done.stderr.endswith("BrokenPipeError: [Errno 32] Broken pipe\n")


def test_without_any_output_there_is_nothing_to_tell():
    command = ["bash", "-c", 'exec "$0" -c "$1" >&-', sys.executable]
    code = PRINTING.format(what="print('x')")
    done = subprocess.run([*command, code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")


def test_commands_in_a_terminal_without_our_letters(trained, converted):
    how = ("--snn", converted, "--timesteps", 4, "--images", 50, "--energy", "--output")
    done = succeeded(
        finish(start("simulate", trained.folder, *how, trained.folder / "ascii", **ASCII))
    )
    assert done.out.isascii() and done.err.isascii()
    assert "energy, uJ" in done.out
    framed = [line for line in done.out.splitlines() if line[0] in "|+"]
    assert framed and all(line[-1] == line[0] for line in framed)


def test_all_letters_of_messages_are_spelled():
    for path in [*(ROOT / "tcl_jax").rglob("*.py"), *ROOT.glob("*.py")]:
        if path.name != "cli.py":  # frames, which it takes away
            for text in _messages(path):
                assert "\\" in text or "\\" not in spelled(text, "ascii"), (path, text)


def _messages(path: Path) -> list[str]:
    """All strings of a module but its documentation."""
    nodes = list(ast.walk(ast.parse(path.read_text())))
    docs = {id(node.value) for node in nodes if isinstance(node, ast.Expr)}
    constants = [n for n in nodes if isinstance(n, ast.Constant) and id(n) not in docs]
    return [n.value for n in constants if isinstance(n.value, str)]


@given(st.text())
def test_what_is_spelled_can_be_printed_and_nothing_else_changes(text):
    plain = spelled(text, "ascii")
    assert all(ord(c) < 128 or "\udc80" <= c <= "\udcff" for c in plain)
    assert spelled(plain, "ascii") == plain
    assert not text.isascii() or plain == text


def test_names_that_are_no_text_are_printed_as_their_bytes():
    what = r"print(os.fsdecode(b'runs/\xff'), '\u03bb')"
    done = python(PRINTING.format(what=what), text=False, env=environment(**ASCII))
    assert (done.returncode, done.stdout) == (0, b"runs/\xff lambda\n")


NAMES = [
    f"ResNet/stage{stage}_block{block}/act{act}/tcl/neuron"
    for stage in (1, 2, 3)
    for block in (1, 2, 3)
    for act in (1, 2)
]


def cells(printed: str) -> list[list[str]]:
    rows = [line for line in printed.splitlines() if line.startswith(("│", "|"))]
    return [[cell.strip() for cell in row.replace("|", "│").split("│")[1:-1]] for row in rows]


@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
def test_tables_by_layer_tell_layers_and_columns_apart_at_80_columns(encoding, monkeypatch):
    out = io.TextIOWrapper(io.BytesIO(), encoding=encoding, errors="strict")
    monkeypatch.setattr(tables, "_console", Console(file=out, width=80))
    numbers = dict.fromkeys((*PARTS, "error"), 9.9999)
    at = {100: AtLatency(rate=0.123, saturated=1.0, **numbers)}
    layers = [Layer(name, 4096, 0.5, at, [], [], {}) for name in NAMES]
    tables.print_layers(layers, 100)
    out.seek(0)
    printed = out.read()
    assert max(map(len, printed.splitlines())) <= 80
    assert all(part in printed for part in (*PARTS, "rate", "dead", "saturated", "error"))
    names = [name.removeprefix("ResNet/").removesuffix("/tcl/neuron") for name in NAMES]
    assert [row[0] for row in cells(printed) if row[1:] == ["999.99"] * 4] == names
    assert [row[0] for row in cells(printed) if row[2:] == ["50.0%", "100.0%", "999.99"]] == names


paths = st.lists(st.sampled_from("abc"), min_size=1, max_size=4).map("/".join)


@given(st.lists(paths, unique=True, min_size=1))
def test_shortened_names_can_be_made_whole_again(names):
    heading, short = shortened(names, "…")
    whole = [heading.replace("…", s) if "/" in n else s for n, s in zip(names, short, strict=True)]
    assert whole == names
    assert len(set(short)) == len(names)


@pytest.mark.parametrize("activated", [True, False])
def test_commands_to_run_next_are_of_the_python_that_runs(activated, monkeypatch, tmp_path):
    python = Path(sys.executable)
    monkeypatch.setenv("PATH", str(python.parent if activated else tmp_path))
    monkeypatch.setattr(sys, "argv", ["../tcl jax/train.py"])
    monkeypatch.chdir(tmp_path)
    program, *rest = shlex.split(command("convert", "runs/it's (1)"))
    assert rest == ["../tcl jax/convert.py", "runs/it's (1)"]
    if activated and (python.parent / "python").resolve() == python.resolve():
        assert program == "python"
    else:
        assert program == sys.executable
    # As it was called itself, where it is installed as a command.
    monkeypatch.setattr(sys, "argv", [str(tmp_path / "tcl-train")])
    assert command("convert", "runs/a") == f"{tmp_path}/tcl-convert runs/a"
    (tmp_path / "tcl-convert").touch(mode=0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert command("convert", "runs/a") == "tcl-convert runs/a"
    monkeypatch.setattr(sys, "argv", ["train.py"])
    # Not by its whole path where a part is enough.
    monkeypatch.setattr(sys, "executable", str(tmp_path / ".venv" / "bin" / "python"))
    assert shlex.split(command("convert"))[0] == ".venv/bin/python"


@pytest.mark.parametrize(
    "name", ["train", *(pytest.param(n, marks=pytest.mark.long) for n in ("convert", "simulate"))]
)
def test_installed_commands_are_the_scripts(name, tmp_path):
    installed = Path(sys.executable).with_name(f"tcl-{name}")
    how = {"env": environment(COLUMNS="80"), "cwd": tmp_path, "capture_output": True}
    done = subprocess.run([installed, "--help"], text=True, timeout=60, **how)
    assert (done.returncode, done.stderr) == (0, "")
    script = succeeded(run(name, "--help", COLUMNS="80")).out
    assert done.stdout == script.replace(f"{name}.py", installed.name)
