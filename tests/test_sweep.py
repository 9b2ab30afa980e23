"""Sweeps: many spiking networks, simulated in many ways, as one table."""

import csv
import itertools
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from cli import alone, run, succeed
from cli import converted as converted
from cli import trained as trained

from tcl_jax.calibration import NORMS
from tcl_jax.cli.options import check_options
from tcl_jax.cli.simulate import Options
from tcl_jax.errors import InputError
from tcl_jax.record import crc32
from tcl_jax.registry import Choices
from tcl_jax.report import tables
from tcl_jax.report.sweep import rows, spread, write_points
from tcl_jax.runs import sweep
from tcl_jax.runs.convert import convert_run
from tcl_jax.runs.simulate import Curves, simulate_run
from tcl_jax.runs.sweep import Network, of_norm, sweep_runs
from tcl_jax.runs.trained import open_run
from tcl_jax.simulation import CODINGS, IF, NEURONS, READOUTS, Poisson, Simulation

IMAGES = 40
HOW = {"images": IMAGES, "batch_size": 20}


@pytest.fixture(scope="module")
def networks(trained, converted, tmp_path_factory) -> list[Network]:
    """Two of a run: by the norm tcl, and by percentiles."""
    folder = alone(trained.folder, tmp_path_factory.mktemp("sweeps") / "run")
    shutil.copytree(trained.folder / converted, folder / "snn")
    return [of_norm(folder, NORMS.read(norm), batch_size=20) for norm in ("tcl", "percentile:90")]


@pytest.fixture
def one(networks, tmp_path) -> tuple[Path, str]:
    """A run of its own, with one spiking network."""
    folder, snn = networks[0]
    shutil.copytree(folder, tmp_path / "run")
    return tmp_path / "run", snn


@pytest.fixture
def made(monkeypatch) -> list[Simulation]:
    """What is simulated, in name only: each network and readout has some curve of its own."""
    ways: list[Simulation] = []

    def curves(converted, timesteps, settings, *, done, limit, **_):
        ways.append(settings)
        done(limit)
        seed = crc32([converted.artifact.about["norm"], str(settings.readout)])
        return Curves(np.random.default_rng(seed).random(100)[:timesteps], None)

    monkeypatch.setattr(sweep, "curves", curves)
    return ways


def _ways(neurons: str, coding: str, readout: str, seeds: int = 1) -> list[Simulation]:
    lists = NEURONS.read_all(neurons), CODINGS.read_all(coding), READOUTS.read_all(readout)
    return [
        Simulation(*of, seed=seed)
        for (*of,) in itertools.product(lists[0], lists[1], lists[2])
        for seed in range(seeds if of[1].random else 1)
    ]


