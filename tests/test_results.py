"""Pages show what today's commands would write; what is older is found, made again or left out."""

import dataclasses
import json
import re
import shutil
import subprocess
import sys

import pytest
from cli import ROOT, environment, succeed
from cli import trained as trained

from results import records, reproduce
from results.records import Command
from tcl_jax.training.log import METRICS


def row_of(run, *, epochs=3, convert=(), simulate=("--timesteps", "5", "--images", "20")):
    """A row of a table, and its three commands, of a run on the digits."""
    where, snn = str(run), "snn-tcl"
    return reproduce.Row(
        "TCL",
        run.name,
        snn,
        Command("train.py", ("digits-cnet", "--epochs", str(epochs), "--workdir", where)),
        Command("convert.py", (where, "--snn", snn, "--report-images", "0", *convert)),
        Command("simulate.py", (where, "--snn", snn, *simulate)),
    )


@pytest.fixture
def made(monkeypatch):
    """Makes a row; says which scripts that took."""
    ran = []

    def run(command, *more):
        ran.append(command.script)
        succeed(command.script.removesuffix(".py"), *command.arguments, *more)

    monkeypatch.setattr(Command, "run", run)

    def make(row, folder):
        ran.clear()
        reproduce.make(row, folder)
        assert list(row.lacks(folder)) == []
        return list(ran)

    return make


@pytest.fixture(scope="module")
def run(trained, tmp_path_factory):
    """A trained network of this module's own."""
    return shutil.copytree(trained.folder, tmp_path_factory.mktemp("runs") / "cnet-tcl")


def lacks(row, folder):
    """The first thing that is lacking."""
    return next((reason for _, reason in row.lacks(folder)), None)


@pytest.mark.long
def test_only_those_commands_are_run_whose_settings_have_changed(run, made):
    assert made(row_of(run), run) == ["convert.py", "simulate.py"]
    assert made(row_of(run), run) == []
    start = ("--timesteps", "5", "--images", "20", "--neurons", "if:v0=0.5")
    assert made(row_of(run, simulate=start), run) == ["simulate.py"]
    # The same network, however many images have proved it; another of other norm-factors.
    proof, fewer = ("--verification-images", "50"), ("--calibration-images", "10")
    assert made(row_of(run, convert=proof, simulate=start), run) == ["convert.py"]
    assert made(row_of(run, convert=fewer), run) == ["convert.py", "simulate.py"]


def test_a_training_with_other_settings_is_found_and_never_removed(run, made):
    assert lacks(row_of(run, epochs=4), run) == "trained with other settings (epochs: 3 ≠ 4)"
    before = (run / METRICS).read_bytes()
    with pytest.raises(AssertionError, match="was trained with other settings"):
        made(row_of(run, epochs=4), run)
    assert (run / METRICS).read_bytes() == before


def test_an_unfinished_training_is_found(run, tmp_path):
    kept = shutil.copytree(run, tmp_path / "kept", ignore=shutil.ignore_patterns("checkpoints"))
    lines = (kept / METRICS).read_text().splitlines(keepends=True)
    last = max(i for i, line in enumerate(lines) if '"epoch": 3' in line)
    (kept / METRICS).write_text("".join(lines[:last]))
    assert lacks(row_of(kept), kept) == "trained for 2 of 3 epochs"
    assert lacks(row_of(kept), tmp_path / "nowhere") == "not trained"


def test_records_are_kept_and_are_checked_without_the_run(run, made, tmp_path):
    row, kept = row_of(run), tmp_path / "kept" / run.name
    made(row, run)
    reproduce.keep(run, row.snn, kept)
    assert not (kept / "checkpoints").exists()
    assert list(row.lacks(kept)) == []

    # Of another training nothing stays.
    other = kept / "snn-other"
    other.mkdir()
    reproduce.keep(run, row.snn, kept)
    assert other.exists()
    (kept / METRICS).write_text("another\n")
    reproduce.keep(run, row.snn, kept)
    assert not other.exists() and list(row.lacks(kept)) == []


def change(path, **values):
    record = {**json.loads(path.read_text()), **values}
    path.write_text(json.dumps({k: v for k, v in record.items() if v is not None}))


def test_records_that_do_not_say_their_settings_or_are_of_another_network_are_found(
    run, made, tmp_path
):
    row, kept = row_of(run), tmp_path / "kept" / run.name
    made(row, run)
    reproduce.keep(run, row.snn, kept)
    summary, conversion = kept / row.snn / "summary.json", kept / row.snn / records.CONVERSION

    change(summary, snn_fingerprint="0123abcd")
    assert lacks(row, kept) == "simulated on another network than the one that is there"
    change(summary, settings=None)
    assert lacks(row, kept).startswith("simulated, with no settings recorded, by `python ")
    change(conversion, settings="0123456789abcdef")
    assert lacks(row, kept).startswith("converted with other settings than today's, by `python ")
    conversion.unlink()
    assert lacks(row, kept) == "not converted"


@pytest.mark.long
def test_a_default_that_changes_makes_records_older(run, made, monkeypatch):
    row = row_of(run)
    made(row, run)

    @dataclasses.dataclass(frozen=True)
    class Later(records.simulate.Options):
        delay: int = 2

    monkeypatch.setattr(records.simulate, "Options", Later)
    assert lacks(row, run).startswith("simulated with other settings than today's")


@pytest.mark.long
def test_adaptive_records_are_told_from_older_ones(run, made):
    row = row_of(run)
    made(row, run)
    sizes = ("--timesteps", "5", "--images", "20", "--calibration-images", "600")
    command = Command("simulate.py", (str(run), "--snn", row.snn, *sizes, "--adaptive"))
    record = run / row.snn / "adaptive.json"
    assert records.unsimulated(command, record, run / row.snn) == "not simulated"
    command.run("--max-loss", "5")
    older = records.unsimulated(command, record, run / row.snn)
    assert older.startswith("simulated with other settings than today's")
    command = dataclasses.replace(command, arguments=(*command.arguments, "--max-loss", "5"))
    assert records.unsimulated(command, record, run / row.snn) is None


@pytest.mark.parametrize(
    "command, pages",
    [
        (
            ("results.reproduce", "fashion_mnist", "--report-only"),
            ("README.md", "results/fashion_mnist/README.md"),
        ),
        (("results.adaptive", "--report-only"), ("results/adaptive/README.md",)),
        (("results.latency", "--report-only"), ("results/latency/README.md",)),
    ],
)
def test_pages_are_what_the_records_say(command, pages, tmp_path):
    """The project's own, written anew in a copy of it, are the same."""
    for name in ("results", "README.md"):
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, tmp_path / name)
    script, *options = command
    for page in pages:
        lines = (tmp_path / page).read_text().splitlines(keepends=True)
        figures = re.compile(r"\| (\d+|ANN|images) ")
        changed = [line.replace("0", "8") if figures.match(line) else line for line in lines]
        assert changed != lines
        (tmp_path / page).write_text("".join(changed))
    subprocess.run(
        [sys.executable, "-m", script, *options], cwd=tmp_path, env=environment(), check=True
    )
    for page in pages:
        assert (tmp_path / page).read_text() == (ROOT / page).read_text()
