"""Interrupted training: whatever ends it, resumed it goes on as if nothing had happened."""

import json
import os
import random
import re
import shlex
import shutil
import signal
import subprocess
from contextlib import contextmanager
from pathlib import Path

import jax
import numpy as np
import pytest
from cli import ROOT, Begun, finish, paste, run, succeed, succeeded, told_next, wait_until
from cli import trained as trained

from tcl_jax.cluster import everywhere
from tcl_jax.runs.trained import open_run
from tcl_jax.training import Checkpoints, loop
from tcl_jax.training import config as configs
from tcl_jax.training.heartbeat import state
from tcl_jax.training.log import read

# 44 steps an epoch: the log of step 50 lies within the second, that of 100 within the third.
EPOCHS, STEPS = 3, 132
SETTINGS = ["digits-cnet", "--epochs", EPOCHS, "--batch-size", 32]
# Ctrl-C is a failure to the shell that reads it; to a scheduler that asked for it, SIGTERM is none.
STATUS = {signal.SIGINT: 130, signal.SIGTERM: 0}


def records(folder: Path) -> list[dict]:
    return [{k: v for k, v in r.items() if k != "seconds"} for r in read(folder / "metrics.jsonl")]


def checksums(folder: Path) -> dict[str, int]:
    """CRC-32 of every leaf of the last state: parameters, statistics, momentum, step, sums."""
    contents = folder / "checkpoints" / str(STEPS) / "contents.json"
    arrays = json.loads(contents.read_text())["arrays"]
    return {name: array["crc32"] for name, array in arrays.items()}


def reached(folder: Path, step: int) -> bool:
    log = folder / "metrics.jsonl"
    return log.exists() and any(r["step"] >= step for r in read(log))


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def begin(folder: Path, *options: object) -> Begun:
    return Begun("train", *SETTINGS, "--workdir", folder, *options)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("resume") / "uninterrupted"
    succeed("train", *SETTINGS, "--workdir", folder)
    return folder


def assert_same_run(folder: Path, uninterrupted: Path) -> None:
    """Bit for bit: losses, λ, accuracies of all epochs, and the whole final state."""
    assert records(folder) == records(uninterrupted)
    assert [r["step"] for r in records(folder)] == [44, 50, 88, 100, 132]
    assert checksums(folder) == checksums(uninterrupted)
    here, there = (open_run(f).variables for f in (folder, uninterrupted))
    assert jax.tree.all(jax.tree.map(np.array_equal, here, there))


@pytest.mark.parametrize(
    "number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.long)]
)
def test_interrupted_by_a_signal(number, uninterrupted, tmp_path):
    folder = tmp_path / "with a space (2)"
    process = begin(folder)
    wait_until(lambda: reached(folder, 44), process)
    # Any moment will do: one in the middle of a step, an evaluation or a checkpoint.
    pause = random.uniform(0, 0.5)
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(pause)
    process.send_signal(number)
    done = finish(process)
    assert done.status == STATUS[number], (pause, done)
    assert done.err == ""
    (message,) = [li for li in done.out.splitlines() if li.startswith("stopped and saved at step")]
    step = int(message.removeprefix("stopped and saved at step ").split(";")[0])
    assert 44 <= step < STEPS
    assert (folder / "checkpoints" / str(step)).is_dir(), "the state was not saved"
    done = succeeded(paste(message.split("to go on: ")[1]))
    assert "finished:" in done.out
    assert_same_run(folder, uninterrupted)


@pytest.mark.parametrize(
    ("options", "last"),
    [
        pytest.param([], {88}, marks=pytest.mark.long),
        (["--save-steps", 30], {90, 120}),
    ],
)
def test_killed_between_checkpoints(options, last, uninterrupted, tmp_path):
    folder = tmp_path / "run"
    process = begin(folder, *options)
    # Step 100 is logged and lost, for no checkpoint is after it; one at 90 may be in the making.
    saved = folder / "checkpoints" / str(min(last))
    wait_until(lambda: reached(folder, 100) and saved.exists(), process)
    process.kill()
    assert finish(process).status == -signal.SIGKILL
    found = {int(path.name) for path in (folder / "checkpoints").glob("[0-9]*")}
    assert max(found) in last, "it was killed too late"

    succeed("train", *SETTINGS, "--workdir", folder, "--resume")
    assert_same_run(folder, uninterrupted)


