"""What a command has compiled, the next does not compile again; damage to it stops none."""

import math
import os
import re
import shutil
import warnings
from pathlib import Path
from types import SimpleNamespace

import pytest
from cli import (
    DigitsRun,
    Finished,
    converted,  # noqa: F401
    finish,
    start,
    succeeded,
    trained,  # noqa: F401
)

from tcl_jax.cli import compiled


@pytest.fixture(scope="module")
def run(trained: DigitsRun, converted: str, tmp_path_factory):  # noqa: F811
    folder = tmp_path_factory.mktemp("compiled") / "run"
    shutil.copytree(trained.folder / converted, folder / "snn")
    shutil.copy(trained.folder / "config.json", folder)
    return folder


def _simulated(run: Path, home: Path, **extra: str | None) -> Finished:
    command = start(
        *("simulate", run, "--timesteps", 3, "--images", 20, "--batch-size", 20),
        XDG_CACHE_HOME=str(home),
        JAX_EXPLAIN_CACHE_MISSES="1",
        XLA_FLAGS=None,  # as for users
        **{"JAX_COMPILATION_CACHE_DIR": None, "JAX_COMPILATION_CACHE_MAX_SIZE": None, **extra},
    )
    return succeeded(finish(command))


def _compiled(done: Finished) -> list[str]:
    return re.findall("PERSISTENT COMPILATION CACHE MISS for '(.*?)'", done.err)


@pytest.mark.long
def test_a_second_command_compiles_but_what_is_damaged(run, tmp_path):
    first = _simulated(run, tmp_path)
    (folder,) = (tmp_path / "tcl_jax").iterdir()
    assert f"compiled programs are kept in {folder};" in first.err
    assert folder.stat().st_mode & 0o077 == 0
    entries = set(folder.glob("*-cache"))
    assert len(entries) == len(_compiled(first)) > 1
    names = sorted(set(_compiled(first)))
    for name in names[::2]:
        for path in folder.glob(f"{name}-*-cache"):  # as if killed while it was written
            path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    second = _simulated(run, tmp_path)
    assert "Error" not in second.err and "kept in" not in second.err
    assert sorted(set(_compiled(second))) == names[::2] != names
    assert set(folder.glob("*-cache")) == entries


# --- Without a command: JAX's configuration is played ---------------------------------------


@pytest.fixture
def config(monkeypatch) -> dict[str, object]:
    """JAX's, as a command finds it."""
    values: dict[str, object] = {"jax_enable_compilation_cache": True}
    played = SimpleNamespace(values=values, update=values.__setitem__)
    monkeypatch.setattr(compiled, "jax", SimpleNamespace(config=played))
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR", raising=False)
    return values


@pytest.fixture
def home(monkeypatch, tmp_path) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path


def test_variables_of_jax_decide(config, home, monkeypatch, capsys):
    for folder in ("elsewhere", ""):
        monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", folder)
        compiled.keep_programs()
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR")
    config["jax_enable_compilation_cache"] = False
    compiled.keep_programs()
    assert len(config) == 1 and not list(home.iterdir())
    assert capsys.readouterr() == ("", "")


def test_without_a_folder_nothing_is_kept(config, home, monkeypatch, capsys):
    (home / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(home / "file"))
    compiled.keep_programs()
    assert len(config) == 1 and capsys.readouterr() == ("", "")


def test_the_shortest_program_is_kept_unless_told_otherwise(config, home, monkeypatch):
    with warnings.catch_warnings():
        monkeypatch.setenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "1")
        compiled.keep_programs()
        assert "jax_persistent_cache_min_compile_time_secs" not in config
        monkeypatch.delenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS")
        compiled.keep_programs()
        assert config["jax_persistent_cache_min_compile_time_secs"] == 0


def test_a_full_disk_is_told_once(config, home):
    with warnings.catch_warnings(record=True) as told:
        warnings.filterwarnings("always", "something else")
        compiled.keep_programs()
        folder = Path(config["jax_compilation_cache_dir"])
        for name in ("jit_f-1-cache", "jit_f2-1-cache", "jit_g-1-cache"):
            (folder / name).touch()
        failed = "Error {} persistent compilation cache entry for 'jit_{}': OSError: No space left"
        warnings.warn(failed.format("writing", "f"), stacklevel=1)
        assert config["jax_persistent_cache_min_compile_time_secs"] == math.inf
        warnings.warn(failed.format("reading", "g"), stacklevel=1)
        warnings.warn("something else", stacklevel=1)
    assert [p.name for p in folder.iterdir()] == ["jit_f2-1-cache"]
    assert [str(w.message) for w in told] == [failed.format("writing", "f"), "something else"]


def test_what_was_used_least_recently_goes_first(config, home, monkeypatch):
    monkeypatch.setattr(compiled, "_MOST", 250)
    other = home / "tcl_jax" / "of-another-processor"
    other.mkdir(parents=True)
    for number in range(4):
        (other / f"{number}-cache").write_bytes(bytes(100))
        os.utime(other / f"{number}-cache", (number, number))
    os.utime(other / "0-cache", (9, 0))  # read after that
    with warnings.catch_warnings():
        compiled.keep_programs()
    assert sorted(p.name for p in other.iterdir()) == ["0-cache", "3-cache"]


def test_processors_are_told_apart_by_what_they_can(monkeypatch):
    def name(told: str) -> str:
        monkeypatch.setattr(Path, "exists", lambda _: True)
        monkeypatch.setattr(Path, "read_text", lambda *_, **__: told)
        return compiled._processor()

    one = name("model name: a\nflags\t: sse avx\nbugs: x\nflags\t: sse avx")
    assert one == name("model name: b\nflags\t: avx sse\n")
    assert one != name("model name: a\nflags\t: sse\n") != name("Features: neon\n")
