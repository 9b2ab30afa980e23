"""The metrics of a run: one JSON object a line, and the same as TensorBoard events."""

import json
import time
from pathlib import Path
from typing import Any

from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.summary import scalar

from tcl_jax.errors import InputError
from tcl_jax.record import whole

METRICS = "metrics.jsonl"
BOARD = "tensorboard"


class MetricsLog:
    """Appends records to `metrics.jsonl` and their numbers to TensorBoard.

    Args:
        workdir: the run's folder.
        last_step: what was written after this step is dropped, so that a resumed run's log is
            that of an uninterrupted one.
    """

    def __init__(self, workdir: Path, last_step: int):
        self.path = workdir / METRICS
        kept = [r for r in read(self.path) if r["step"] <= last_step] if self.path.exists() else []
        with whole(self.path) as file:
            file.writelines(json.dumps(r) + "\n" for r in kept)
        self._file = self.path.open("a", encoding="utf-8")
        # Not SummaryWriter: its thread dies where it cannot write, and all that waits for it hangs.
        (workdir / BOARD).mkdir(exist_ok=True)
        self._board = EventsWriter(str(workdir / BOARD / "events"))
        start = SessionLog(status=SessionLog.START)
        self._board.write_event(Event(step=last_step + 1, session_log=start))

    def __enter__(self) -> "MetricsLog":
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self._file.close()
        finally:
            self._board.close()

    def write(self, kind: str, step: int, values: dict[str, Any]) -> None:
        """Write one record: ``{"kind": kind, "step": step, **values}``."""
        self._file.write(json.dumps({"kind": kind, "step": step, **values}) + "\n")
        self._file.flush()
        for name, value in values.items():
            for leaf, number in value.items() if isinstance(value, dict) else [(None, value)]:
                tag = f"{kind}/{name}" if leaf is None else f"{name}/{leaf}"
                event = Event(wall_time=time.time(), step=step, summary=scalar(tag, number))
                self._board.write_event(event)
        self._board.flush()


def read(path: Path) -> list[dict[str, Any]]:
    """The records of a `metrics.jsonl`; a last line that was cut off in writing is left out.

    Raises:
        InputError: the file is missing, or a line before the last is damaged.
    """
    try:
        lines = path.read_bytes().splitlines()
    except FileNotFoundError:
        raise InputError(f"{path} is missing: {path.parent} holds no finished run") from None
    records = []
    for number, line in enumerate(lines, start=1):
        try:
            record = json.loads(line)
            int(record["step"])
            records.append(record)
        except (ValueError, KeyError, TypeError):
            if number < len(lines):
                raise InputError(f"{path} is damaged at line {number}: remove that line") from None
    return records