def test_a_state_is_saved_once_the_last_is_old(monkeypatch):
    """By the clock of any process; what was asked for before a state was saved is done."""
    clock = [100.0]
    monkeypatch.setattr(loop.time, "monotonic", lambda: clock[-1])
    received: list[int] = []
    asked = loop._Asked(everywhere(), received, save_minutes=2)

    def at(seconds: float) -> tuple[bool, int]:
        clock.append(seconds)
        asked.read()
        return asked.to_save, asked.to_stop

    assert [at(t) for t in (100, 219)] == [(False, 0)] * 2
    assert [at(t) for t in (220, 230)] == [(True, 0)] * 2
    asked.saved()
    assert not asked.to_save
    received.append(signal.SIGTERM)
    assert [at(t) for t in (349, 350)] == [(False, signal.SIGTERM), (True, signal.SIGTERM)]


@pytest.mark.parametrize("option", ["--save-steps", "--save-minutes"])
def test_no_time_between_checkpoints(option, tmp_path):
    done = run("train", "digits-cnet", "--workdir", tmp_path / "run", option, 0)
    assert done.status == 2 and done.err.startswith(f"error: {option} must be ")
    assert not (tmp_path / "run").exists()


@pytest.mark.long
@pytest.mark.parametrize("left", ["config.json", "heartbeat.json"])
def test_killed_before_the_first_checkpoint(left, tmp_path, uninterrupted):
    folder = tmp_path / "run"
    process = begin(folder)
    wait_until(lambda: (folder / left).exists(), process)
    process.kill()
    finish(process)
    assert not any((folder / "checkpoints").glob("[0-9]*")), "it was killed too late"
    done = succeed("train", *SETTINGS, "--workdir", folder, "--resume")
    assert "\nit had saved no checkpoint: starting anew\n" in done.out
    assert_same_run(folder, uninterrupted)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_at_the_very_start(number, tmp_path):
    folder = tmp_path / "run"
    process = begin(folder)
    # The lock on it is the first thing in the folder.
    wait_until(lambda: (folder / "heartbeat.json").exists(), process)
    process.send_signal(number)
    done = finish(process)
    assert done.status == STATUS[number]
    assert done.err == ""
    (step,) = re.findall(r"^stopped and saved at step (\d+);", done.out, re.M)
    assert (folder / "checkpoints" / step).is_dir(), "the state was not saved"


def test_interrupted_before_the_first_step(uninterrupted, tmp_path, monkeypatch, capsys):
    """Step 0 is a checkpoint as any other: nothing starts anew."""

    @contextmanager
    def at_once():
        yield [signal.SIGTERM]

    monkeypatch.setattr(loop, "_interruptible", at_once)
    config = configs.read(uninterrupted / "config.json")
    for resume in (False, True):
        result = loop.fit(config, tmp_path, resume=resume)
        assert (result.step, result.stopped_by) == (0, signal.SIGTERM)
        assert (tmp_path / "checkpoints" / "0").is_dir()
        assert "starting anew" not in capsys.readouterr().out


@pytest.fixture(scope="module")
def uninterrupted_here(uninterrupted, tmp_path_factory) -> Path:
    """Trained in this process, whose devices are other ones."""
    folder = tmp_path_factory.mktemp("resume") / "here"
    loop.fit(configs.read(uninterrupted / "config.json"), folder)
    return folder


@pytest.mark.long
@pytest.mark.parametrize("epoch", [1, EPOCHS])
def test_interrupted_in_an_evaluation(epoch, uninterrupted_here, tmp_path, monkeypatch):
    """The state is saved before; what was not evaluated to the end is so when training goes on."""
    config = configs.read(uninterrupted_here / "config.json")
    folder, step = tmp_path / "run", 44 * epoch
    evaluated = loop.evaluate
    batches = 0  # 12 an evaluation

    def evaluate(*arguments, done):
        def interrupting():
            nonlocal batches
            batches += 1
            if batches == 12 * (epoch - 1) + 2:
                os.kill(os.getpid(), signal.SIGTERM)
            done()

        return evaluated(*arguments, done=interrupting)

    with monkeypatch.context() as patch:
        patch.setattr(loop, "evaluate", evaluate)
        result = loop.fit(config, folder)
    assert (result.step, result.stopped_by) == (step, signal.SIGTERM)
    assert batches == 12 * (epoch - 1) + 2, "it was evaluated to the end"
    assert (folder / "checkpoints" / str(step)).is_dir()
    assert [r["step"] for r in read(folder / "metrics.jsonl") if r["kind"] == "epoch"] == [
        44 * e for e in range(1, epoch)
    ]
    assert state(folder)[0].startswith(f"stopped at step {step} of {STEPS}, ")

    result = loop.fit(config, folder, resume=True)
    assert (result.step, result.stopped_by) == (STEPS, None)
    assert state(folder)[0].startswith(f"finished at step {STEPS} of {STEPS}, ")
    assert_same_run(folder, uninterrupted_here)


