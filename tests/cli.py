"""The command lines as processes, for tests: started, waited for, interrupted."""

import functools
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
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


def devices(count: int) -> dict[str, str]:
    """What gives a command so many devices."""
    return {"XLA_FLAGS": f"{QUICKLY} --xla_force_host_platform_device_count={count}"}


COMPILED = "TCL_JAX_TESTS_COMPILED"
"""Names the folder for what XLA has compiled: most processes here compile the same."""


QUICKLY = " ".join(
    (
        "--xla_backend_optimization_level=0",
        "--xla_cpu_use_fusion_emitters=false",
        "--xla_llvm_disable_expensive_passes=true",
    )
)
"""Flags of XLA's for programs that run once: they are compiled in half the time."""


def environment(**extra: str | None) -> dict[str, str]:
    """The caller's, without what would choose devices, verbosity or the terminal's size.

    What is None is left out.
    """
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("JAX_", "XLA_", "TF_CPP_"))}
    compiled = {
        "JAX_COMPILATION_CACHE_DIR": f"{os.environ[COMPILED]}/commands",
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_TRACEBACK_IN_LOCATIONS_LIMIT": "0",
        "JAX_COMPILATION_CACHE_MAX_SIZE": str(2**30),  # with a limit comes a lock, of filelock
    }
    here = {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": QUICKLY, "COLUMNS": "100"}
    chosen = kept | here | compiled | extra
    return {name: value for name, value in chosen.items() if value is not None}


def start(script: str, *arguments: object, **extra: str | None) -> subprocess.Popen:
    """Start `python SCRIPT.py ARGUMENTS` by an interpreter of its own, which imports all anew."""
    return subprocess.Popen(
        [sys.executable, str(ROOT / f"{script}.py"), *map(str, arguments)],
        env=environment(**extra),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process: "subprocess.Popen | Begun") -> Finished:
    """Wait for the end of a process."""
    try:
        out, err = process.communicate(timeout=_SECONDS)
    finally:
        process.kill()
    return Finished(process.returncode, out, err)


class _Server:
    """What starts the commands of one thread, for as long as that lives (preloaded.py)."""

    def __init__(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, str(ROOT / "tests" / "preloaded.py")],
            env=environment(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def ask(self, what: dict) -> int | None:
        self.process.stdin.write(json.dumps(what) + "\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())

    def __del__(self) -> None:
        with self.process:  # closes its input, which ends it, and waits
            pass


class _File:
    """Where a command writes what it says."""

    def __init__(self) -> None:
        self._file = tempfile.NamedTemporaryFile()  # noqa: SIM115
        self.name = self._file.name

    def read(self) -> str:
        with self._file:
            return self._file.read().decode()


class _Pipe:
    """The same, which is no file and has no limit; to be read once the command has ended."""

    def __init__(self) -> None:
        self._out, self._in = os.pipe()
        self.name = f"/proc/{os.getpid()}/fd/{self._in}"

    def read(self) -> str:
        os.close(self._in)
        with open(self._out, encoding="utf-8") as file:
            return file.read()


_of_thread = threading.local()


class Begun:
    """A command that a server has started: as much of `subprocess.Popen` as tests need.

    With `room`, each of its files can have no more than so many bytes.
    """

    def __init__(self, script: str, *arguments: object, room: int | None = None, **extra: str):
        assert not any(name.startswith("JAX_") for name in extra), "read at import: use start()"
        if not hasattr(_of_thread, "server"):
            _of_thread.server = _Server()
        self._server = _of_thread.server
        self._out, self._err = (_Pipe() if room else _File() for _ in range(2))
        command = {
            "script": str(ROOT / f"{script}.py"),
            "arguments": list(map(str, arguments)),
            "environment": extra,
            "room": room,
            "out": self._out.name,
            "err": self._err.name,
        }
        self.returncode: int | None = None
        self.pid = self._server.ask(command)

    def poll(self) -> int | None:
        if self.returncode is None:
            self.returncode = self._server.ask({"poll": self.pid})
        return self.returncode

    def wait(self, timeout: float) -> int:
        patience = time.monotonic() + timeout
        while self.poll() is None:
            if time.monotonic() > patience:
                raise subprocess.TimeoutExpired(str(self.pid), timeout)
            time.sleep(0.005)
        return self.returncode

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def communicate(self, timeout: float = _SECONDS) -> tuple[str, str]:
        self.wait(timeout)
        return self._out.read(), self._err.read()


def run(script: str, *arguments: object, **extra: str) -> Finished:
    """Run `python SCRIPT.py ARGUMENTS` to its end."""
    started = time.monotonic()
    done = finish(Begun(script, *arguments, **extra))
    return replace(done, seconds=time.monotonic() - started)


def paste(line: str, **extra: str | None) -> Finished:
    """Run a command that was printed, as a user would: in a shell, in the same folder."""
    done = subprocess.run(
        ["bash", "-c", line],
        env=environment(**extra),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=_SECONDS,
    )
    return Finished(done.returncode, done.stdout, done.stderr)


def told_next(done: Finished) -> str:
    """The command that another ended with."""
    return done.out.splitlines()[-1].split("next: ")[1]


def succeed(script: str, *arguments: object, **extra: str) -> Finished:
    """Run a command that is to end with status 0."""
    return succeeded(run(script, *arguments, **extra))


def succeeded(done: Finished) -> Finished:
    assert done.status == 0, done.err
    return done


_PAGE = (ROOT / "docs" / "pods.md").read_text(encoding="utf-8").splitlines()


def commands(begin: str, words: str = "", **filled: object) -> list[list[object]]:
    """The arguments of commands of docs/pods.md.

    Args:
        begin: with what they do, as ``train.py``.
        words: that are to be in the line, too.
        filled: what stands for its words in capitals, one thing or a list.
    """
    begin = f"python {begin} "
    lines = [li.removeprefix(begin).split() for li in _PAGE if li.startswith(begin) and words in li]

    def fill(word: str) -> list[object]:
        value = filled.get(word.replace("HOST:PORT", "WHERE"), word)
        return value if isinstance(value, list) else [value]

    return [[argument for word in line for argument in fill(word)] for line in lines]


def wait_until(condition: Callable[[], bool], process: subprocess.Popen | Begun) -> None:
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
def train(folder: Path, *options: str) -> DigitsRun:
    # Cached here, for a fixture imported by several modules is made once for each of them.
    return DigitsRun(
        folder, succeed("train", "digits-cnet", "--workdir", folder, "--epochs", "3", *options)
    )


def alone(run: Path, folder: Path) -> Path:
    """A run in another folder, without its spiking networks, of which tests make several."""
    spiking = [path.parent.name for path in run.glob("*/graph.json")]
    return Path(shutil.copytree(run, folder, ignore=lambda *_: spiking))


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> DigitsRun:
    """A network with TCL."""
    return train(tmp_path_factory.getbasetemp() / "the digits (1)")


@functools.cache
def _convert(folder: Path, name: str) -> str:
    succeed("convert", folder, "--snn", name, "--report-images", 0)
    return name


@pytest.fixture(scope="session")
def converted(trained: DigitsRun) -> str:
    """The name of that network's spiking form, made without a report."""
    return _convert(trained.folder, "snn-shared")


@pytest.fixture(scope="session")
def plain(tmp_path_factory: pytest.TempPathFactory) -> DigitsRun:
    """The same without TCL, for the baselines."""
    return train(tmp_path_factory.getbasetemp() / "digits-plain", "--model.no-tcl")
