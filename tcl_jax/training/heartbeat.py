"""Signs of life: how far a training is, and whether its process still lives.

A process that is killed, or aborted by a library, says nothing.  So a training keeps a lock on its
heartbeat, which the system takes back however the process ends, and writes there what it is at.
"""

import fcntl
import json
import os
import socket
import sys
import threading
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from tcl_jax.errors import InputError

HEARTBEAT = "heartbeat.json"
PATIENCE = 300.0
"""Seconds without a sign of life after which a training is taken to hang: a step of the largest
networks, compiled for the first time, takes less."""

Doing = Literal["starting", "training", "evaluating", "saving", "finished", "stopped", "failed"]
_ENDED = ("finished", "stopped", "failed")
_BYTES = 256
_EVERY = 1.0


@dataclass(frozen=True)
class Beat:
    """What a training last wrote.

    Attributes:
        step: the last step that ended.
        total_steps: the last that will be.
        doing: what it was at, or how it ended.
        time: when, in seconds since 1970.
        pid: its process.
        host: the machine of that process.
    """

    step: int
    total_steps: int
    doing: Doing
    time: float
    pid: int
    host: str


class Heartbeat:
    """A training's hold on its folder, and its signs of life; for ``with``.

    Args:
        workdir: the run's folder.
        total_steps: the last step.

    Raises:
        InputError: another process trains in the folder.
    """

    def __init__(self, workdir: Path, total_steps: int):
        path = workdir / HEARTBEAT
        self._file = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        free = _locked(self._file, fcntl.LOCK_EX, seconds=1.0)
        last = _read(path)
        if not free:
            os.close(self._file)
            who = f" (process {last.pid} on {last.host})" if last else ""
            raise InputError(
                f"{workdir} is in use by another training{who}: wait for it, stop it, or "
                "choose another folder"
            )
        self.died = last if last and last.doing not in _ENDED else None
        """The last sign of the training before in this folder, where it ended without a word."""
        self._ended = threading.Event()
        self._host = socket.gethostname()[:64]
        self._total_steps = total_steps
        self._step, self._doing, self._moved = 0, "starting", time.monotonic()
        self._written: float | None = None
        self._watch = threading.Thread(target=self._complain, daemon=True)
        self._watch.start()

    def __enter__(self) -> "Heartbeat":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._ended.set()
        self._watch.join()
        # Where nothing was begun, what is written there stays true.
        if self._written is not None:
            finished = self._doing == "finished"
            self.beat(self._step, "failed" if kind else "finished" if finished else "stopped")
        os.close(self._file)

    def beat(self, step: int, doing: Doing) -> None:
        """Say that something went on; written at most once a second, unless it is something new."""
        now = time.monotonic()
        old = self._written is not None and now - self._written < _EVERY and doing == self._doing
        self._step, self._doing, self._moved = step, doing, now
        if old:
            return
        self._written = now
        beat = Beat(step, self._total_steps, doing, time.time(), os.getpid(), self._host)
        # In place, for the lock is the file's; in one write, for it is read meanwhile.
        content = json.dumps(asdict(beat)).ljust(_BYTES - 1) + "\n"
        try:
            os.pwrite(self._file, content.encode(), 0)
        except OSError as error:
            print(f"warning: the heartbeat cannot be written: {error.strerror}", file=sys.stderr)

    def _complain(self) -> None:
        """Where nothing goes on, say so, and again after twice as long."""
        patience = PATIENCE
        while not self._ended.wait(min(PATIENCE / 10, 10.0)):
            silent = time.monotonic() - self._moved
            if silent < PATIENCE:
                patience = PATIENCE
            elif silent >= patience:
                patience *= 2
                print(
                    f"warning: nothing has moved for {silent:.0f} s, {self._doing} at step "
                    f"{self._step}: if it hangs, kill it and resume",
                    file=sys.stderr,
                )


def state(folder: Path, patience: float = PATIENCE) -> tuple[str, bool]:
    """What is known of a run's training: one sentence, and whether all is well with it.

    Args:
        folder: the run's folder.
        patience: seconds without a sign of life after which a living process is taken to hang.

    Raises:
        InputError: there is no heartbeat.
    """
    path = Path(folder) / HEARTBEAT
    beat = _read(path)
    if beat is None:
        raise InputError(f"{folder} has no {HEARTBEAT}: name the folder of a run")
    with path.open("rb") as file:
        alive = not _locked(file.fileno(), fcntl.LOCK_SH)  # free again as the file is closed
    silent = time.time() - beat.time
    # A lock on another machine's disk may not be seen from here.
    elsewhere = beat.host != socket.gethostname()[:64]
    where = f"step {beat.step} of {beat.total_steps}"
    when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(beat.time))
    if beat.doing in _ENDED:
        more = "" if beat.doing == "finished" else "; resume it"
        return f"{beat.doing} at {where}, {when}{more}", beat.doing != "failed"
    if not alive and (silent >= patience or not elsewhere):
        return f"died at {where}, {beat.doing}, {when}; resume it", False
    who = f"process {beat.pid}" + (f" on {beat.host}" if elsewhere else "")
    if silent >= patience:
        return f"hangs at {where}, {beat.doing}, for {silent:.0f} s ({who})", False
    return f"{beat.doing}, {where}, {silent:.0f} s ago ({who})", True


def _read(path: Path) -> Beat | None:
    try:
        return Beat(**json.loads(path.read_text(encoding="utf-8")))
    except (FileNotFoundError, ValueError, TypeError):
        return None


def _locked(file: int, how: int, seconds: float = 0.0) -> bool:
    """Try for a lock; not once only, for who looks whether it is free holds it for a moment."""
    until = time.monotonic() + seconds
    while True:
        try:
            fcntl.flock(file, how | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            if time.monotonic() >= until:
                return False
            time.sleep(0.05)
