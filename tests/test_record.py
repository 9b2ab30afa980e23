"""What is on the disk is whole: a full one ends a command in one sentence, and costs nothing."""

import errno
import json
import os
import shutil
from pathlib import Path

import pytest
from cli import Begun, Finished, finish, succeed
from cli import trained as trained

from tcl_jax.conversion import load
from tcl_jax.record import free, whole, write_json
from tcl_jax.runs.trained import open_run
from tcl_jax.training.heartbeat import state
from tcl_jax.training.log import read


def test_a_file_is_there_once_it_is_whole(tmp_path):
    path = tmp_path / "table.csv"
    path.write_text("before")
    with whole(path) as file:
        file.write("after\r\n")
        file.flush()
        assert path.read_text() == "before"
    assert path.read_bytes() == b"after\r\n"
    with whole(path, "wb") as file:
        file.write(b"\0")
    assert [(p.name, p.read_bytes()) for p in tmp_path.iterdir()] == [("table.csv", b"\0")]


@pytest.mark.parametrize("error", [KeyboardInterrupt(), ValueError("of the writer")])
def test_what_ends_within_changes_nothing(error, tmp_path):
    path = tmp_path / "table.csv"
    path.write_text("before")
    with pytest.raises(type(error)), whole(path) as file:
        file.write("half")
        raise error
    assert [(p.name, p.read_text()) for p in tmp_path.iterdir()] == [("table.csv", "before")]


