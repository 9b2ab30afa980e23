"""What training survives: `python -m benchmarks.reliability` writes results/reliability.

Short trainings on the digits, of one or two processes on one machine, are killed at random times
and while a checkpoint is being written, and told to stop; each is resumed, by one process of two
devices or two of one in turn, and its log and all arrays of its last state compared, bit for bit,
with those of a training that nothing happened to. And files of checkpoints are damaged at random.
"""

import argparse
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "results" / "reliability"
SEED = 0
EPOCHS, STEPS_PER_EPOCH = 12, 22
SETTINGS = ("digits-cnet", "--epochs", EPOCHS, "--batch-size", 64, "--optim.ema", 0.9)
STEPS = EPOCHS * STEPS_PER_EPOCH
BOUND = 120.0
"""Seconds within which the others are to end once one is killed."""

Trial = dict[str, Any]
Part = Callable[[Path, int, float, random.Random], Iterator[Trial]]
"""Takes a training that nothing happened to, how many trials, and the seconds it trained."""


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--only", choices=PARTS, help="what is done anew (all); a record keeps the rest"
    )
    only = parser.parse_args().only
    from tcl_jax import provenance

    path = RESULTS / "reliability.json"
    record = json.loads(path.read_text(encoding="utf-8")) if only else {}
    with tempfile.TemporaryDirectory() as name:
        whole = Path(name) / "whole"
        both = start(whole, 2)
        until_begun(whole, both)
        started = time.monotonic()
        assert [process.wait() for process in both] == [0, 0]
        seconds = time.monotonic() - started
        for what in (only,) if only else PARTS:
            count, part = PARTS[what]
            rng = random.Random(f"{SEED} {what}")
            described = provenance.describe()
            trials = []
            for found in part(whole, count, seconds, rng):
                trials.append(found)
                print(f"{what} {len(trials)}/{count}: {found}", flush=True)
            record[what] = {**described, "seed": SEED, "trials": trials}
    record = {what: record[what] for what in PARTS}
    RESULTS.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    (RESULTS / "README.md").write_text(page(record), encoding="utf-8")
    return 0


def after(end: Callable[[Path, random.Random, float], Trial]) -> Part:
    """Trainings that end in some way, and are resumed."""

    def trials(whole: Path, count: int, seconds: float, rng: random.Random) -> Iterator[Trial]:
        for number in range(count):
            run = whole.parent / f"run-{number}"
            yield {**end(run, rng, seconds), **resumed(run, whole, 1 + number % 2)}
            shutil.rmtree(run)

    return trials


