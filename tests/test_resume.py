"""Interrupted training: whatever ends it, resumed it goes on as if nothing had happened."""

import json
import random
import re
import shutil
import signal
import subprocess
from pathlib import Path

import jax
import numpy as np
import pytest
from cli import finish, run, start, succeed, wait_until
from cli import trained as trained

from tcl_jax.run import open_run
from tcl_jax.training.log import read

# 44 steps an epoch: the log of step 50 lies within the second, that of 100 within the third.
STEPS = 220
SETTINGS = ["digits-cnet", "--epochs", "5", "--batch-size", "32"]


def records(folder: Path) -> list[dict]:
    return [{k: v for k, v in r.items() if k != "seconds"} for r in read(folder / "metrics.jsonl")]


def checksums(folder: Path) -> dict[str, int]:
    """CRC-32 of every leaf of the last state: parameters, statistics, momentum, step, sums."""
    return json.loads((folder / "checkpoints" / str(STEPS) / "checksums" / "metadata").read_text())


def reached(folder: Path, step: int) -> bool:
    log = folder / "metrics.jsonl"
    return log.exists() and any(r["step"] >= step for r in read(log))


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def begin(folder: Path, *options: object) -> subprocess.Popen:
    return start("train", *SETTINGS, "--workdir", folder, *options)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("resume") / "uninterrupted"
    succeed("train", *SETTINGS, "--workdir", folder)
    return folder


def assert_same_run(folder: Path, uninterrupted: Path) -> None:
    """Bit for bit: losses, λ, accuracies of all epochs, and the whole final state."""
    assert records(folder) == records(uninterrupted)
    assert [r["step"] for r in records(folder)] == [44, 50, 88, 100, 132, 150, 176, 200, 220]
    assert checksums(folder) == checksums(uninterrupted)
    here, there = (open_run(f).variables for f in (folder, uninterrupted))
    assert jax.tree.all(jax.tree.map(np.array_equal, here, there))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_by_a_signal(number, uninterrupted, tmp_path):
    folder = tmp_path / "with a space"
    process = begin(folder)
    wait_until(lambda: reached(folder, 44), process)
    # Any moment will do: one in the middle of a step, an evaluation or a checkpoint.
    pause = random.uniform(0, 0.5)
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(pause)
    process.send_signal(number)
    done = finish(process)
    assert done.status == 130, (pause, done)
    assert done.err == ""
    (message,) = [li for li in done.out.splitlines() if li.startswith("stopped and saved at step")]
    step = int(message.removeprefix("stopped and saved at step ").split(";")[0])
    assert 44 <= step < STEPS
    assert (folder / "checkpoints" / str(step)).is_dir(), "the state was not saved"
    command = message.split("python train.py ")[1]
    assert command == f"digits-cnet --epochs 5 --batch-size 32 --workdir '{folder}' --resume"

    done = succeed("train", *SETTINGS, "--workdir", folder, "--resume")
    assert "finished:" in done.out
    assert_same_run(folder, uninterrupted)


def test_killed_between_checkpoints(uninterrupted, tmp_path):
    folder = tmp_path / "run"
    process = begin(folder)
    # Step 100 is logged and lost, for the last checkpoint is of step 88.
    wait_until(lambda: reached(folder, 100), process)
    process.kill()
    assert finish(process).status == -signal.SIGKILL
    assert not (folder / "checkpoints" / str(STEPS)).exists(), "it was killed too late"

    succeed("train", *SETTINGS, "--workdir", folder, "--resume")
    assert_same_run(folder, uninterrupted)


def test_killed_before_the_first_checkpoint(tmp_path):
    folder = tmp_path / "run"
    process = begin(folder)
    wait_until(lambda: (folder / "environment.json").exists(), process)
    process.kill()
    finish(process)
    done = run("train", *SETTINGS, "--workdir", folder, "--resume")
    assert done.status == 2
    assert done.err.startswith(f"error: {folder} has no checkpoint to resume from")
    assert "start again without --resume" in done.err


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_at_the_very_start(number, tmp_path):
    folder = tmp_path / "run"
    process = begin(folder)
    # The lock on it is the first thing in the folder.
    wait_until(lambda: (folder / "heartbeat.json").exists(), process)
    process.send_signal(number)
    done = finish(process)
    assert done.status == 130
    assert done.err == ""
    (step,) = re.findall(r"^stopped and saved at step (\d+);", done.out, re.M)
    assert (folder / "checkpoints" / step).is_dir(), "the state was not saved"


def test_other_settings_are_refused(trained):
    before = contents(trained.folder)
    options = ["--epochs", 3, "--optim.lr", 0.01, "--seed", 1, "--workdir", trained.folder]
    done = run("train", "digits-cnet", *options, "--resume")
    assert done.status == 2
    assert done.err == (
        f"error: {trained.folder} was trained with other settings (optim.lr: 0.05 ≠ 0.01; "
        "seed: 0 ≠ 1): resume with those, or choose another --workdir\n"
    )
    assert contents(trained.folder) == before


def test_a_run_is_not_overwritten(trained):
    before = contents(trained.folder)
    done = run("train", "digits-cnet", "--epochs", 3, "--workdir", trained.folder)
    assert done.status == 2
    assert done.err == (
        f"error: {trained.folder} holds a run already: continue it with --resume, or choose "
        "another --workdir\n"
    )
    assert contents(trained.folder) == before


def test_nothing_to_resume(tmp_path):
    done = run("train", "digits-cnet", "--workdir", tmp_path / "none", "--resume")
    assert done.status == 2
    assert done.err.startswith(f"error: {tmp_path / 'none'} is not a run")
    assert not (tmp_path / "none").exists()


def test_a_finished_run_is_left_alone(trained, tmp_path):
    folder = Path(shutil.copytree(trained.folder, tmp_path / "run"))
    before = contents(folder)
    done = succeed("train", "digits-cnet", "--epochs", 3, "--workdir", folder, "--resume")
    assert done.out == f"was finished already: {folder}; next: python convert.py {folder}\n"
    assert done.err == ""
    assert contents(folder) == before
