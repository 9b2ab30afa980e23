"""What was tried: each mistake is answered by one clear sentence and exit status 2."""

import gzip
import json
import re
import shutil
import socket
import struct
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import jax.numpy as jnp
import pytest
from cli import ROOT, DigitsRun, Finished, run, succeed
from cli import plain as plain
from cli import trained as trained

from tcl_jax import simulation
from tcl_jax.conversion import Artifact, evaluate, load, save
from tcl_jax.errors import InputError


class Tried(NamedTuple):
    """A mistake, the command that makes it, and what its answer has to name.

    In commands ``{name}`` is a folder of `folders`; ``{new}`` is one that does not exist.
    """

    what: str
    command: str
    answer: tuple[str, ...]
    warnings: int = 0


TRAIN = "train.py digits-cnet --workdir {new}"
ADAPTIVE = "simulate.py {run} --adaptive"
FOUR_DEVICES = "XLA_FLAGS=--xla_force_host_platform_device_count=4"

TRIED = [
    Tried("no preset", "train.py", ("name a preset", "digits-cnet")),
    Tried("no preset but options", "train.py --epochs 3", ("name a preset",)),
    Tried("unknown preset, close", "train.py digits-cnt", ("'digits-cnt'", "'digits-cnet'")),
    Tried("unknown preset", "train.py qqq", ("'qqq'", "cifar10-resnet20", "imagenet2012-vgg16")),
    Tried("unknown network", f"{TRAIN} --model.name cnt", ("'cnt'", "'cnet'")),
    Tried("unknown data set", f"{TRAIN} --data.name digit", ("'digit'", "did you mean 'digits'")),
    Tried("unknown option", f"{TRAIN} --optm.lr 1", ("--optm.lr", "did you mean --optim.lr?")),
    Tried("unknown option =", "simulate.py {run} --timestep=3", ("--timestep=3", "--timesteps?")),
    Tried("stray word", f"{TRAIN} fast", ("nothing takes the argument fast",)),
    Tried("not an int", f"{TRAIN} --epochs x", ("--epochs takes a whole number, got 'x'",)),
    Tried("not a float", f"{TRAIN} --optim.lr high", ("--optim.lr takes a number, got 'high'",)),
    Tried("not floats", f"{TRAIN} --optim.milestones 0.5 a", ("takes numbers, got '0.5 a'",)),
    Tried("not an int or none", "simulate.py {run} --images=x", ("takes a whole number, got 'x'",)),
    Tried("no value", f"{TRAIN} --epochs", ("--epochs needs a value",)),
    Tried("no choice", f"{TRAIN} --model.dtype f16", ("one of float32, bfloat16, got 'f16'",)),
    Tried("λ of 0", f"{TRAIN} --model.lam 0", ("error: --model.lam must be finite and above 0",)),
    Tried(
        "λ below 0", f"{TRAIN} --model.lam -1", ("model.lam must be finite and above 0, got -1",)
    ),
    Tried("no epochs", f"{TRAIN} --epochs 0", ("epochs must be above 0, got 0",)),
    Tried("no learning rate", f"{TRAIN} --optim.lr 0", ("optim.lr must be finite and above 0",)),
    Tried("empty batch", f"{TRAIN} --batch-size 0", ("batch-size must be above 0, got 0",)),
    Tried("batch above data", f"{TRAIN} --batch-size 9999", ("9999", "1438")),
    Tried("indivisible", f"{FOUR_DEVICES} {TRAIN} --batch-size 30", ("30", "multiple of 4")),
    Tried(
        "wrong augmentation", f"{TRAIN} --data.augment resized_crop_flip", ("resized_crop_flip",)
    ),
    Tried("size of fixed images", f"{TRAIN} --data.image-size 32", ("digits", "one size")),
    Tried(
        "images too small",
        "train.py digits-vgg16 --data.pad-to None --workdir {new}",
        ("32×32", "8×8", "--data.pad-to 32"),
    ),
    Tried("padding too small", f"{TRAIN} --data.pad-to 4", ("4", "8 x 8")),
    Tried("workdir is a file", "train.py digits-cnet --workdir {file}", ("{file}", "is a file")),
    Tried(
        "loss not finite",
        f"{TRAIN} --model.no-tcl --optim.lr 1e6",
        ("the loss became", "at step", "lower --optim.lr"),
    ),
    Tried("learning rate too high", f"{TRAIN} --optim.lr 1e6", ("at step", "--optim.lr")),
    Tried(
        "α too high",
        f"{TRAIN} --optim.alpha 1e4",
        ("a λ fell to -", "at step 1", "lower --optim.alpha"),
    ),
    Tried(
        "no data",
        "train.py cifar10-cnet --data-dir {empty} --workdir {new}",
        ("cifar10 was not found", "{empty}", "does not answer", "cifar-10-python.tar.gz"),
    ),
    Tried(
        "no data to register for",
        "train.py imagenet2012-vgg16 --data-dir {empty}",
        ("imagenet2012 was not found", "{empty}", "ILSVRC2012_img_train.tar"),
    ),
    Tried("no raw folder", "train.py cifar10-cnet --data-dir {empty} --raw-dir {new}", ("{new}",)),
    Tried(
        "truncated IDX",
        "train.py fashion_mnist-cnet --data-dir {empty} --raw-dir {idx}",
        ("{idx}/train-images-idx3-ubyte", "truncated"),
    ),
    Tried(
        "truncated tar",
        "train.py cifar10-cnet --data-dir {empty} --raw-dir {tar}",
        ("{tar}/cifar-10-binary.tar.gz", "not a whole archive"),
        1,
    ),
    Tried("convert nothing", "convert.py", ("RUN is missing",)),
    Tried("convert what is no run", "convert.py {empty}", ("{empty} is not a run", "train.py")),
    Tried("convert a file", "convert.py {file}", ("{file} is not a run",)),
    Tried("convert untrained", "convert.py {untrained}", ("{untrained} has no checkpoints",)),
    Tried("unknown norm", "convert.py {run} --norm mean", ("'mean'", "percentile:PERCENT", "tcl")),
    Tried("percentile of 0", "convert.py {run} --norm percentile:0", ("percentile:99.9",)),
    Tried("norm tcl without λ", "convert.py {plain} --norm tcl", ("no trained λ", "--norm max")),
    Tried(
        "over the checkpoints",
        "convert.py {run} --snn checkpoints",
        ("cannot be 'checkpoints'",),
    ),
    Tried("over the run", "convert.py {run} --snn .", ("--snn cannot be '.'", "a plain name")),
    Tried("output is a file", "simulate.py {run} --timesteps 1 --output {file}", ("{file}: File",)),
    Tried("workdir in a file", "train.py digits-cnet --workdir {file}/a", ("{file}/a: Not a dir",)),
    Tried("no calibration", "convert.py {run} --calibration-images 0", ("--calibration-images",)),
    Tried("no images to know", "convert.py {run} --images 0", ("--images must be at least 1",)),
    Tried("unknown checkpoint", "convert.py {run} --checkpoint first", ("last, best", "'first'")),
    Tried("checkpoint truncated", "convert.py {truncated}", ("{truncated}/checkpoints", "damaged")),
    Tried("checkpoint flipped", "convert.py {flipped}", ("{flipped}/checkpoints", "damaged")),
    Tried("checkpoint gutted", "convert.py {gutted}", ("{gutted}/checkpoints", "damaged")),
    Tried(
        "resume a damaged one",
        "train.py digits-cnet --epochs 3 --workdir {flipped} --resume",
        ("{flipped}/checkpoints", "damaged"),
    ),
    Tried("of another network", "convert.py {other}", ("is of another network", "[")),
    Tried("config edited badly", "convert.py {misedited}", ("{misedited}", "model.lam", "'four'")),
    Tried("config cut off", "convert.py {cut}", ("{cut}/config.json is damaged",)),
    Tried("simulate unconverted", "simulate.py {run} --snn none", ("{run}/none", "convert.py")),
    Tried("no time steps", "simulate.py {run} --timesteps 0", ("at least 1, got 0",)),
    Tried("time reversed", "simulate.py {run} --timesteps -3", ("at least 1, got -3",)),
    Tried(
        "start above θ", "simulate.py {run} --neurons if:v0=2", ("if:v0=2", "v0 must be in [0, 1)")
    ),
    Tried(
        "a leak of all", "simulate.py {run} --neurons if:leak=1", ("leak must be in [0, 1), got 1",)
    ),
    Tried("no option but a field", "simulate.py {run} --v0 0.5", ("write --neurons if:v0=...",)),
    Tried("a coding unknown", "simulate.py {run} --coding x", ("unknown coding 'x'", "poisson")),
    Tried("a late count", "simulate.py {run} --delay 100", ("--delay must be in [0, 100)",)),
    Tried("no images", "simulate.py {run} --images 0", ("--images", "at least 1")),
    Tried("no batch", "simulate.py {run} --batch-size 0", ("--batch-size", "at least 1")),
    Tried("unknown readout", "simulate.py {run} --readout rate", ("spikes; membrane", "'rate'")),
    Tried("adaptive, of spikes", f"{ADAPTIVE} --coding rate", ("leave --coding analog",)),
    Tried(
        "a loss below 0",
        f"{ADAPTIVE} --max-loss -1",
        ("--max-loss must lie between 0 and 100 points, got -1",),
    ),
    Tried(
        "too few to tell a loss",
        f"{ADAPTIVE} --calibration-images 130",
        ("0.1 points cannot be told from 130 images", "--calibration-images 999"),
    ),
    Tried("adaptive energy", f"{ADAPTIVE} --energy", ("give one of --energy, --error and",)),
    Tried(
        "no held-out images",
        f"{ADAPTIVE} --calibration-images 0",
        ("--calibration-images must be at least 1, got 0",),
    ),
    Tried(
        "energy below 0", "simulate.py {run} --energy --mac -1", ("--mac must be finite and not",)
    ),
    Tried("graph.json cut off", "simulate.py {graph_cut}", ("{graph_cut}/snn", "damaged")),
    Tried("graph.json misedited", "simulate.py {graph_edited}", ("{graph_edited}/snn", "damaged")),
    Tried("graph of elsewhere", "simulate.py {graph_bare}", ("{graph_bare}/snn", "convert.py")),
    Tried("graph's arrays flipped", "simulate.py {arrays}", ("{arrays}/snn", "damaged")),
    Tried(
        "converted long since", "simulate.py {older}", ("{older}/snn", "an older version did it")
    ),
    Tried(
        "more images than known",
        "simulate.py {few}",
        ("evaluated on 20 test images", "--images 20", "convert it again"),
    ),
]