def start(run: Path, processes: int, *more: object) -> list[subprocess.Popen[bytes]]:
    """A training by as many processes, which have two devices together."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        address = f"127.0.0.1:{free.getsockname()[1]}"
    joined = ["--distributed", "--coordinator-address", address, "--num-processes", processes]
    begun = []
    for process in range(processes):
        which = [*joined, "--process-id", process] if processes > 1 else []
        command = ["train.py", *SETTINGS, "--workdir", run, *more, *which]
        with Path(f"{run}-{process}.log").open("wb") as log:
            begun.append(
                subprocess.Popen(
                    [sys.executable, *map(str, command)],
                    cwd=ROOT,
                    env={
                        **os.environ,
                        "JAX_PLATFORMS": "cpu",
                        "JAX_NUM_CPU_DEVICES": str(2 // processes),
                    },
                    stdout=log,
                    stderr=subprocess.STDOUT,
                )
            )
    return begun


def wait_until(condition: Callable[[], bool], processes: list[subprocess.Popen[bytes]]) -> None:
    while not condition() and all(process.poll() is None for process in processes):
        time.sleep(0.002)


def doing(run: Path) -> dict[str, Any]:
    """What a training was at, as far as it wrote that down."""
    beat = json.loads((run / "heartbeat.json").read_text(encoding="utf-8"))
    return {"doing": beat["doing"], "step": beat["step"]}


def until_begun(run: Path, processes: list[subprocess.Popen[bytes]]) -> None:
    """Wait until a training has begun to say what it does."""
    path = run / "heartbeat.json"
    wait_until(lambda: path.exists() and path.stat().st_size > 0, processes)


def killed(run: Path, rng: random.Random, seconds: float) -> Trial:
    """Kill one of two processes at a random time of the training."""
    both = start(run, 2)
    until_begun(run, both)
    time.sleep(rng.uniform(0, seconds))
    first = rng.randrange(2)
    both[first].kill()
    since = time.monotonic()
    found = {"process": first, **doing(run)}
    try:
        status = both[1 - first].wait(BOUND)
    except subprocess.TimeoutExpired:
        both[1 - first].kill()
        status = None
    return found | {"other_status": status, "other_seconds": time.monotonic() - since}


def killed_in_a_save(run: Path, rng: random.Random, seconds: float) -> Trial:
    """Kill a training while the files of a checkpoint are being written."""
    (only,) = start(run, 1, "--save-steps", 1)
    until_begun(run, [only])
    unfinished: list[str] = []
    wanted = rng.randrange(1, STEPS)

    def saving() -> bool:
        folder = run / "checkpoints"
        if not folder.exists() or doing(run)["step"] < wanted:
            return False
        unfinished[:] = [path.name for path in folder.glob(".*.new")]
        return bool(unfinished)

    wait_until(saving, [only])
    time.sleep(rng.uniform(0, 0.02))
    only.kill()
    only.wait()
    left = [path.name for path in (run / "checkpoints").glob(".*")]
    return {**doing(run), "unfinished": left}


def stopped(run: Path, rng: random.Random, seconds: float) -> Trial:
    """Tell one of two processes to stop at a random time of the training."""
    both = start(run, 2)
    until_begun(run, both)
    time.sleep(rng.uniform(0, seconds))
    told = rng.randrange(2)
    both[told].send_signal(signal.SIGTERM)
    since = time.monotonic()
    status = [process.wait() for process in both]
    log = Path(f"{run}-0.log").read_text(encoding="utf-8")
    ended = "to go on: " in log or "finished: " in log
    return {
        "process": told,
        **doing(run),
        "seconds": time.monotonic() - since,
        "well": status == [0, 0] and ended,
    }


def resumed(run: Path, whole: Path, processes: int) -> Trial:
    """Resume a training to its end, and compare it with one that nothing happened to."""
    steps = [int(path.name) for path in (run / "checkpoints").glob("[0-9]*")]
    for process in start(run, processes, "--resume"):
        process.wait()
    same = log_of(run) == log_of(whole) and arrays_of(run) == arrays_of(whole)
    return {"resumed_from": max(steps, default=0), "processes": processes, "same": same}


def log_of(run: Path) -> list[dict[str, Any]] | None:
    from tcl_jax.training.log import read

    if not (run / "metrics.jsonl").exists():
        return None
    return [{k: v for k, v in r.items() if k != "seconds"} for r in read(run / "metrics.jsonl")]


def arrays_of(run: Path) -> dict[str, Any] | None:
    """Layouts and checksums, as they were taken of the arrays before they were written."""
    path = run / "checkpoints" / str(STEPS) / "contents.json"
    if not path.exists():
        return None
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))["arrays"]
    return found


def _flip(file: Path, other: Path, rng: random.Random) -> None:
    content = bytearray(file.read_bytes())
    content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    file.write_bytes(content)


def _cut(file: Path, other: Path, rng: random.Random) -> None:
    file.write_bytes(file.read_bytes()[: rng.randrange(file.stat().st_size)])


def _zero(file: Path, other: Path, rng: random.Random) -> None:
    content = bytearray(file.read_bytes())
    first = rng.randrange(len(content))
    content[first : first + 512] = bytes(len(content[first : first + 512]))
    file.write_bytes(content)


def _delete(file: Path, other: Path, rng: random.Random) -> None:
    file.unlink()


def _delete_folder(file: Path, other: Path, rng: random.Random) -> None:
    shutil.rmtree(file.parent)


def _exchange(file: Path, other: Path, rng: random.Random) -> None:
    if not other.exists():  # names of files of arrays are random
        other = rng.choice(sorted(other.parent.iterdir()))
    shutil.copy(other, file)


DAMAGES = {
    "a bit flipped": _flip,
    "the file cut": _cut,
    "512 bytes zeroed": _zero,
    "the file deleted": _delete,
    "its folder deleted": _delete_folder,
    "that of another step": _exchange,
}


def damaged(whole: Path, count: int, seconds: float, rng: random.Random) -> Iterator[Trial]:
    """Damage a file of the newest checkpoint, and read the newest that is intact."""
    import jax
    import numpy as np

    from tcl_jax.runs.trained import open_run
    from tcl_jax.training import CHECKPOINTS, Checkpoints, optimizer
    from tcl_jax.training.checkpoint import MODEL, Damaged
    from tcl_jax.training.recorder import as_items
    from tcl_jax.training.step import init_state

    opened = open_run(whole)
    tx = optimizer.make(opened.config.optim, STEPS, opened.config.batch_size)
    like = as_items(
        jax.eval_shape(partial(init_state, opened.model, tx, opened.dataset.info, 0, average=True))
    )
    with Checkpoints(whole / CHECKPOINTS) as checkpoints:
        saved = {step: checkpoints.restore(step, like) for step in checkpoints.steps}
    before, newest = list(saved)[-2:]

    def same(a: Any, b: Any) -> bool:
        return jax.tree.all(jax.tree.map(np.array_equal, a, b))

    for _ in range(count):
        copy = Path(shutil.copytree(whole / CHECKPOINTS, whole.parent / "damaged"))
        files = sorted(path for path in (copy / str(newest)).rglob("*") if path.is_file())
        file = rng.choice([path for path in files if path.stat().st_size])
        how = rng.choice(list(DAMAGES))
        name = str(file.relative_to(copy / str(newest)))
        DAMAGES[how](file, copy / str(before) / name, rng)
        with Checkpoints(copy) as checkpoints:
            read = None
            try:
                read, state, _ = checkpoints.first_intact(
                    checkpoints.steps[::-1], partial(checkpoints.restore, like=like)
                )
                wrong = "" if same(state, saved[read]) else "another state"
                # Of the network alone, less is read, and it may well be intact.
                with suppress(Damaged):
                    network = checkpoints.restore(newest, {MODEL: like[MODEL]})
                    if not same(network[MODEL], saved[newest][MODEL]):
                        wrong = "another network"
            except Exception as error:  # whatever it is
                wrong = repr(error)
        shutil.rmtree(copy)
        yield {"file": name, "how": how, "read": read, "newest": newest, "wrong": wrong}


PARTS: dict[str, tuple[int, Part]] = {
    "worker killed": (20, after(killed)),
    "killed in a save": (20, after(killed_in_a_save)),
    "told to stop": (10, after(stopped)),
    "file damaged": (200, damaged),
}
"""What happens, how often, and the trials."""


def page(record: dict[str, Any]) -> str:
    from results.pages import table
    from tcl_jax import provenance

    def lines(head: tuple[str, ...], rows: list[tuple[Any, ...]]) -> str:
        return "\n".join(table(head, rows))

    *ends, damages = (part["trials"] for part in record.values())
    workers, saves, stops = ends
    rows = [
        (
            what,
            len(trials),
            sum(t["same"] for t in trials),
            max(t["step"] - t["resumed_from"] for t in trials),
        )
        for what, trials in zip(PARTS, ends, strict=False)
    ]
    ended = [t["other_seconds"] for t in workers if t["other_status"] is not None]
    unfinished = sum(bool(t["unfinished"]) for t in saves)
    well, heeded = sum(t["well"] for t in stops), max(t["seconds"] for t in stops)
    at = ", ".join(f"{doing} ({n})" for doing, n in Counter(t["doing"] for t in workers).items())
    kinds = []
    for how in (*DAMAGES, "all"):
        of = [d for d in damages if how in (d["how"], "all")]
        right = [d for d in of if not d["wrong"]]
        newest = sum(d["read"] == d["newest"] for d in right)
        kinds.append((how, len(of), newest, len(right) - newest, len(of) - len(right)))
    commits = [
        (what, provenance.short(part["commit"]), part["seed"]) for what, part in record.items()
    ]
    machines = "; ".join(sorted({provenance.machine(part) for part in record.values()}))
    return f"""# What training survives

Written by `python -m benchmarks.reliability`, which says what is done, on
{machines}.

Trainings of {STEPS} steps, {STEPS_PER_EPOCH} an epoch, and how many of those that were
resumed ended with the same log and last state in every bit as one that
nothing happened to:

{lines(("what happened", "trials", "the same", "most steps taken again"), rows)}

- One worker of two was killed, when they were
  {at}.
  The other ended by itself in {len(ended)} of {len(workers)}, within {max(ended, default=0):.1f} s.
- Of those killed in a save, {unfinished} of {len(saves)} left unfinished files behind.
- One of two processes was told to stop. Both ended with status 0 and named
  the command that goes on in {well} of {len(stops)}, within {heeded:.1f} s.

Damage to a file of the newest checkpoint, drawn at random, and what was
read: its state, where the file is not needed, or that of the one before:

{lines(("damage", "trials", "newest", "one before", "wrong"), kinds)}

{lines(("measured", "commit", "seed"), commits)}
"""


if __name__ == "__main__":
    sys.exit(main())
