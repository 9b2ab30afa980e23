"""Where a figure comes from: the command, the commit, the libraries, the hardware."""

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from cli import ROOT

from tcl_jax import provenance


def test_a_record_says_where_a_figure_comes_from():
    found = provenance.describe()
    assert list(found) == ["command", "commit", "python", "libraries", "hardware"]
    assert set(found["hardware"]) == {"backend", "device", "devices", "processes", "host_cores"}
    assert {"jax", "flax", "optax", "orbax-checkpoint", "numpy"} <= set(found["libraries"])
    commit = found["commit"].removesuffix("+changes")
    assert commit == "not a git checkout" or len(commit) == 40
    json.dumps(found)


@pytest.mark.parametrize("typed", ["train.py", f"{ROOT}/train.py"])
def test_the_command_is_given_as_it_is_called_from_the_checkout(typed, monkeypatch):
    monkeypatch.setitem(sys.modules, "__main__", SimpleNamespace(__spec__=None))
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr("sys.argv", [typed, "--only", "a b"])
    assert provenance.describe()["command"] == "python train.py --only 'a b'"


def test_the_name_alone_is_given_of_a_program_elsewhere(monkeypatch):
    monkeypatch.setitem(sys.modules, "__main__", SimpleNamespace(__spec__=None))
    monkeypatch.setattr("sys.argv", ["/x/mine.py", "1"])
    assert provenance.describe()["command"] == "python mine.py 1"


def test_an_installed_command_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "__main__", SimpleNamespace(__spec__=None))
    monkeypatch.setattr("sys.argv", [f"{ROOT}/.venv/bin/tcl-train", "digits-cnet"])
    assert provenance.describe()["command"] == "tcl-train digits-cnet"


def test_a_module_that_is_run_is_named(monkeypatch):
    spec = SimpleNamespace(name="tcl_jax.__main__")
    monkeypatch.setitem(sys.modules, "__main__", SimpleNamespace(__spec__=spec))
    monkeypatch.setattr("sys.argv", [f"{ROOT}/tcl_jax/__main__.py", "status", "runs/a"])
    assert provenance.describe()["command"] == "python -m tcl_jax status runs/a"


def git(folder: Path, *arguments: str) -> str:
    command = ["git", "-C", str(folder), "-c", "user.name=x", "-c", "user.email=x@x", *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


@pytest.fixture
def installed(tmp_path) -> Path:
    """The package's place within somebody's repository, which has a commit."""
    git(tmp_path, "init", "-q")
    (tmp_path / "notes.txt").write_text("not the library")
    git(tmp_path, "add", "notes.txt")
    git(tmp_path, "commit", "-qm", "notes")
    place = tmp_path / ".venv" / "tcl_jax" / "provenance.py"
    place.parent.mkdir(parents=True)
    place.write_text(Path(provenance.__file__).read_text())
    return place


def test_the_commit_of_a_repository_around_the_environment_is_not_ours(installed, monkeypatch):
    monkeypatch.setattr(provenance, "__file__", str(installed))
    assert provenance.describe()["commit"] == "not a git checkout"


def test_the_commit_is_that_of_the_repository_that_holds_the_code(installed, monkeypatch):
    repository = installed.parents[2]
    record, script = (repository / "results" / name for name in ("a/a.json", "a.py"))
    record.parent.mkdir(parents=True)
    for path in (record, script):
        path.write_text("{}")
    git(repository, "add", "--force", str(installed), "results")
    git(repository, "commit", "-qm", "a copy")
    monkeypatch.setattr(provenance, "__file__", str(installed))
    commit = git(repository, "rev-parse", "HEAD")
    assert provenance.describe()["commit"] == commit
    record.write_text("{1}")  # by a command that goes on where it was
    assert provenance.describe()["commit"] == commit
    script.write_text("{1}")
    assert provenance.describe()["commit"] == f"{commit}+changes"
    git(repository, "checkout", str(script))
    installed.write_text("changed")
    assert provenance.describe()["commit"].endswith("+changes")


@pytest.mark.skipif(os.geteuid() != 0, reason="files are given to another user")
@pytest.mark.parametrize("around", [False, True])
def test_of_other_users_only_our_own_checkout_is_trusted(around, installed, monkeypatch):
    """Git refuses repositories of other users, for what they say of programs to be run."""
    repository = installed.parents[2]
    place = installed if around else repository / "tcl_jax" / "provenance.py"
    place.parent.mkdir(exist_ok=True)
    place.write_text(installed.read_text())
    git(repository, "add", "--force", str(place))
    git(repository, "commit", "-qm", "a copy")
    commit = git(repository, "rev-parse", "HEAD")
    for path in [repository, *repository.rglob("*")]:
        os.chown(path, 12345, 12345)
    monkeypatch.setattr(provenance, "__file__", str(place))
    assert provenance.describe()["commit"] == ("not a git checkout" if around else commit)


def test_the_commit_is_ours_within_a_hook_of_another_repository(installed, monkeypatch):
    before = provenance.describe()["commit"]
    monkeypatch.setenv("GIT_DIR", str(installed.parents[2] / ".git"))
    assert provenance.describe()["commit"] == before
