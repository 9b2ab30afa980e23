"""All that a run's folder holds, on one page that a browser opens by itself."""

import csv
import json
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from tcl_jax import provenance
from tcl_jax.errors import InputError
from tcl_jax.report.names import by_number
from tcl_jax.report.page import Picture, Section, Table, write_page
from tcl_jax.report.plots import plot_lambda, plot_training
from tcl_jax.runs.converted import Converted
from tcl_jax.runs.simulate import latencies
from tcl_jax.training import CONFIG
from tcl_jax.training import config as configs
from tcl_jax.training.log import METRICS, read

PAGE = "report.html"


def write_run_page(converted: Converted, fingerprint: str, seen: Section, folder: Path) -> Path:
    """Write `report.html`: curve, λ, layers, energy, decisions, single images, and the environment.

    What is not in the run's folder yet is named by the command that puts it there.

    Args:
        converted: the spiking network.
        fingerprint: its own: what was measured of another is left out.
        seen: of single images.
        folder: where to, with plots that the run's folder does not hold.

    Returns:
        The page.
    """
    about = converted.artifact.about
    simulated = _measured(converted, "summary.json", fingerprint)
    sections = [
        _curve(converted, simulated),
        _training(converted.folder, folder),
        _layers(converted),
        _energy(converted, _measured(converted, "energy.json", fingerprint)),
        _decisions(converted, _measured(converted, "adaptive.json", fingerprint)),
        seen,
        _environment(converted, simulated),
    ]
    title = f"{about['network']} on {about['data']['name']}, as a spiking network"
    accuracy = about["ann"]["accuracy"]["float32"]
    summary = (
        f"Norm-factors by {about['norm']}, weights in {about.get('weights', 'float32')}; the "
        f"trained network is right on {accuracy:.2%} of {about['ann']['images']:,} test images."
    )
    write_page(folder / PAGE, title, summary, sections)
    return folder / PAGE


def _measured(converted: Converted, name: str, fingerprint: str) -> dict[str, Any] | None:
    """A record, if it is of this very network."""
    content = _read_json(converted.results / name)
    return content if content and content.get("snn_fingerprint") == fingerprint else None


def _read_json(path: Path) -> dict[str, Any] | None:
    if not path.exists():
        return None
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except ValueError as error:
        raise InputError(f"{path} is damaged ({error}): remove it, and make it again") from None


def _settings(record: Mapping[str, Any]) -> str:
    said = [f"{record['neurons']} neurons", f"{record['coding']} input"]
    said += [f"{record['readout']} readout"] + [f"delay {record['delay']}"] * bool(record["delay"])
    return ", ".join(said)


def _curve(converted: Converted, record: dict[str, Any] | None) -> Section:
    title = "Accuracy against latency"
    if record is None:
        return Section(title, command=_command(converted, "simulate.py"))
    with (converted.results / "curve.csv").open(newline="", encoding="utf-8") as file:
        curve = [{of: float(v) for of, v in row.items()} for row in csv.DictReader(file)]
    ann = record["ann_accuracy"]
    near = next((int(row["T"]) for row in curve if row["accuracy"] >= ann - 0.01), None)
    found = "It does not come within a point of the ANN's."
    if near is not None:
        found = f"It first comes within a point of the ANN's at T = {near}."
    headings = ["T", "SNN", "ANN", "conversion loss"]
    extra = [of for of in ("top5", "rms_error") if of in curve[0]]
    headings += [{"top5": "SNN, top-5", "rms_error": "RMS error"}[of] for of in extra]
    rows = []
    for t in latencies(record["timesteps"]):
        at = curve[t - 1]
        loss = f"{100 * (ann - at['accuracy']):+.2f} points"
        row = [f"{t}", f"{at['accuracy']:.2%}", f"{ann:.2%}", loss]
        for of in extra:
            row.append(f"{at[of] / (record['rms_value'] if of == 'rms_error' else 1):.2%}")
        rows.append(row)
    sentence = f"{record['images']:,} test images; {_settings(record)}.  {found}"
    picture = Picture(
        converted.results / "curve.png",
        "accuracy against latency T",
        small="rms_error" not in extra,
    )
    return Section(title, [sentence], [Table(headings, rows)], [picture])


def _training(run: Path, folder: Path) -> Section:
    title = "Training"
    path = run / METRICS
    epochs = [r for r in read(path) if r["kind"] == "epoch"] if path.exists() else []
    if not epochs:
        return Section(title, ["The run's folder does not hold its training's metrics."])
    last = epochs[-1]
    sentences = [
        f"{last['epoch']} epochs; in the end {last['test_accuracy']:.2%} of test images are right, "
        f"and {last['train_accuracy']:.2%} of training images, as they were learnt from."
    ]
    plot_training(epochs, folder / "training.png", title=run.name)
    pictures = [Picture(folder / "training.png", "loss and accuracy by epoch")]
    tables = []
    if layers := by_number(last["lambda"]):
        history = {name: [float(np.mean(r["lambda"][name])) for r in epochs] for name in layers}
        plot_lambda(history, folder / "lambda.png", title="λ during training")
        pictures.append(Picture(folder / "lambda.png", "λ of every layer by epoch", small=True))
        rows = [[n, f"{values[0]:.3f}", f"{values[-1]:.3f}"] for n, values in history.items()]
        tables = [Table(["layer", "λ after the first epoch", "λ in the end"], rows)]
    return Section(title, sentences, tables, pictures)


