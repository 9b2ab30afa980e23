"""Signs of life: what is told of a training that goes on, ended, died or hangs."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from cli import ROOT, Begun, environment, finish, run, wait_until
from cli import trained as trained

from tcl_jax.__main__ import main
from tcl_jax.errors import InputError
from tcl_jax.training import heartbeat
from tcl_jax.training.heartbeat import HEARTBEAT, Heartbeat, state

LONG = ["digits-cnet", "--epochs", "1000", "--batch-size", "32"]


def status(*arguments: object) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "tcl_jax", "status", *map(str, arguments)],
        cwd=ROOT,
        env=environment(),
        capture_output=True,
        text=True,
    )


def last(folder: Path) -> dict:
    """What was last written; step 0 where nothing yet was."""
    path = folder / HEARTBEAT
    written = path.read_text() if path.exists() else ""
    return json.loads(written) if written else {"step": 0, "pid": None}


def test_a_training_tells_of_itself_until_it_is_killed(tmp_path):
    folder = tmp_path / "run"
    process = Begun("train", *LONG, "--workdir", folder)
    wait_until(lambda: last(folder)["step"] > 44, process)
    sentence, well = state(folder)
    assert well and "of 44000, " in sentence and f"(process {process.pid})" in sentence

    # A second training in the folder is refused, and disturbs nothing.
    before = last(folder)["step"]
    done = run("train", *LONG, "--workdir", folder, "--resume")
    assert done.status == 2
    assert done.err == (
        f"error: {folder} is in use by another training (process {process.pid} on "
        f"{socket.gethostname()}): wait for it, stop it, or choose another folder\n"
    )
    wait_until(lambda: last(folder)["step"] > before, process)
    assert last(folder)["pid"] == process.pid

    process.send_signal(signal.SIGSTOP)
    time.sleep(1.5)
    sentence, well = state(folder, patience=1.0)
    assert not well and sentence.startswith("hangs at step ")
    process.kill()
    finish(process)
    step = last(folder)["step"]
    sentence, well = state(folder)
    assert not well and sentence.startswith(f"died at step {step} of 44000, ")

    process = Begun("train", *LONG, "--workdir", folder, "--resume")
    wait_until(
        lambda: last(folder)["pid"] == process.pid and last(folder)["doing"] == "training", process
    )
    process.send_signal(signal.SIGTERM)
    done = finish(process)
    assert re.search(rf"^the training before died, [a-z]+ at step {step}$", done.out, re.M)
    sentence, well = state(folder)
    assert well and sentence.startswith("stopped at step ") and sentence.endswith("; resume it")


def test_status_of_several(trained, tmp_path, monkeypatch, capsys):
    died = tmp_path / "died"
    died.mkdir()
    with Heartbeat(died, 10) as beats:
        beats.beat(3, "evaluating")
        left = (died / HEARTBEAT).read_bytes()
    (died / HEARTBEAT).write_bytes(left)
    done = status(trained.folder, died)
    assert done.returncode == 1 and done.stderr == ""
    first, second = done.stdout.splitlines()
    assert first.startswith(f"{trained.folder}: finished at step 66 of 66, ")
    assert second.startswith(f"{died}: died at step 3 of 10, evaluating, ")
    monkeypatch.setattr(sys, "argv", ["tcl_jax", "status", str(trained.folder)])
    assert main() == 0
    # What is no run does not keep the others from being told of.
    sys.argv.insert(2, str(tmp_path))
    capsys.readouterr()
    with pytest.raises(InputError, match=f"^{tmp_path} has no {HEARTBEAT}: name the folder of a"):
        main()
    assert capsys.readouterr().out.startswith(f"{trained.folder}: finished")


def test_a_training_that_hangs_says_so(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(heartbeat, "PATIENCE", 1.0)
    with Heartbeat(tmp_path, 10) as beats:
        for step in range(1, 12):
            beats.beat(step, "training")
            time.sleep(0.1)
        assert capsys.readouterr().err == ""
        beats.beat(12, "evaluating")
        time.sleep(1.5)
        warning = "warning: nothing has moved for 1 s, evaluating at step 12: if it hangs, kill it"
        assert capsys.readouterr().err == f"{warning} and resume\n"


def test_what_fails_has_not_died(tmp_path):
    with pytest.raises(InputError, match="the loss"), Heartbeat(tmp_path, 10) as beats:
        beats.beat(3, "training")
        raise InputError("the loss became nan")
    sentence, well = state(tmp_path)
    assert not well and sentence.startswith("failed at step 3 of 10, ")
    with Heartbeat(tmp_path, 10) as beats:
        assert beats.died is None


def test_another_machine_is_believed_for_a_while(tmp_path):
    """Its lock may not reach here."""
    beat = {"step": 3, "total_steps": 10, "doing": "training", "pid": os.getpid(), "host": "other"}
    path = tmp_path / HEARTBEAT
    path.write_text(json.dumps(beat | {"time": time.time() - 5}))
    sentence, well = state(tmp_path)
    assert well and "on other" in sentence
    path.write_text(json.dumps(beat | {"time": time.time() - 500}))
    sentence, well = state(tmp_path)
    assert not well and sentence.startswith("died at step 3 of 10, training, ")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "name a command, one of status, inspect$"),
        (["states"], "name a command, one of status, inspect, got 'states'"),
        (["status"], "RUN is missing"),
        (["status", "run", "--patience", "0"], "--patience must be above 0 seconds, got 0"),
    ],
)
def test_mistakes_in_asking(arguments, said, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["tcl_jax", *arguments])
    with pytest.raises(InputError, match=said):
        main()