def _half(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def _data(folder: Path) -> list[Path]:
    """Files of the arrays' own bytes, all: some are copies, others of what is not read."""
    return [path for path in folder.rglob("d/*") if path.is_file()]


def _flip(path: Path) -> None:
    """A bit in every thousand bytes."""
    content = bytearray(path.read_bytes())
    for place in range(len(content) // 2 % 1000, len(content), 1000):
        content[place] ^= 1
    path.write_bytes(content)


def _edit(path: Path, *keys: str | int, value: object) -> None:
    content = json.loads(path.read_text(encoding="utf-8"))
    section = content
    for key in keys[:-1]:
        section = section[key]
    section[keys[-1]] = value
    path.write_text(json.dumps(content), encoding="utf-8")


def _only_checkpoint(run: Path) -> Path:
    """With another one to go back to, damage is no mistake (see test_resume.py)."""
    for folder in (run / "checkpoints").iterdir():
        if folder.name != "66":
            shutil.rmtree(folder)
    return run / "checkpoints" / "66"


def _without(run: Path, key: str) -> None:
    found = load(run / "snn")
    about = {name: said for name, said in found.about.items() if name != key}
    save(Artifact(found.graph, about), run / "snn")


DAMAGE: dict[str, Callable[[Path], object]] = {
    "untrained": lambda run: shutil.rmtree(run / "checkpoints"),
    "truncated": lambda run: [_half(f) for f in _data(_only_checkpoint(run))],
    "flipped": lambda run: [_flip(f) for f in _data(_only_checkpoint(run))],
    "gutted": lambda run: shutil.rmtree(_only_checkpoint(run) / "model" / "d"),
    "other": lambda run: _edit(run / "config.json", "model", "name", value="resnet20"),
    "misedited": lambda run: _edit(run / "config.json", "model", "lam", value="four"),
    "cut": lambda run: _half(run / "config.json"),
    "graph_cut": lambda run: _half(run / "snn" / "graph.json"),
    "graph_edited": lambda run: _edit(run / "snn" / "graph.json", "nodes", 0, "kind", value="?"),
    "graph_bare": lambda run: save(Artifact(load(run / "snn").graph, {}), run / "snn"),
    "arrays": lambda run: [_flip(f) for f in _data(run / "snn")],
    "older": lambda run: _without(run, "ann"),
    "few": lambda run: succeed("convert", run, "--images", 20, "--report-images", 0),
}


@pytest.fixture(scope="module")
def folders(trained: DigitsRun, plain: DigitsRun, tmp_path_factory) -> dict[str, Path]:
    base = tmp_path_factory.mktemp("bad")
    found = {"run": base / "run", "plain": plain.folder, "empty": base / "empty"}
    shutil.copytree(trained.folder, found["run"])
    succeed("convert", found["run"], "--report-images", 0)
    found["empty"].mkdir()
    for name, damage in DAMAGE.items():
        found[name] = Path(shutil.copytree(found["run"], base / name))
        damage(found[name])
    found["file"] = base / "file"
    found["file"].touch()
    for name in ("idx", "tar"):
        found[name] = base / name
        found[name].mkdir()
    pixels = struct.pack(">4B3I", 0, 0, 8, 3, 100, 28, 28) + bytes(28 * 28 * 99)
    for name in ("train-images-idx3", "train-labels-idx1", "t10k-images-idx3", "t10k-labels-idx1"):
        (found["idx"] / f"{name}-ubyte").write_bytes(pixels)
    archive = gzip.compress(bytes(range(256)) * 200)
    (found["tar"] / "cifar-10-binary.tar.gz").write_bytes(archive[: len(archive) // 2])
    return found


@pytest.fixture(scope="module")
def no_network():
    """A proxy that takes connections and says nothing: the slowest way to be offline."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        yield {"http_proxy": url, "https_proxy": url, "no_proxy": ""}


@pytest.fixture(scope="module")
def answers(request, folders, no_network, tmp_path_factory) -> dict[Tried, Future[Finished]]:
    """All commands of the tests selected, two at a time."""
    new = tmp_path_factory.mktemp("new")

    def answer(number: int, tried: Tried) -> Finished:
        where = {**folders, "new": new / str(number)}
        before, script, after = re.split(r"(\w+)\.py", tried.command, maxsplit=1)
        variables = dict(v.split("=", 1) for v in before.split())
        arguments = [word.format(**where) for word in after.split()]
        return run(script, *arguments, **no_network, **variables)

    selected = [
        item.callspec.params["tried"]
        for item in request.session.items
        if "tried" in getattr(getattr(item, "callspec", None), "params", {})
    ]
    with ThreadPoolExecutor(2) as pool:
        yield {tried: pool.submit(answer, n, tried) for n, tried in enumerate(selected)}


@pytest.mark.parametrize("tried", TRIED, ids=lambda tried: tried.what.replace(" ", "-"))
def test_a_mistake_is_answered_by_one_sentence(tried, answers, folders):
    done = answers[tried].result()
    assert done.status == 2, done
    *warnings, sentence = done.err.splitlines()
    # A file that is not the official one is told of before its end turns out to be missing.
    assert all(w.startswith("warning: ") for w in warnings) and len(warnings) <= tried.warnings
    assert sentence.startswith("error: ")
    assert not re.search("Traceback|Value error|Error parsing", done.out + done.err)
    for words in tried.answer:
        if "{new}" not in words:
            assert words.format(**folders) in sentence
    assert done.seconds < 60
    assert len(sentence) < 600


LATE = """
import asyncio, sys
from tcl_jax.errors import InputError
from tcl_jax.cli.terminal import reported_at_exit

class Reader:
    def __init__(self, answer): self.answer = answer
    def __del__(self): raise RuntimeError(self.answer)

async def forgotten():
    raise ValueError("NOT_FOUND")

async def restore():
    task = asyncio.ensure_future(forgotten())
    await asyncio.sleep(0)

with reported_at_exit():
    Reader("Event loop is closed")
    Reader("something else")
    asyncio.run(restore())
    raise InputError("the one sentence")
"""


def test_reads_that_fail_late_say_nothing_and_all_else_does():
    done = subprocess.run(
        [sys.executable, "-c", LATE], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 2
    assert "Event loop" not in done.stderr and "NOT_FOUND" not in done.stderr
    assert "RuntimeError: something else" in done.stderr
    assert done.stderr.endswith("\nerror: the one sentence\n")


DROPPED = """
import gc, os, signal, time
from tcl_jax.cli.terminal import reported_at_exit

def interrupt(phase, info):
    gc.callbacks.remove(interrupt)
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(60)

with reported_at_exit():
    gc.callbacks.append(interrupt)
    gc.collect()
    time.sleep(60)
"""


def test_ctrl_c_while_garbage_is_collected_is_heeded():
    done = subprocess.run(
        [sys.executable, "-c", DROPPED], cwd=ROOT, capture_output=True, text=True, timeout=50
    )
    assert done.returncode == 130
    assert done.stderr == "interrupted\n"


@pytest.mark.parametrize("command", ["train", "train digits-cnet", "convert", "simulate"])
def test_help(command):
    script, *preset = command.split()
    done = succeed(script, *preset, "--help", COLUMNS="80")
    assert done.err == ""
    assert done.out.startswith(f"usage: {script}.py")
    assert max(map(len, done.out.splitlines())) <= 80
    said = " ".join(re.sub("[│─╭╮╰╯]", " ", done.out).split())
    assert "(default: $TFDS_DATA_DIR" in said or command == "train"
    assert ") (default: None)" not in said and "pytree" not in said
    expected = {
        "train": ["presets:", "digits-cnet", "cifar10-vgg16", "train.py PRESET --help"],
        "train digits-cnet": ["--resume", "--optim.alpha FLOAT", "(default: 0.05)", "--epochs INT"],
        "convert": ["RUN", "--norm STR", "percentile:99.9", "--checkpoint {last,best}"],
        "simulate": ["RUN", "--timesteps INT", "--readout STR", "if[:v0=0,"],
    }
    for words in expected[command]:
        assert words in done.out or words in said  # which has no ends of lines


@pytest.mark.parametrize("shape", [(2, 16, 16, 1), (2, 8, 8, 3), (8, 8, 1), (2, 64)])
def test_images_of_the_wrong_shape(shape, folders):
    graph = load(folders["run"] / "snn").graph
    for function in (evaluate, simulation.constant_values):
        with pytest.raises(InputError, match=r"takes images of shape \(8, 8, 1\), got"):
            function(graph, jnp.zeros(shape))