def _layers(converted: Converted) -> Section:
    title = "Layers"
    report = _read_json(converted.place / "report.json")
    if report is None:
        return Section(title, command=_command(converted, "convert.py"))
    times = list(report["layers"][0]["at"])
    longest = times[-1]
    headings = ["layer", "neurons", "λ", f"rate, T = {longest}", "never fire"]
    rows = [
        [
            layer["name"],
            f"{layer['neurons']:,}",
            f"{np.mean(layer['lambda']):.3f}",
            f"{layer['at'][longest]['rate']:.3f}",
            f"{layer['dead']:.1%}",
            *(f"{layer['at'][t]['error']:.4f}" for t in times),
        ]
        for layer in report["layers"]
    ]
    headings += [f"error, T = {t}" for t in times]
    shows = {
        "activations": "histograms of the ANN's activations, with λ",
        "rates": "rates of spiking neurons against the ANN's activations",
        "errors": "errors by layer, and what they are made of",
    }
    pictures = [Picture(converted.place / f"{name}.png", text) for name, text in shows.items()]
    sentence = (
        f"{report['images']:,} test images, membranes from {report['v0']:g}.  Errors are mean "
        "absolute differences between a neuron's rate and the ANN's activation, in units of λ."
    )
    return Section(title, [sentence], [Table(headings, rows)], pictures)


def _energy(converted: Converted, record: dict[str, Any] | None) -> Section:
    title = "Energy"
    if record is None:
        return Section(title, command=_command(converted, "simulate.py", "--energy"))
    cost, ann = record["cost_pj"], record["ann"]
    rows = [
        [t, f"{at['macs']:,}", f"{at['additions']:,.0f}", f"{at['energy_uj']:,.3f}"]
        for t, at in record["at"].items()
    ]
    rows.append(["ANN", f"{ann['macs']:,}", f"{ann['additions']:,}", f"{ann['energy_uj']:,.3f}"])
    sentence = (
        f"Of an image, on average over {record['images']:,} test images; {cost['mac']:g} pJ a "
        f"multiply-accumulate (MAC), {cost['ac']:g} pJ an addition (AC); {_settings(record)}."
    )
    picture = Picture(converted.results / "energy.png", "accuracy and energy against T")
    return Section(title, [sentence], [Table(["T", "MACs", "ACs", "µJ"], rows)], [picture])


def _decisions(converted: Converted, record: dict[str, Any] | None) -> Section:
    title = "Early decisions"
    if record is None:
        return Section(title, command=_command(converted, "simulate.py", "--adaptive"))
    longest = f"T = {record['timesteps']}"
    rows = [
        ["as soon as a class is safe", f"{record['mean_steps']:.2f}", f"{record['accuracy']:.2%}"],
        [f"at {longest}", f"{record['timesteps']}", f"{record['accuracy_fixed']:.2%}"],
    ]
    if fixed := record.get("accuracy_fixed_at_mean"):  # which older records lack
        rows.insert(1, [f"at T = {fixed['T']}", f"{fixed['T']}", f"{fixed['accuracy']:.2%}"])
    sentence = (
        f"{record['images']:,} test images, of which at most {record['max_loss_points']:g} points "
        f"may be lost by deciding before {longest}; {_settings(record)}."
    )
    picture = Picture(converted.results / "adaptive.png", "when images stopped")
    return Section(title, [sentence], [Table(["decided", "mean T", "accuracy"], rows)], [picture])


def _environment(converted: Converted, simulated: dict[str, Any] | None) -> Section:
    about = converted.artifact.about
    trained = _read_json(converted.folder / "environment.json")
    sources = {"training": trained, "conversion": about, "simulation": simulated}
    tables = [
        Table(["", step], _provenance(record), f"{step}")
        for step, record in sources.items()
        if record is not None
    ]
    if (path := converted.folder / CONFIG).exists():
        settings = configs.flat(configs.read(path))
        rows = [[name, json.dumps(value)] for name, value in settings.items()]
        tables.append(Table(["setting", "value"], rows, "settings of the training"))
    return Section("Environment", (), tables)


def _provenance(record: Mapping[str, Any]) -> list[list[str]]:
    libraries = ", ".join(f"{name} {version}" for name, version in record["libraries"].items())
    return [
        ["command", str(record["command"])],
        ["commit", str(record["commit"])],
        ["hardware", f"{provenance.machine(record)}; {record['hardware']['devices']} devices"],
        ["Python", str(record["python"])],
        ["libraries", libraries],
    ]


def _command(converted: Converted, script: str, *options: str) -> str:
    named = () if converted.snn == "snn" else ("--snn", converted.snn)
    return shlex.join(["python", script, str(converted.folder), *named, *options])