def _table(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize(
    "table, text, expected",
    [
        (NORMS, "tcl", ["tcl"]),
        (NORMS, "percentile:99.9,percentile:99/channel,max", None),
        (NEURONS, "if,if:v0=0.5,leak=0.1,if:reset=zero", None),
        (NEURONS, "if:v0=0.5,if", ["if:v0=0.5", "if"]),
        (READOUTS, "spikes,membrane", None),
    ],
)
def test_lists_are_read(table: Choices, text, expected):
    choices = table.read_all(text)
    assert ",".join(map(str, choices)) == text
    assert expected is None or list(map(str, choices)) == expected


@pytest.mark.parametrize(
    "text, said",
    [
        ("spikes,membrne", "unknown readout 'membrne': did you mean 'membrane'?"),
        ("spikes,spikes", "readout 'spikes' is there more than once"),
        ("spikes,", "unknown readout ''"),
    ],
)
def test_lists_that_say_nothing(text, said):
    with pytest.raises(InputError, match=said.replace("?", r"\?")):
        READOUTS.read_all(text)


def test_a_list_with_an_option_that_there_is_not():
    with pytest.raises(InputError, match=r"'v1=0\.5' is no option of it; write if"):
        NEURONS.read_all("if,if:v1=0.5,if")


def test_each_point_is_what_a_simulation_of_its_own_finds(networks, tmp_path):
    ways = _ways("if:v0=0.5,if", "analog", "spikes,membrane") + _ways("if", "poisson", "spikes", 2)
    found = sweep_runs(networks, 12, ways, output=tmp_path, **HOW)
    assert found.known == 0 and [row.seeds for row in found.rows] == 2 * [1, 1, 1, 1, 2]
    table = _table(tmp_path / "sweep.csv")
    assert len(table) == 2 * len(ways) * 12
    for k in (1, 5, 6, 8):
        (folder, snn), way = networks[k // 6], ways[k % 6]
        single = simulate_run(folder, 12, way, snn=snn, output=tmp_path / "single", **HOW)
        of_point = table[12 * k : 12 * (k + 1)]
        assert [int(row["T"]) for row in of_point] == list(range(1, 13))
        assert [float(row["accuracy"]) for row in of_point] == single.curve.tolist()
        said = ("snn", "norm", "neurons", "coding", "readout", "seed", "network", "data", "images")
        for row in of_point:
            assert {of: row[of] for of in said} == {of: str(single.summary[of]) for of in said}
            assert row["run"] == str(folder)
            assert float(row["ann_accuracy"]) == single.summary["ann_accuracy"]
    drawn = next(row for row in found.rows if row.label == "tcl, if, poisson, spikes")
    assert np.any(drawn.accuracy[0] != drawn.accuracy[1])
    assert (tmp_path / "sweep.png").read_bytes().startswith(b"\x89PNG")


def test_runs_that_differ_in_their_seed_are_one_row(networks, tmp_path, made):
    folder, snn = networks[0]
    other = Path(shutil.copytree(folder, tmp_path / "other"))
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps(config | {"seed": 7}))
    both = [Network(folder, snn), Network(other, snn)]
    [row] = sweep_runs(both, 5, _ways("if", "analog", "spikes"), output=tmp_path, **HOW).rows
    assert (row.label, row.seeds) == ("", 2)
    table = _table(tmp_path / "sweep.csv")
    assert [(r["run"], r["trained.seed"]) for r in table[::5]] == [
        (str(folder), "0"),
        (str(other), "7"),
    ]


def test_another_number_compiles_nothing(networks, compilations, tmp_path):
    first = [Simulation(IF(v0=0.1), Poisson(), seed=5)]
    sweep_runs(networks[:1], 8, first, output=tmp_path, **HOW)
    assert compilations
    compilations.clear()
    others = [Simulation(IF(v0=v0), Poisson(), seed=seed) for v0 in (0.2, 0.3) for seed in (0, 1)]
    found = sweep_runs(networks, 8, others, output=tmp_path, **HOW)
    assert found.known == 0 and len(found.rows) == 4
    assert not compilations


def test_what_was_simulated_is_not_again(networks, tmp_path, made):
    ways = _ways("if", "analog", "spikes,membrane")
    whole = sweep_runs(networks, 10, ways[:1], output=tmp_path, **HOW)
    assert len(made) == 2 and whole.known == 0
    more = sweep_runs(networks, 6, ways, output=tmp_path, **HOW)  # the shorter is known too
    assert len(made) == 4 and more.known == 2
    of_spikes = [row for row in more.rows if row.label.endswith("spikes")]
    for long, short in zip(whole.rows, of_spikes, strict=True):
        assert short.accuracy.tolist() == long.accuracy[:, :6].tolist()
    longer = sweep_runs(networks, 12, ways[:1], output=tmp_path, **HOW)
    assert len(made) == 6 and longer.known == 0
    sweep_runs(networks, 12, ways[:1], output=tmp_path, images=20, batch_size=20)  # other images
    assert len(made) == 8
    kept = json.loads((tmp_path / "sweep.json").read_text())
    assert len(kept) == 6
    assert all({"commit", "command", "hardware", "run"} <= point.keys() for point in kept.values())


def test_what_ended_is_kept_whatever_ends_the_sweep(networks, tmp_path, made, monkeypatch):
    def breaks(*args, **how):
        if made:
            raise KeyboardInterrupt
        return curves(*args, **how)

    curves = sweep.curves
    ways = _ways("if", "analog", "spikes,membrane")
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(sweep, "curves", breaks)
        sweep_runs(networks, 5, ways, output=tmp_path, **HOW)
    assert not (tmp_path / "sweep.csv").exists()
    found = sweep_runs(networks, 5, ways, output=tmp_path, **HOW)
    assert found.known == 1 and len(made) == 4


@pytest.mark.parametrize("content", ["{", "[1]", '{"a": {}}', '{"a": {"accuracy": 1}}'])
def test_a_damaged_record_is_told(content, networks, tmp_path):
    (tmp_path / "sweep.json").write_text(content)
    with pytest.raises(InputError, match=r"sweep\.json.* is damaged .*: move it away"):
        sweep_runs(networks, 5, _ways("if", "analog", "spikes"), output=tmp_path, **HOW)
    assert (tmp_path / "sweep.json").read_text() == content


def test_a_network_that_is_replaced_is_simulated_anew(one, made):
    folder, snn = one
    ways = _ways("if", "analog", "spikes")
    before = sweep_runs([Network(*one)], 5, ways, output=folder, **HOW)
    table = (folder / "sweep.csv").read_bytes()
    convert_run(open_run(folder), norm="percentile:80", snn=snn, images=IMAGES, batch_size=20)
    [aside] = folder.glob("**/replaced-*/sweep.csv")
    assert aside.read_bytes() == table and not (folder / "sweep.png").exists()
    after = sweep_runs([Network(*one)], 5, ways, output=folder, **HOW)
    assert after.known == 0
    assert after.rows[0].accuracy.tolist() != before.rows[0].accuracy.tolist()


def test_the_same_network_under_two_names_is_simulated_once_and_told(one, made):
    folder, snn = one
    shutil.copytree(folder / snn, folder / "copy")
    both = [Network(folder, snn), Network(folder, "copy")]
    found = sweep_runs(both, 5, _ways("if", "analog", "spikes"), output=folder, **HOW)
    assert len(made) == 1 and len(found.rows) == 2
    assert found.alike == [[f"{snn} (tcl)", "copy (tcl)"]]


def test_a_norm_is_found_or_converted(one):
    folder, snn = one
    again = of_norm(folder, NORMS.read("tcl"))
    assert again == Network(folder, snn)
    made = of_norm(folder, NORMS.read("max/channel"), batch_size=20)
    assert made.snn == "snn-max-channel"
    assert of_norm(folder, NORMS.read("max/channel")) == made
    shutil.copytree(folder / made.snn, folder / "copy")
    with pytest.raises(InputError, match=r"several .* norm max/channel \(copy, snn-max-channel\)"):
        of_norm(folder, NORMS.read("max/channel"))


def _point(accuracy, **of):
    known = {"run": "a", "network": "cnet", "data": "digits", "norm": "tcl", "coding": "analog"}
    return known | {"delay": 0, "seed": 0, "ann_accuracy": 0.9, "accuracy": accuracy} | of


def test_runs_of_several_seeds_are_one_row():
    points = [
        _point(
            [0.1 * seed, 0.8],
            run=f"{alpha}-{seed}",
            trained={"optim.alpha": alpha, "optim.lr": "0.1", "seed": f"{seed}"},
        )
        for alpha in ("0.001", "0.0001")
        for seed in range(3)
    ]
    common, found = rows(points)
    assert common == "cnet, digits, tcl norm, analog coding"
    assert [row.label for row in found] == ["alpha=0.001", "alpha=0.0001"]
    for row in found:
        np.testing.assert_allclose(row.accuracy.mean(0), [0.1, 0.8])
        np.testing.assert_allclose(spread(row.accuracy), [0.1, 0.0], atol=1e-15)
    # The same settings twice, or none known: only the folders tell them apart.
    points[1] = points[0] | {"run": "again"}
    assert [row.label for row in rows(points)[1]][:2] == ["0.001-0", "again"]
    del points[0]["trained"]
    assert [row.label for row in rows(points)[1]][:2] == ["0.001-0", "again"]


def test_labels_name_what_differs():
    cnet = {"snn": "snn", "trained": {"model.name": "cnet", "epochs": "3", "seed": "0"}}
    vgg = {"run": "b", "network": "vgg16", "trained": {"model.name": "vgg16", "epochs": "5"}}
    by_norm = [_point([0.5], **cnet), _point([0.5], **vgg), _point([0.5], delay=3, **vgg)]
    assert [row.label for row in rows(by_norm)[1]] == [
        "cnet, delay 0",
        "vgg16, delay 0",
        "vgg16, delay 3",
    ]
    rounded = _point([0.5], **cnet | {"snn": "b", "weights": "int8"})
    assert [row.label for row in rows([by_norm[0], rounded])[1]] == ["tcl", "tcl int8"]
    # Two of one norm: by their names, and by their checkpoints where these differ.
    best = _point([0.5], **cnet | {"snn": "best"})
    assert [row.label for row in rows([by_norm[0], best])[1]] == ["snn", "best"]
    steps = [by_norm[0] | {"checkpoint_step": 66}, best | {"checkpoint_step": 44}]
    assert [row.label for row in rows(steps)[1]] == ["snn, step 66", "best, step 44"]


def test_tables_fit_80_columns_and_show_every_latency(capsys, monkeypatch):
    monkeypatch.setattr(tables._console, "_width", 80)
    points = [
        _point(np.linspace(seed / 100, 1.0, 350), norm=norm, coding="poisson", seed=seed)
        for norm in ("percentile:99.99/channel", "max")
        for seed in range(3)
    ]
    common, found = rows(points)
    latencies = [4, 8, 16, 20, 25, 30, 35, 50, 100, 150, 200, 250, 300, 350]
    tables.print_sweep(common, found, latencies)
    printed = capsys.readouterr().out
    assert max(map(len, printed.splitlines())) <= 80
    header = " ".join(line for line in printed.splitlines() if "T =" in line)
    assert [int(word) for word in header.split() if word.isdigit()] == latencies
    expected = np.array([point["accuracy"] for point in points])[:3, 3]
    assert f"{100 * expected.mean():.2f}" in printed
    assert f"±{100 * np.std(expected, ddof=1):.2f}" in printed
    assert "ANN 90.00" in printed


def test_a_table_of_networks_of_few_and_of_many_classes(tmp_path):
    few = _point([0.5, 0.6])
    many = _point([0.3, 0.4], run="b", data="cifar100", top5=[0.8, 0.9], ann_top5_accuracy=0.95)
    for points in ([few, many], [many, few]):
        write_points(points, tmp_path / "sweep.csv")
        table = {(r["data"], r["T"]): r for r in _table(tmp_path / "sweep.csv")}
        assert table["cifar100", "2"]["top5"] == "0.9" and table["digits", "2"]["top5"] == ""
        assert table["cifar100", "1"]["ann_top5_accuracy"] == "0.95"
        assert table["digits", "2"]["accuracy"] == "0.6"


def test_of_many_classes_there_is_a_table_of_top_5(capsys):
    points = [_point([0.5, 0.6], norm=norm, top5=[0.8, 0.9]) for norm in ("tcl", "max")]
    tables.print_sweep(*rows(points), [1, 2])
    assert "top-5 accuracy in %: cnet, digits, analog coding; ANN –" in capsys.readouterr().out


def test_a_sweep_from_the_command_line(networks, tmp_path):
    folder, _ = networks[0]
    options = ["--norm", "tcl,percentile:90", "--coding", "analog,poisson", "--seeds", 2]
    options += ["--timesteps", 8, "--images", 40, "--batch-size", 20, "--output", tmp_path]
    done = succeed("simulate", folder, *options)
    assert "accuracy in %: cnet, digits, 40 test images, if neurons, spikes readout" in done.out
    assert "│ percentile:90, poisson │     2 │" in done.out and "converted" not in done.out
    assert not (tmp_path / "curve.csv").exists()
    again = succeed("simulate", folder, *options)
    known = f"6 of 6 simulations were there already, in {tmp_path / 'sweep.json'}\n"
    assert again.out == done.out + known


def test_ways_are_the_product_of_the_lists():
    options = ["run", "--neurons", "if,if:v0=0.5", "--coding", "analog,poisson", "--seeds", "2"]
    o = check_options(Options, None, [*options, "--seed", "3", "--delay", "4,auto,4"], prog="x")
    ways = [
        (str(w["neurons"]), w["coding"], w["delay"], w["seed"])
        for w in (way.said() for way in o.settings())
    ]
    assert ways == [
        (neurons, coding, delay, seed)
        for neurons in ("if", "if:v0=0.5")
        for coding, seeds in (("analog", (3,)), ("poisson", (3, 4)))
        for delay in (4, "auto")
        for seed in seeds
    ]


@pytest.mark.parametrize(
    "options, said",
    [
        (["--readout", "spikes,membrane", "--energy"], "of one spiking network that is simulated"),
        (
            ["--snn", "a,b", "--adaptive"],
            "--adaptive, --energy, --error and --plan are of one spiking",
        ),
        (
            ["--seeds", "3"],
            "--seeds is 3: give one for a coding that draws nothing, and one",
        ),
        (["--norm", "tcl", "--snn", "a"], "--norm finds spiking networks, which --snn names"),
        (["--margin", "count"], "unknown margin 'count': did you mean 'counts'?"),
        (["--delay", "1,x"], "--delay takes a whole number or auto, or several, got 'x'"),
        (["other"], "say where a sweep of several runs is written, as in --output sweep"),
    ],
)
def test_sweeps_that_cannot_be(options, said, trained):
    done = run("simulate", trained.folder, *options)
    assert (done.status, done.out) == (2, "")
    assert said in done.err and done.err.count("\n") == 1
