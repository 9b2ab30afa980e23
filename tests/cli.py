"""The command lines as processes, for tests: started, waited for, interrupted."""

import functools
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
_SECONDS = 240


@dataclass(frozen=True)
class Finished:
    """What a command left behind on the terminal."""

    status: int
    out: str
    err: str
    seconds: float = 0.0


@functools.cache
def _compiled() -> str:
    """A folder for what XLA has compiled: most processes here compile the same."""
    return tempfile.mkdtemp(prefix="tcl-jax-compiled-")


def environment(**extra: str) -> dict[str, str]:
    """The caller's, without what would choose devices, verbosity or the terminal's size."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("JAX_", "XLA_", "TF_CPP_"))}
    compiled = {
        "JAX_COMPILATION_CACHE_DIR": _compiled(),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    return kept | {"JAX_PLATFORMS": "cpu", "COLUMNS": "100", **compiled, **extra}


def start(script: str, *arguments: object, **extra: str) -> subprocess.Popen:
    """Start `python SCRIPT.py ARGUMENTS` in a process of its own."""
    return subprocess.Popen(
        [sys.executable, str(ROOT / f"{script}.py"), *map(str, arguments)],
        env=environment(**extra),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process: subprocess.Popen) -> Finished:
    """Wait for the end of a process."""
    try:
        out, err = process.communicate(timeout=_SECONDS)
    finally:
        process.kill()
    return Finished(process.returncode, out, err)


def run(script: str, *arguments: object, **extra: str) -> Finished:
    """Run `python SCRIPT.py ARGUMENTS` to its end."""
    started = time.monotonic()
    done = finish(start(script, *arguments, **extra))
    return replace(done, seconds=time.monotonic() - started)


def succeed(script: str, *arguments: object, **extra: str) -> Finished:
    """Run a command that is to end with status 0."""
    done = run(script, *arguments, **extra)
    assert done.status == 0, done.err
    return done


def wait_until(condition: Callable[[], bool], process: subprocess.Popen) -> None:
    """Wait for something that a running process brings about."""
    patience = time.monotonic() + _SECONDS
    while not condition():
        assert process.poll() is None, f"ended too early: {process.communicate()}"
        assert time.monotonic() < patience, "nothing happened"
        time.sleep(0.01)


@dataclass(frozen=True)
class DigitsRun:
    """A short run on the digits, and what train.py printed."""

    folder: Path
    printed: Finished


@functools.cache
def _train(folder: Path, *options: str) -> DigitsRun:
    # Cached here, for a fixture imported by several modules is made once for each of them.
    printed = succeed("train", "digits-cnet", "--workdir", folder, "--epochs", "3", *options)
    return DigitsRun(folder, printed)


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> DigitsRun:
    """A network with TCL."""
    return _train(tmp_path_factory.getbasetemp() / "digits")


@pytest.fixture(scope="session")
def plain(tmp_path_factory: pytest.TempPathFactory) -> DigitsRun:
    """The same without TCL, for the baselines."""
    return _train(tmp_path_factory.getbasetemp() / "digits-plain", "--model.no-tcl")
