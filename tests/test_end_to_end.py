"""From a preset's name to a table of accuracies: train.py, convert.py and simulate.py."""

import csv
import json
import re
import shutil
import struct
from pathlib import Path

import cv2
import numpy as np
import pytest
from cli import DigitsRun, Finished, paste, succeed, succeeded, told_next
from cli import plain as plain
from cli import trained as trained
from tensorboardX.proto.event_pb2 import Event

from tcl_jax import data
from tcl_jax.report.tables import print_curve
from tcl_jax.runs.convert import convert_run
from tcl_jax.runs.converted import open_converted
from tcl_jax.runs.report import report_run
from tcl_jax.runs.simulate import simulate_run
from tcl_jax.runs.trained import open_run

LAYERS = ["act1", "act2", "act3", "act4", "act5"]


@pytest.fixture(scope="module")
def simulated(trained: DigitsRun) -> tuple[Path, Finished, Finished]:
    """The run converted and simulated as train.py and convert.py advise: what each step printed."""
    converted = succeeded(paste(told_next(trained.printed)))
    return trained.folder, converted, succeeded(paste(told_next(converted)))


def curve(folder: Path) -> np.ndarray:
    with (folder / "curve.csv").open(newline="") as file:
        header, *rows = csv.reader(file)
    assert header == ["T", "accuracy"]
    assert [int(t) for t, _ in rows] == list(range(1, len(rows) + 1))
    return np.array([float(a) for _, a in rows])


def summary(folder: Path) -> dict:
    return json.loads((folder / "summary.json").read_text())


def table(printed: str) -> dict[int, list[float]]:
    """The numbers of a printed table, by T: SNN accuracy, ANN accuracy, loss, in percent."""
    rows = [re.findall(r"[-+]?\d+\.?\d*", line) for line in printed.splitlines() if "│" in line]
    return {int(t): [float(v) for v in values] for t, *values in rows}


def test_training_leaves_config_and_provenance(trained):
    config = json.loads((trained.folder / "config.json").read_text())
    assert config["model"]["name"] == "cnet" and config["epochs"] == 3
    environment = json.loads((trained.folder / "environment.json").read_text())
    assert environment["command"].startswith("python train.py digits-cnet --workdir")
    assert environment["hardware"]["backend"] == "cpu"
    assert "jax" in environment["libraries"] and environment["commit"]


def test_training_prints_each_epoch_on_a_line(trained):
    lines = [li for li in trained.printed.out.splitlines() if li.startswith("epoch ")]
    assert [li.split()[1] for li in lines] == ["1/3", "2/3", "3/3"]
    shown = re.compile(r"test accuracy \d+\.\d\d%  \d+ s  λ \d\.\d\d–\d\.\d\d$")
    assert all(shown.search(line) for line in lines)
    assert trained.printed.err == ""


def test_metrics_hold_lambda_of_every_layer_each_epoch(trained):
    lines = (trained.folder / "metrics.jsonl").read_text().splitlines()
    epochs = [r for r in map(json.loads, lines) if r["kind"] == "epoch"]
    assert [r["epoch"] for r in epochs] == [1, 2, 3]
    assert [r["step"] for r in epochs] == [22, 44, 66]
    for record in epochs:
        assert sorted(record["lambda"]) == LAYERS
        assert all(0 < lam < 4 for lam in record["lambda"].values())
    assert len({r["lambda"]["act1"] for r in epochs}) == 3, "λ is not trained"
    assert epochs[-1]["test_accuracy"] > 0.9
    assert epochs[-1]["train_loss"] < epochs[0]["train_loss"]


def test_tensorboard_events_hold_the_same(trained):
    lines = (trained.folder / "metrics.jsonl").read_text().splitlines()
    records = [r for r in map(json.loads, lines) if r["kind"] == "epoch"]
    scalars = {}
    (events,) = (trained.folder / "tensorboard").iterdir()
    content = events.read_bytes()
    while content:  # length, its checksum, the event, its checksum
        (length,) = struct.unpack("<Q", content[:8])
        event = Event.FromString(content[12 : 12 + length])
        scalars |= {(v.tag, event.step): v.simple_value for v in event.summary.value}
        content = content[16 + length :]
    for record in records:
        step = record["step"]
        assert scalars["epoch/test_accuracy", step] == pytest.approx(record["test_accuracy"])
        for layer in LAYERS:
            assert scalars[f"lambda/{layer}", step] == pytest.approx(record["lambda"][layer])


def test_best_and_last_checkpoints_can_be_opened(trained):
    lines = (trained.folder / "metrics.jsonl").read_text().splitlines()
    accuracy = {r["step"]: r["test_accuracy"] for r in map(json.loads, lines) if "epoch" in r}
    kept = {int(p.name) for p in (trained.folder / "checkpoints").iterdir()}
    last, best = (open_run(trained.folder, checkpoint=which).step for which in ("last", "best"))
    assert last == 66
    assert accuracy[best] == max(accuracy.values())
    assert kept == {best, 44, last}