def test_what_the_system_refuses_names_the_file(tmp_path, monkeypatch):
    path = tmp_path / "none" / "table.csv"
    with pytest.raises(OSError, match="No such file") as refused, whole(path):
        pass
    assert refused.value.filename == str(path)

    def full(_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    path = tmp_path / "table.csv"
    with pytest.raises(OSError, match="No space left") as refused, whole(path) as file:
        file.write("half")
    assert refused.value.filename == str(path)
    assert not list(tmp_path.iterdir())


def test_json_for_people(tmp_path):
    write_json(tmp_path / "a.json", {"T": [1]})
    assert (tmp_path / "a.json").read_text() == '{\n  "T": [\n    1\n  ]\n}\n'


def test_free_names(tmp_path):
    path = tmp_path / "damaged-7"
    for _ in range(3):
        free(path).mkdir()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["damaged-7", "damaged-7-2", "damaged-7-3"]


def limited(size: int, script: str, *arguments: object) -> Finished:
    """Run a command whose files can have no more than some bytes, as if the disk were full then."""
    return finish(Begun(script, *arguments, room=size))


def assert_no_room(done: Finished) -> None:
    assert done.status == 2, done.err
    (sentence,) = done.err.splitlines()
    assert sentence.startswith("error: ") and "make room" in sentence and len(sentence) < 500


@pytest.mark.long
@pytest.mark.parametrize("size", [100, 100_000], ids=["nothing", "no checkpoint"])
def test_training_without_room(size, trained, tmp_path):
    folder = tmp_path / "run"
    options = ["digits-cnet", "--epochs", 3, "--workdir", folder]
    assert_no_room(limited(size, "train", *options))
    left = (folder / "config.json").exists()
    assert left == (size > 100)
    done = succeed("train", *options, *["--resume"][: left or (folder / "heartbeat.json").exists()])
    assert "finished:" in done.out
    epochs, expected = (
        [r["test_loss"] for r in read(f / "metrics.jsonl") if r["kind"] == "epoch"]
        for f in (folder, trained.folder)
    )
    assert epochs == expected
    assert state(folder)[0].startswith("finished at step 66 of 66, ")


def test_training_goes_on_once_there_is_room(trained, tmp_path):
    """The state of the last epoch could not be written: the one before it is whole."""
    folder = Path(shutil.copytree(trained.folder, tmp_path / "run"))
    shutil.rmtree(folder / "checkpoints" / "66")
    options = ["digits-cnet", "--epochs", 3, "--workdir", folder, "--resume"]
    done = limited(100_000, "train", *options)
    assert_no_room(done)
    assert "\nthe checkpoint of step 66 is gone: going on from step 44\n" in done.out
    assert open_run(folder).step == 44
    assert not (folder / "checkpoints" / "66").exists()
    sentence, well = state(folder)
    assert not well and sentence.startswith("failed at step 66 of 66, ")
    assert "finished:" in succeed("train", *options).out
    records = [
        [{k: v for k, v in r.items() if k != "seconds"} for r in read(f / "metrics.jsonl")]
        for f in (folder, trained.folder)
    ]
    assert records[0] == records[1]


@pytest.fixture(scope="module")
def simulated(trained, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("files") / "run"
    shutil.copytree(trained.folder, folder, ignore=shutil.ignore_patterns("snn*"))
    succeed("convert", folder, "--report-images", 10)
    succeed("simulate", folder, "--images", 20, "--timesteps", 10, "--energy")
    return folder


RESULTS = ["curve.csv", "curve.png", "summary.json", "energy.csv", "energy.png", "energy.json"]


def contents(folder: Path) -> dict[str, bytes]:
    """Of all files but those that a writer's threads may leave behind as it fails."""
    files = {str(p.relative_to(folder)): p for p in folder.rglob("*") if p.is_file()}
    return {
        name: p.read_bytes() for name, p in files.items() if ".orbax-checkpoint-tmp/" not in name
    }


@pytest.mark.long
@pytest.mark.parametrize("size", [100, 100_000], ids=["nothing", "arrays"])
def test_conversion_without_room(size, simulated, tmp_path):
    folder = Path(shutil.copytree(simulated, tmp_path / "run"))
    before = contents(folder)
    assert_no_room(limited(size, "convert", folder, "--norm", "percentile:90"))
    assert contents(folder) == before
    succeed("convert", folder, "--norm", "percentile:90", "--report-images", 0)
    assert load(folder / "snn").about["norm"] == "percentile:90"


@pytest.mark.long
def test_conversion_to_another_name_without_room(simulated, tmp_path):
    folder = Path(shutil.copytree(simulated, tmp_path / "run"))
    assert_no_room(limited(100_000, "convert", folder, "--snn", "other"))
    assert not (folder / "other" / "graph.json").exists()
    succeed("convert", folder, "--snn", "other", "--report-images", 0)
    load(folder / "other")


@pytest.mark.parametrize(
    "size",
    [pytest.param(1_000, marks=pytest.mark.long), 60_000],
    ids=["curve.png", "energy.png"],
)
def test_simulation_without_room(size, simulated, tmp_path):
    folder = Path(shutil.copytree(simulated, tmp_path / "run"))
    options = [folder, "--images", 20, "--timesteps", 20, "--energy"]
    before = contents(folder)
    assert_no_room(limited(size, "simulate", *options))
    after = contents(folder)
    assert after.keys() == before.keys()  # nothing half written, nothing lost
    for name in RESULTS:
        assert (after[name] != before[name]) == (size == 60_000 or name == "curve.csv"), name
        if size == 60_000 and name == "summary.json":
            break
    succeed("simulate", *options)
    assert json.loads((folder / "summary.json").read_text())["timesteps"] == 20


@pytest.mark.parametrize("again", [False, pytest.param(True, marks=pytest.mark.long)])
def test_results_of_a_network_that_is_replaced(again, simulated, tmp_path):
    """They are kept, where nobody takes them for those of the new one."""
    folder = Path(shutil.copytree(simulated, tmp_path / "run"))
    (folder / "notes.txt").write_text("of the user")
    before = {name: (folder / name).read_bytes() for name in RESULTS}

    # The same network again: they are true of it.
    done = succeed("convert", folder, "--report-images", 0)
    assert done.err == ""
    assert {name: (folder / name).read_bytes() for name in RESULTS} == before
    assert (folder / "snn" / "report.json").exists()

    done = succeed("convert", folder, "--norm", "percentile:90", "--report-images", 0)
    assert not any((folder / name).exists() for name in RESULTS)
    assert not (folder / "snn" / "report.json").exists()
    (aside,) = folder.glob("replaced-*")
    assert done.err == (
        f"warning: results of another network that was in {folder / 'snn'} are now in {aside}\n"
    )
    assert {path.name: path.read_bytes() for path in aside.iterdir()} == before
    assert (folder / "notes.txt").read_text() == "of the user"

    # Nothing is overwritten, also where the network is gone.
    places = ("replaced-*", "replaced-network")
    for place in places if again else places[1:]:
        succeed("simulate", folder, "--images", 20, "--timesteps", 10)
        if place == "replaced-network":
            shutil.rmtree(folder / "snn")
        succeed("convert", folder, "--report-images", 0)
        assert not any((folder / name).exists() for name in RESULTS)
        assert all((p / "summary.json").exists() for p in folder.glob(place))
    assert len(list(folder.glob("replaced-*"))) == 2 + again
    assert {path.name: path.read_bytes() for path in aside.iterdir()} == before


@pytest.mark.long
def test_results_of_other_networks_stay(simulated, tmp_path):
    folder = Path(shutil.copytree(simulated, tmp_path / "run"))
    before = {name: (folder / name).read_bytes() for name in RESULTS}
    for norm in ("tcl", "percentile:90"):
        succeed("convert", folder, "--snn", "snn.old", "--norm", norm, "--report-images", 0)
        succeed("simulate", folder, "--snn", "snn.old", "--images", 20, "--timesteps", 10)
    assert {name: (folder / name).read_bytes() for name in RESULTS} == before
    (aside,) = (folder / "snn.old").glob("replaced-*")
    assert sorted(p.name for p in aside.iterdir()) == ["curve.csv", "curve.png", "summary.json"]
    assert (folder / "snn.old" / "summary.json").exists()
    assert load(folder / "snn.old").about["norm"] == "percentile:90"
