"""Several processes are one program: they train, convert and simulate as one does alone.

They are started by the commands of docs/pods.md, word for word but for what those leave open.
"""

import json
import re
import signal
import socket
from collections.abc import Callable
from functools import cache
from pathlib import Path

import imagenet_files as images
import numpy as np
import pytest
from cli import (
    Begun,
    Finished,
    alone,
    commands,
    devices,
    finish,
    succeed,
    succeeded,
    wait_until,
)
from cli import converted as converted
from cli import trained as trained
from hypothesis import given
from hypothesis import strategies as st

from tcl_jax import cluster
from tcl_jax.cluster import Cluster
from tcl_jax.errors import InputError
from tcl_jax.runs.batches import part
from tcl_jax.training.log import read

SETTINGS = ["digits-cnet", "--epochs", 3, "--batch-size", 64, "--accumulate", 2]
SETTINGS += ["--optim.ema", 0.9, "--shard-optimizer"]
STEPS = 66


def address() -> str:
    """Where nobody listens."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        return f"127.0.0.1:{server.getsockname()[1]}"


def start(script: str, *more: object, **filled: object):
    """A command of the page by two processes, of one device each."""
    found = commands(f"{script}.py", "--process-id", WHERE=address(), **filled)
    assert len(found) == 2
    return [Begun(script, *arguments, *more, **devices(1)) for arguments in found]


def together(script: str, *more: object, **how: object) -> Finished:
    """The same where both are to end well; only the first says so, which is what is returned."""
    first, second = [succeeded(finish(process)) for process in start(script, *more, **how)]
    assert said(second) == ""
    return first


def said(done: Finished) -> str:
    """What a command has said, without what the library between processes does."""
    lines = (done.out + done.err).splitlines()
    return "\n".join(line for line in lines if not line.startswith("[Gloo]"))


def records(folder: Path) -> list[dict]:
    return [{k: v for k, v in r.items() if k != "seconds"} for r in read(folder / "metrics.jsonl")]


def checksums(folder: Path) -> dict[str, int]:
    contents = folder / "checkpoints" / str(STEPS) / "contents.json"
    arrays = json.loads(contents.read_text())["arrays"]
    return {name: array["crc32"] for name, array in arrays.items()}


@pytest.fixture(scope="module")
def trajectory(tmp_path_factory) -> Callable[[int, int], dict]:
    """What tests/trajectory.py finds, of so many processes with so many devices each."""
    folder = tmp_path_factory.mktemp("trajectories")

    @cache
    def found(processes: int, each: int) -> dict:
        where, out = address(), folder / f"{processes}-{each}.json"
        # Without the other flags of tests, with which XLA rounds some of float64 to float32.
        flags = f"--xla_force_host_platform_device_count={each} --xla_backend_optimization_level=0"
        begun = [
            Begun("tests/trajectory", where, processes, process, out, XLA_FLAGS=flags)
            for process in range(processes)
        ]
        for process in begun:
            succeeded(finish(process))
        return json.loads(out.read_text())

    return found


@pytest.mark.long
@pytest.mark.parametrize("processes, each", [(1, 4), (2, 2), (4, 1)])
def test_losses_do_not_depend_on_who_computes_them(trajectory, processes, each):
    one, found = trajectory(1, 1), trajectory(processes, each)
    assert (found["processes"], found["devices"]) == (processes, 4)
    assert found["images"] == one["images"] and len(set(one["images"])) == 5
    for how, steps, rtol in (("float32", 10, 1e-5), ("float64", 50, 1e-12), ("large", 10, 1e-12)):
        *losses, _ = one[how]
        assert len(set(losses)) == steps and losses[0] > losses[-1]
        np.testing.assert_allclose(found[how], one[how], rtol=rtol)


def test_training_by_two_processes_whatever_happens(tmp_path):
    """One killed, one told to stop, and the rest on one process: as if nothing had happened."""
    folder, alone = tmp_path / "run", tmp_path / "alone"
    succeed("train", *SETTINGS, "--workdir", alone, **devices(2))
    filled = {"PRESET": SETTINGS, "RUN": folder, "MINUTES": 1e-3}

    first, second = start("train", **filled)
    wait_until(lambda: any(r["step"] >= 22 for r in _log(folder)), first)
    second.kill()
    assert finish(second).status == -signal.SIGKILL
    done = finish(first)
    assert "error: another process of this program has ended, or cannot be reached" in done.err
    saved = [int(path.name) for path in (folder / "checkpoints").glob("[0-9]*")]
    assert done.status == 2 and max(saved) < STEPS and any(step % 22 for step in saved)

    first, second = start("train", "--resume", **filled)
    wait_until(lambda: any(r["step"] >= 44 for r in _log(folder)), first)
    second.send_signal(signal.SIGTERM)
    done = finish(first)
    assert said(succeeded(finish(second))) == ""
    (stopped,) = re.findall(r"^stopped and saved at step (\d+); to go on: .*", done.out, re.M)
    assert done.status == 0 and 44 <= int(stopped) < STEPS
    assert (folder / "checkpoints" / stopped).is_dir()

    (again,) = commands("train.py", "--resume", **filled)
    succeed("train", *again, **devices(2))
    assert records(folder) == records(alone)
    assert checksums(folder) == checksums(alone)
    (status,) = commands("-m tcl_jax", RUN=folder)
    assert "finished" in succeed("tcl_jax/__main__", *status).out


def _log(folder: Path) -> list[dict]:
    return read(folder / "metrics.jsonl") if (folder / "metrics.jsonl").exists() else []


@pytest.mark.long
@pytest.mark.parametrize("network", ["cnet", "resnet34"])
def test_from_tar_files_of_photographs_to_spikes(network, tmp_path):
    """Prepared, trained by two processes in bfloat16, converted and simulated."""
    images.write_imagenet(tmp_path, train_tar=True, validation="tar")
    data, run = ["--data-dir", tmp_path / "prepared"], tmp_path / "run"
    options = ["--model.name", network, "--data.image-size", 32, "--model.dtype", "bfloat16"]
    options += ["--batch-size", 2, "--epochs", 3, "--optim.lr", 1e-3, "--data.workers", 1]
    options += ["--raw-dir", tmp_path, *data]
    preset = ["imagenet2012-resnet34", *options]
    done = together("train", PRESET=preset, RUN=run, MINUTES=10)
    assert "imagenet2012, 2 images of 32×32×3; 2 cpu devices of 2 processes" in done.out
    assert len(records(run)) == 3
    succeed("convert", run, *data, "--report-images", 2)
    done = succeed("simulate", run, *data, "--timesteps", 4)
    curve = (run / "curve.csv").read_text().splitlines()
    assert len(curve) == 5 and "2 test images" in done.out


@pytest.mark.long
def test_conversion_by_two_processes(trained):
    """Evaluated on both, and the same in every bit but those of sums over images."""
    options = ["--weights", "int8", "--report-images"]
    done = together("convert", *options, 10, "--snn", "by-two", RUN=trained.folder)
    assert "wrote" in done.out and (trained.folder / "by-two" / "report.json").exists()
    succeed("convert", trained.folder, *options, 0, "--snn", "by-one")
    one, two = (
        json.loads((trained.folder / name / "graph.json").read_text())
        for name in ("by-one", "by-two")
    )
    layers, of_two = (about["about"]["rounding"].pop("layers") for about in (one, two))
    assert of_two == pytest.approx(layers, rel=1e-12) and len(layers) == 5
    assert one["nodes"] == two["nodes"] and one["about"]["ann"] == two["about"]["ann"]
    assert two["about"]["hardware"]["processes"] == 2
    differ = {k for k, v in one["about"].items() if two["about"][k] != v}
    assert differ <= {"command", "hardware"}


@pytest.mark.parametrize("what", ["energy", pytest.param("error", marks=pytest.mark.long)])
def test_simulation_by_two_processes(what, trained, converted, tmp_path):
    options = ["--snn", converted, f"--{what}", "--output"]
    done = together("simulate", *options, tmp_path / "two", RUN=trained.folder, T=20)
    options = [trained.folder, "--timesteps", 20, *options]
    by_one = succeed("simulate", *options, tmp_path / "one", **devices(1))
    assert said(done) == said(by_one)
    for name in ("curve.csv", *(["energy.csv"] if what == "energy" else [])):
        assert (tmp_path / "two" / name).read_bytes() == (tmp_path / "one" / name).read_bytes()


@pytest.mark.long
def test_a_sweep_by_two_processes(trained, converted, tmp_path):
    """One of which has no images; a norm is converted by both together."""
    folder = alone(trained.folder, tmp_path / "run")
    options = ["--norm", "tcl,max", "--readout", "spikes,membrane", "--images", 100, "--output"]
    done = together("simulate", *options, tmp_path / "two", RUN=folder, T=12)
    assert (folder / "snn-max" / "graph.json").exists()
    options = [folder, "--timesteps", 12, *options]
    by_one = succeed("simulate", *options, tmp_path / "one", **devices(1))
    assert said(done) == said(by_one)
    assert (tmp_path / "two" / "sweep.csv").read_bytes() == (
        tmp_path / "one" / "sweep.csv"
    ).read_bytes()


@pytest.mark.long
def test_one_process_has_no_images(trained, converted, tmp_path):
    """Of one batch, and of three for calibration; decisions are the same."""
    options = ["--snn", converted, "--adaptive", "--max-loss", 2, "--images", 100]
    options += ["--calibration-images", 250, "--output"]
    together("simulate", *options, tmp_path / "two", RUN=trained.folder, T=12)
    options = [trained.folder, "--timesteps", 12, *options]
    succeed("simulate", *options, tmp_path / "one", **devices(1))
    one, two = (
        json.loads((tmp_path / name / "adaptive.json").read_text()) for name in ("one", "two")
    )
    differ = {k for k, v in one.items() if two[k] != v}
    assert differ <= {"command", "hardware", "seconds"}
    assert two["hardware"]["processes"] == 2 and sum(two["stopped_at"]) == 100


def test_processes_with_other_settings_are_refused(trained, converted, tmp_path):
    options = ["--snn", converted, "--output", tmp_path]
    filled = {"WHERE": address(), "RUN": trained.folder}
    lines = [
        commands("simulate.py", f"--process-id {process}", T=5 + process, **filled)
        for process in range(2)
    ]
    both = [Begun("simulate", *line, *options, **devices(1)) for (line,) in lines]
    for done in map(finish, both):
        assert done.status == 2
        assert "error: process 1 has --timesteps 6 and process 0 --timesteps 5: " in done.err
    assert not list(tmp_path.iterdir())


def test_who_joins_nobody_says_where_it_tried(tmp_path):
    taken = socket.create_server(("", 0))
    port = taken.getsockname()[1]
    nobody = address()
    with taken:
        for coordinator, process, message in (
            (nobody, 1, f"process 0 was not found at {nobody} (Connection refused), tried for 1 s"),
            (nobody, 0, f"not all processes have come within 1 s at {nobody}: start every process"),
            (f"127.0.0.1:{port}", 0, f"cannot listen at 127.0.0.1:{port} (Address already in use)"),
            (f"127.0.0.1:{port}", 1, f"no answer came within 1 s at 127.0.0.1:{port}: "),
            ("nowhere.invalid:80", 1, "process 0 was not found at nowhere.invalid:80 ("),
        ):
            how = [*_names(coordinator, process), "--join-seconds", 1]
            done = finish(Begun("simulate", tmp_path, "--distributed", *how))
            assert done.status == 2 and message in done.err, done
            assert len(done.err.splitlines()) == 1


def _names(where: str, process: int) -> list[object]:
    return ["--coordinator-address", where, "--num-processes", 2, "--process-id", process]


@pytest.mark.parametrize(
    "options, message",
    [
        (["--process-id", 1], "--process-id is for several processes: give --distributed, too"),
        (
            ["--distributed", "--num-processes", 2],
            "--coordinator-address is missing: it goes with --num-processes 2",
        ),
        (
            ["--distributed", *_names("here", 0)],
            "--coordinator-address must be HOST:PORT, got 'here'",
        ),
        (
            ["--distributed", *_names("here:80", 2)],
            "--process-id must be in [0, 2), got 2",
        ),
        (["--distributed"], "Open MPI tells of them, give --coordinator-address HOST:PORT"),
    ],
)
def test_what_does_not_say_who_joins(options, message, tmp_path):
    done = finish(Begun("convert", tmp_path, *options))
    assert done.status == 2 and message in done.err
    assert len(done.err.splitlines()) == 1


@given(st.integers(1, 300), st.integers(1, 50), st.integers(1, 9))
def test_parts_are_whole_batches(images, batch_size, processes):
    mesh = cluster.here(1).mesh
    parts = [part(images, batch_size, Cluster(mesh, p, processes)) for p in range(processes)]
    covered = [n for first, count in parts for n in range(first, first + count)]
    assert covered == list(range(images))
    for first, count in parts:
        assert first % batch_size == 0 or count == 0
        assert count % batch_size == 0 or first + count == images
    assert max(count for _, count in parts) <= batch_size * -(-images // batch_size // processes)


def test_one_process_is_a_cluster_too():
    everyone = cluster.everywhere()
    assert everyone.own == everyone and everyone.mesh.size == 4
    assert everyone.gather("this") == ["this"] and everyone.agree(7) == 7
    everyone.check_same(images=3)
    assert everyone.first(lambda: "made") == everyone.alone(lambda: "made") == "made"

    def fails() -> None:
        raise InputError("as it is")

    with pytest.raises(InputError, match="as it is"):
        everyone.alone(fails)
    with pytest.raises(InputError, match="a batch of 6 cannot be split over 4 devices"):
        everyone.check_batch_size(6)
    with pytest.raises(InputError, match=r"of 12 in 2 parts cannot be split over 4 devices: .* 8$"):
        everyone.check_batch_size(12, parts=2)