def test_conversion_prints_norm_factors_and_its_verification(simulated):
    folder, printed, _ = simulated
    about = json.loads((folder / "snn" / "graph.json").read_text())["about"]
    for name, lam in about["lambda"].items():
        shown = name.removeprefix("CNET/").removesuffix("/tcl/neuron")
        assert re.search(rf"│ {shown} +│ +{lam:.4f} │", printed.out), name
    assert "CNET/…/tcl/neuron" in printed.out
    assert len(about["lambda"]) == 6
    assert about["verification"]["images"] == about["verification"]["same_class"] == 359
    assert "the same class on 359 of 359 test images" in " ".join(printed.out.split())
    assert about["norm"] == "tcl" and about["checkpoint_step"] == 66
    assert about["trained_in"] == about["dtype"] == "float32"
    ann = about["ann"]
    assert ann["images"] == 359 and ann.keys() == {"images", "accuracy", "right"}
    words = " ".join(printed.out.split())
    right = f"{ann['accuracy']['float32']:.2%} in float32"
    assert f"accuracy of the trained network on 359 test images: {right}" in words
    assert printed.err == ""


def test_of_many_classes_top_5_stands_beside(simulated, tmp_path, monkeypatch, capsys):
    folder, _, _ = simulated
    shutil.copytree(folder, tmp_path / "run")
    alone = simulate_run(tmp_path / "run", 20, images=100)
    monkeypatch.setattr("tcl_jax.runs.converted.FEW_CLASSES", 5)
    older = simulate_run(tmp_path / "run", 20, images=100)
    assert older.summary["ann_top5_accuracy"] is None
    converted = convert_run(open_run(tmp_path / "run"), images=120, calibration_images=100)
    ann = converted.artifact.about["ann"]
    found = simulate_run(tmp_path / "run", 20, images=100)
    np.testing.assert_array_equal(found.curve, alone.curve)
    assert found.top5[-1] == found.summary["snn_top5_accuracy"][20] == 1.0 > found.curve[-1]
    assert np.all(found.top5 >= found.curve) and found.top5[3] < 1.0
    run = open_run(tmp_path / "run")
    batches = list(run.batches("test", 120, limit=120))
    best = np.argsort(-np.asarray(run.logits(batches[0]["image"])), -1)[:, :5]
    right = (best == np.asarray(batches[0]["label"])[:, None]).any(-1)
    assert ann["accuracy_top5"] == {"float32": right.mean()}
    assert found.summary["ann_top5_accuracy"] == right[:100].mean()
    rows = (tmp_path / "run" / "curve.csv").read_text().splitlines()
    assert rows[0] == "T,accuracy,top5" and rows[20] == f"20,{found.curve[-1]},{found.top5[-1]}"
    print_curve(found.curve, {"float32": 0.5}, [4, 20], "", top5=found.top5, ann_top5=0.875)
    table = capsys.readouterr().out
    assert "convert the run again" not in table
    print_curve(older.curve, {"float32": 0.5}, [20], "", top5=older.top5)
    assert "the ANN's top-5 accuracy was not kept: convert the run again" in capsys.readouterr().out
    assert f"{found.top5[3]:.2%} │    87.50% │" in table and max(map(len, table.splitlines())) <= 80


def test_conversion_reports_on_every_layer(simulated):
    folder, printed, _ = simulated
    report = json.loads((folder / "snn" / "report.json").read_text())
    about = json.loads((folder / "snn" / "graph.json").read_text())["about"]
    assert report["images"] == 100 and report["norm"] == "tcl"
    assert [layer["lambda"] for layer in report["layers"]] == list(about["lambda"].values())[:5]
    for layer in report["layers"]:
        errors = [layer["at"][t]["error"] for t in ("10", "30", "100")]
        assert errors == sorted(errors, reverse=True), "more time does not bring rates nearer"
        assert all(layer["at"][t]["clipping"] == 0 for t in layer["at"]), "TCL clips in the ANN"
        assert f"{100 * errors[-1]:.2f}" in printed.out
    for name in ("activations", "rates", "errors"):
        assert (folder / "snn" / f"{name}.png").read_bytes().startswith(b"\x89PNG")


def test_simulation_is_near_the_analog_network_at_100_steps(simulated):
    folder, _, printed = simulated
    accuracy = curve(folder)
    assert len(accuracy) == 100
    ann = summary(folder)["ann_accuracy"]
    assert ann > 0.9
    assert accuracy[-1] == pytest.approx(ann, abs=0.03)
    assert accuracy[-1] > accuracy[3], "more time steps do not help"
    # Progress is for a terminal, and beside the output, which is the table alone.
    assert printed.err == "" and "simulating" not in printed.out


def test_ann_accuracy_is_that_of_training_on_the_same_images(simulated):
    folder, _, _ = simulated
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    assert summary(folder)["ann_accuracy"] == pytest.approx(
        json.loads(lines[-1])["test_accuracy"], abs=1e-9
    )
    assert summary(folder)["images"] == 359
    assert summary(folder)["ann_accuracy_in"] == {"float32": summary(folder)["ann_accuracy"]}