def test_a_damaged_checkpoint_is_passed_over(uninterrupted, tmp_path, caplog):
    """The one before it is read, with a sentence; training makes the lost ones anew."""
    folder = Path(shutil.copytree(uninterrupted, tmp_path / "run"))
    found = sorted(int(p.name) for p in (folder / "checkpoints").glob("[0-9]*"))
    assert found[-2:] == [88, STEPS]
    accuracy = folder / "checkpoints" / str(STEPS) / "accuracy.json"
    accuracy.rename(tmp_path / "accuracy.json")
    assert open_run(folder).step == 88
    (record,) = caplog.records
    assert record.message.endswith("the one of step 88 is read in its place")
    (tmp_path / "accuracy.json").rename(accuracy)
    contents = folder / "checkpoints" / str(STEPS) / "contents.json"
    contents.write_text(contents.read_text()[:100])
    assert open_run(folder).step == 88
    done = succeed("convert", folder, "--report-images", 0)
    (sentence,) = done.err.splitlines()
    assert sentence.endswith("the one of step 88 is read in its place")
    assert f"this is the network at step 88 of {STEPS}, not at the end of training" in done.out

    done = succeed("train", *SETTINGS, "--workdir", folder, "--resume")
    (sentence,) = done.err.splitlines()
    assert sentence.endswith("the one of step 88 is read in its place")
    assert "finished:" in done.out
    assert_same_run(folder, uninterrupted)
    assert (folder / "checkpoints" / f"damaged-{STEPS}").is_dir()
    assert "not at the end" not in succeed("convert", folder, "--report-images", 0).out


@pytest.mark.parametrize("gone", ["config.json", "checkpoints"])
def test_a_part_of_a_run_is_not_overwritten(gone, trained, tmp_path):
    folder = Path(shutil.copytree(trained.folder, tmp_path / "run"))
    (folder / gone).rename(tmp_path / gone)
    before = contents(folder)
    options = ["--epochs", 3, "--workdir", folder]
    whole = gone != "config.json"
    for resume in ([], ["--resume"]):
        done = run("train", "digits-cnet", *options, *resume)
        assert done.status == 2
        part = f"error: {folder} holds only a part of a run, config.json or checkpoints being gone"
        there = f"error: {folder} holds a run already"
        assert done.err.startswith(there if whole and not resume else part)
    assert contents(folder) == before


def test_a_training_state_of_another_version(trained, tmp_path):
    """Its network is read, whatever it was trained by; only training needs the rest."""
    folder = Path(shutil.copytree(trained.folder, tmp_path / "run"))
    variables = open_run(folder).variables
    shutil.rmtree(folder / "checkpoints")
    with Checkpoints(folder / "checkpoints") as checkpoints:
        checkpoints.save(66, {"model": variables, "training": {"ema": np.float32(0.9)}})
    assert jax.tree.all(jax.tree.map(np.array_equal, open_run(folder).variables, variables))
    done = run("train", "digits-cnet", "--epochs", 3, "--workdir", folder, "--resume")
    assert done.status == 2
    assert "/66 is of another version's training: at training/ema it holds float32[]" in done.err
    assert len(done.err.splitlines()) == 1


def test_other_settings_are_refused(trained):
    before = contents(trained.folder)
    options = ["--epochs", 3, "--optim.lr", 0.01, "--seed", 1, "--workdir", trained.folder]
    done = run("train", "digits-cnet", *options, "--resume")
    assert done.status == 2
    assert done.err == (
        f"error: {trained.folder} was trained with other settings (optim.lr: 0.05 ≠ 0.01; "
        "seed: 0 ≠ 1): resume with those, or choose another folder\n"
    )
    assert contents(trained.folder) == before


def test_a_run_is_not_overwritten(trained):
    before = contents(trained.folder)
    done = run("train", "digits-cnet", "--epochs", 3, "--workdir", trained.folder)
    assert done.status == 2
    assert done.err == (
        f"error: {trained.folder} holds a run already: continue it with --resume, or choose "
        "another folder\n"
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
    assert done.out.startswith(f"was finished already: {folder}; next: ")
    assert shlex.split(told_next(done))[1:] == [str(ROOT / "convert.py"), str(folder)]
    assert done.err == ""
    assert contents(folder) == before