def test_a_spiking_network_needs_nothing_of_its_run(simulated, tmp_path):
    folder, _, _ = simulated
    alone = tmp_path / "run"
    shutil.copytree(folder / "snn", alone / "snn")
    for plot in (alone / "snn").glob("*.png"):
        plot.unlink()
    succeed("simulate", alone, "--timesteps", 20, "--images", 150)
    assert {p.name for p in alone.iterdir()} == {"snn", "curve.csv", "curve.png", "summary.json"}

    run = open_run(folder)
    image, label = run.dataset.test.gather(np.arange(150))
    logits = run.logits(data.standardize(image, run.dataset.info))
    right = np.mean(np.asarray(logits).argmax(-1) == label)
    assert summary(alone)["ann_accuracy"] == right != summary(folder)["ann_accuracy"]
    same = ("network", "tcl", "data", "norm", "trained_in", "snn_fingerprint")
    assert {key: summary(alone)[key] for key in same} == {key: summary(folder)[key] for key in same}

    layers = report_run(open_converted(alone, "snn"))
    assert len(layers) == 5 and (alone / "snn" / "rates.png").exists()
    then, now = (json.loads((f / "snn" / "report.json").read_text()) for f in (folder, alone))
    assert now["layers"] == then["layers"]


def test_printed_figures_are_those_of_the_curve(simulated):
    folder, _, printed = simulated
    accuracy, shown = curve(folder), table(printed.out)
    assert list(shown) == [4, 8, 16, 20, 25, 30, 35, 50, 100]
    ann = summary(folder)["ann_accuracy"]
    for t, (snn, analog, loss) in shown.items():
        assert snn == pytest.approx(100 * accuracy[t - 1], abs=0.0051)
        assert analog == pytest.approx(100 * ann, abs=0.0051)
        assert loss == pytest.approx(100 * (ann - accuracy[t - 1]), abs=0.0051)
        assert summary(folder)["snn_accuracy"][str(t)] == pytest.approx(accuracy[t - 1], abs=1e-6)


def test_the_plot_is_a_png(simulated):
    folder, _, _ = simulated
    image = cv2.imread(str(folder / "curve.png"))
    assert image is not None and min(image.shape[:2]) > 400
    assert image.std() > 5, "the plot is blank"


@pytest.mark.long
def test_readout_and_start_change_the_simulation(simulated, tmp_path):
    folder, _, _ = simulated
    before = (folder / "curve.csv").read_text()
    settings = {
        "membrane": ["--readout", "membrane"],
        "half": ["--neurons", "if:v0=0.5", "--executor", "scan"],
        "other": ["--coding", "poisson", "--seed", 3, "--neurons", "if:reset=zero", "--delay", 2],
    }
    for name, options in settings.items():
        succeed("simulate", folder, "--timesteps", 10, "--output", tmp_path / name, *options)
    assert (folder / "curve.csv").read_text() == before, "--output was not heeded"
    made = (folder, tmp_path / "membrane", tmp_path / "half")
    spikes, membrane, half = (curve(f)[:10] for f in made)
    assert [summary(f)["executor"] for f in (folder, tmp_path / "half")] == ["blocked", "scan"]
    assert summary(tmp_path / "half")["v0"] == 0.5
    other = summary(tmp_path / "other")
    assert [other[k] for k in ("coding", "seed", "reset", "delay")] == ["poisson", 3, "zero", 2]
    assert not np.array_equal(curve(tmp_path / "other")[:10], curve(folder)[:10])
    assert summary(tmp_path / "membrane")["readout"] == "membrane"
    assert membrane.mean() >= spikes.mean(), "spikes tell classes apart no better than currents"
    assert half.mean() > spikes.mean(), "a start at half the threshold saves time"


@pytest.mark.long
def test_baselines_convert_into_folders_of_their_own(plain):
    figures = {}
    norms = {"snn-max": "max", "snn-p99.9": "percentile:99.9", "snn-channel": "spike_norm/channel"}
    for name, norm in norms.items():
        options = ["--norm", norm, "--snn", name, "--report-images", 0]
        converted = succeed("convert", plain.folder, *options)
        assert not (plain.folder / name / "report.json").exists()
        assert f"norm-factors ({norm})" in " ".join(converted.out.split())
        assert f"simulate.py {plain.folder} --snn {name} --timesteps 100" in converted.out
        options = ["--snn", name, "--timesteps", 40, "--images", 130]
        printed = succeed("simulate", plain.folder, *options)
        assert f"130 test images of digits, {norm} norm" in " ".join(printed.out.split())
        figures[name] = curve(plain.folder / name)
        assert table(printed.out)[40][0] == pytest.approx(100 * figures[name][-1], abs=0.0051)
        assert summary(plain.folder / name)["norm"] == norm
        assert summary(plain.folder / name)["images"] == 130
        assert summary(plain.folder / name)["tcl"] is False
    assert figures["snn-p99.9"].mean() > figures["snn-max"].mean()
    assert not (plain.folder / "snn").exists() and not (plain.folder / "curve.csv").exists()
    lines = (plain.folder / "metrics.jsonl").read_text().splitlines()
    assert json.loads(lines[-1])["lambda"] == {}
