"""What single neurons do, against loops in NumPy; its pictures, and the page of a run."""

import json
import re
import shutil
import subprocess
from html.parser import HTMLParser

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toys
from cli import alone, run, succeed
from cli import converted as converted
from cli import trained as trained
from PIL import Image

from tcl_jax import InputError, clip, convert, simulation
from tcl_jax.promotion import implicit
from tcl_jax.report.page import Picture, Section, Table, write_page
from tcl_jax.runs.converted import open_converted
from tcl_jax.runs.page import _decisions
from tcl_jax.runs.report import report_run
from tcl_jax.simulation import IF, READOUTS, Blocked, Scan, Simulation, find_layers, traces

T = 15


# --- Traces -------------------------------------------------------------------------------------


def _network(rng):
    """Of whole eighths, so that no rounding can make a difference."""
    first = jnp.asarray(rng.integers(-4, 8, (3, 4)) / 8, jnp.float32)
    second = jnp.asarray(rng.integers(-8, 9, (4, 2)) / 8, jnp.float32)

    @implicit()
    def function(_, x):
        return clip(jax.nn.relu(x @ first), 2.0) @ second

    x = jnp.asarray(rng.integers(0, 9, (5, 3)) / 8, jnp.float32)
    graph = convert(function, None, [x])
    return graph, x


@pytest.mark.parametrize("executor", [Scan(), Blocked(4)])
@pytest.mark.parametrize("refractory", [0, 2])
def test_traces_are_those_of_every_neuron(refractory, executor, rng):
    graph, x = _network(rng)
    how = Simulation(IF(v0=0.5, refractory=refractory), executor=executor, delay=3)
    found = traces(graph, x, T, settings=how)
    hidden, output = graph.spiking
    assert list(found) == [hidden.name, output.name]

    kernels = [np.asarray(n.op.kernel, np.float64) for n in graph.nodes if hasattr(n.op, "kernel")]
    v, rest, out = np.full((5, 4), 0.5), np.zeros((5, 4)), np.zeros((5, 2))
    threshold = float(output.op.threshold)
    for t in range(T):
        v = v + np.where(rest > 0, 0, np.asarray(x, np.float64) @ kernels[0])
        fires = (v >= 1) & (rest == 0)
        v = v - fires
        rest = np.where(fires, refractory, np.maximum(rest - 1, 0))
        np.testing.assert_array_equal(found[hidden.name].spikes[t], fires)
        np.testing.assert_array_equal(found[hidden.name].potential[t], v)
        if t >= 3:
            out = out + fires @ kernels[1]
            out = out - threshold * (out >= threshold)
        np.testing.assert_allclose(found[output.name].potential[t], out / threshold, atol=1e-5)
    assert found[hidden.name].spikes.dtype == jnp.int32 and found[hidden.name].spikes.any()


def test_traces_of_whole_numbers_are_in_thresholds(rng):
    graph, x = _network(rng)
    name = graph.neurons[0].name
    exact, whole = (traces(g, x, T, [name])[name] for g in (graph, simulation.quantise(graph, x)))
    np.testing.assert_array_equal(whole.spikes, exact.spikes)
    np.testing.assert_allclose(whole.potential, exact.potential, atol=0.2)


def test_a_membrane_readout_is_a_sum(rng):
    graph, x = _network(rng)
    how = Simulation(readout=READOUTS.read("membrane"))
    trace = traces(graph, x, T, ["output"], how)["output"]
    charge = simulation.simulate(graph, x, T, how).output
    np.testing.assert_allclose(trace.potential[-1], charge / graph.output.op.threshold, rtol=1e-6)
    assert not trace.spikes.any()


def test_models_of_others_have_traces_too(rng):
    graph, x = _network(rng)
    how = Simulation(neurons=toys.Burst())
    trace = traces(graph, 4 * x, T, settings=how)[graph.neurons[0].name]
    assert trace.spikes.max() > 1
    current = 4 * np.asarray(x, np.float64) @ np.asarray(graph.nodes[1].op.kernel)
    given = np.asarray(trace.spikes).sum(0) + np.asarray(trace.potential)[-1]
    np.testing.assert_array_equal(given, T * current)  # nothing is lost


def test_layers_are_found_by_parts_of_their_names(trained, converted):
    graph = open_converted(trained.folder, converted).artifact.graph
    names = [n.name for n in graph.spiking]
    assert find_layers(graph, ["output", "act2"]) == (names[1], names[-1])
    assert find_layers(graph, ["tcl/neuron"]) == tuple(names[:-1])
    assert find_layers(graph, names) == tuple(names)
    with pytest.raises(InputError, match=r"is called 'atc2': did you mean act2"):
        find_layers(graph, ["act1", "atc2"])
    with pytest.raises(InputError, match=r"is called 'act': did you mean act\d"):
        find_layers(graph, ["act"])
    with pytest.raises(InputError, match=r"is called 'xyz': there are CNET/act1/tcl/neuron, "):
        find_layers(graph, ["xyz"])


# --- The page -----------------------------------------------------------------------------------


class _Read(HTMLParser):
    """What a page asks for, and its text."""

    def __init__(self, text):
        super().__init__()
        self.asks, self.pictures, self.text, self.cells = [], [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        found = dict(attrs)
        if tag == "img":
            self.pictures.append(found["alt"])
        if tag in ("script", "link", "iframe", "object"):
            self.asks.append(tag)
        self.asks += [found[of] for of in ("src", "href", "srcset") if found.get(of)]

    def handle_data(self, data):
        self.text.append(data)


def test_a_page_loads_nothing_and_shows_texts_as_they_are(tmp_path):
    (tmp_path / "a.png").write_bytes(b"\x89PNG")
    table = Table(["<b>", "λ"], [["a & b", "</td>"]], "of <i>")
    section = Section("One & two", ["1 < 2"], [table], [Picture(tmp_path / "a.png", 'a "b"')])
    write_page(tmp_path / "page.html", "<t>", "s", [section, Section("Three", command="make it")])
    page = _Read((tmp_path / "page.html").read_text(encoding="utf-8"))
    assert page.asks == ["#one-&-two", "#three", "data:image/png;base64,iVBORw=="]
    assert page.pictures == ['a "b"']
    assert {"<t>", "1 < 2", "<b>", "λ", "a & b", "</td>", "of <i>", "make it"} <= set(page.text)


@pytest.fixture(scope="module")
def inspected(trained, converted, tmp_path_factory):
    """A run that was simulated, and looked into."""
    folder = alone(trained.folder, tmp_path_factory.mktemp("inspected") / "run")
    shutil.copytree(trained.folder / converted, folder / "snn")
    report_run(open_converted(folder, "snn"), images=20, timesteps=(5, 10))
    for option in ("--energy", "--error"):
        succeed("simulate", folder, "--timesteps", 30, "--images", 50, option)
    printed = _inspect(folder, "--image", "3,0", "--layers", "act1,output", "--timesteps", 30)
    return folder, printed


def _inspect(*arguments):
    return succeed("tcl_jax/__main__", "inspect", *arguments).out


def test_traces_of_a_run_are_kept(inspected):
    folder, printed = inspected
    opened = open_converted(folder, "snn")
    with np.load(folder / "inspect" / "traces.npz") as kept:
        arrays = dict(kept)
    (batch,) = opened.batches("test", 4, limit=4)
    images = batch["image"][np.array([3, 0])]
    np.testing.assert_array_equal(arrays["images"], images)
    np.testing.assert_array_equal(arrays["labels"], np.asarray(batch["label"])[[3, 0]])
    names = find_layers(opened.artifact.graph, ["act1", "output"])
    expected = traces(opened.artifact.graph, images, 30, names)
    for name in names:
        np.testing.assert_array_equal(arrays[f"{name}/spikes"], expected[name].spikes)
        potential = expected[name].potential
        np.testing.assert_allclose(arrays[f"{name}/potential"], potential, atol=1e-5)
    record = json.loads((folder / "inspect" / "inspect.json").read_text())
    for i, seen in enumerate(record["images"]):
        classes = arrays["classes"][:, i]
        assert seen["class"] == classes[-1] and seen["label"] == arrays["labels"][i]
        since = seen["settled_at"]
        assert (classes[since - 1 :] == classes[-1]).all()
        assert since == 1 or classes[since - 2] != classes[-1]
        assert re.search(rf"{seen['image']} │ +{seen['label']} │", printed)
    assert [seen["image"] for seen in record["images"]] == [3, 0]
    for number in (0, 3):
        picture = folder / "inspect" / f"image-{number}.png"
        assert picture.read_bytes().startswith(b"\x89PNG")


def test_the_page_of_a_run_holds_all_there_is(inspected):
    folder, _ = inspected
    page = _Read((folder / "inspect" / "report.html").read_text(encoding="utf-8"))
    assert all(ask.startswith(("#", "data:image/png;base64,")) for ask in page.asks)
    text = " ".join(" ".join(page.text).split())
    summary = json.loads((folder / "summary.json").read_text())
    energy = json.loads((folder / "energy.json").read_text())
    assert f"{summary['snn_accuracy']['30']:.2%}" in text
    assert f"{energy['at']['30']['energy_uj']:,.3f}" in text
    assert f"{energy['ann']['macs']:,}" in text
    assert f"Nothing yet: python simulate.py {folder} --adaptive" in text
    report = json.loads((folder / "snn" / "report.json").read_text())
    assert f"{report['layers'][1]['at']['10']['error']:.4f}" in text
    assert f"{summary['rms_error']['30'] / summary['rms_value']:.2%}" in text
    assert "optim.alpha" in text and summary["commit"] in text and summary["command"] in text
    assert "λ of every layer by epoch" in page.pictures and len(page.pictures) == 9


def test_what_another_network_was_measured_to_be_is_left_out(inspected, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(inspected[0], folder)
    summary = json.loads((folder / "summary.json").read_text())
    (folder / "summary.json").write_text(json.dumps(summary | {"snn_fingerprint": "0"}))
    for gone in ("metrics.jsonl", "environment.json", "energy.json", "snn/report.json"):
        (folder / gone).unlink(missing_ok=True)
    _inspect(folder, "--image", 1, "--timesteps", 4, "--output", tmp_path / "seen")
    page = _Read((tmp_path / "seen" / "report.html").read_text(encoding="utf-8"))
    text = " ".join(" ".join(page.text).split())
    for option in ("", " --energy", " --adaptive"):
        assert f"Nothing yet: python simulate.py {folder}{option} " in text
    assert "does not hold its training's metrics" in text

    (folder / "energy.json").write_text("{")
    done = run("tcl_jax/__main__", "inspect", folder, "--image", 1, "--timesteps", 4)
    assert done.status == 2 and f"{folder / 'energy.json'} is damaged" in done.err


def test_decisions_of_older_records_are_shown(inspected):
    """What they do not say is left out."""
    opened = open_converted(inspected[0], "snn")
    figures = {"images": 20, "timesteps": 9, "max_loss_points": 0.1, "mean_steps": 4.5}
    figures |= {"accuracy": 0.75, "accuracy_fixed": 0.8}
    figures |= {"neurons": "if", "coding": "analog", "readout": "spikes", "delay": 3}
    at_mean = {"accuracy_fixed_at_mean": {"T": 5, "accuracy": 0.5}}
    for record, middle in ((figures, []), (figures | at_mean, [["at T = 5", "5", "50.00%"]])):
        section = _decisions(opened, record)
        (table,) = section.tables
        first, *between, last = table.rows
        assert first[1:] == ["4.50", "75.00%"] and last[1:] == ["9", "80.00%"]
        assert between == middle and "delay 3" in section.sentences[0]


@pytest.mark.skipif(not shutil.which("chromium"), reason="needs Debian's chromium")
def test_a_browser_shows_the_page_without_a_network(inspected, tmp_path):
    folder, _ = inspected
    options = ["--headless=new", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr"]
    options += ["--host-resolver-rules=MAP * ~NOTFOUND", f"--user-data-dir={tmp_path / 'home'}"]
    page = (folder / "inspect" / "report.html").as_uri()
    drawn = ["--window-size=1000,3000", f"--screenshot={tmp_path / 'page.png'}"]
    shown, _ = (
        subprocess.run(
            ["chromium", *options, *more, page],
            capture_output=True,
            text=True,
            timeout=120,
            check=True,
        )
        for more in (["--dump-dom"], drawn)
    )
    pixels = np.asarray(Image.open(tmp_path / "page.png").convert("RGB"))
    assert (pixels == (0x1F, 0x77, 0xB4)).all(-1).sum() > 1000  # lines of plots: they are drawn
    assert "CONSOLE" not in shown.stderr  # where what a policy forbids would be told
    dom = _Read(shown.stdout)
    asked = _Read((folder / "inspect" / "report.html").read_text(encoding="utf-8"))
    assert dom.pictures == asked.pictures and dom.asks == asked.asks
    assert "Accuracy against latency" in dom.text


def test_what_cannot_be_looked_into_is_refused(trained, converted, tmp_path):
    def told(*options):
        arguments = [trained.folder, "--snn", converted, "--output", tmp_path, *options]
        done = run("tcl_jax/__main__", "inspect", *arguments)
        assert done.status == 2 and not list(tmp_path.iterdir()), done.err
        return done.err

    assert "--image must be from 0 to 358, got 400" in told("--image", "0,400")
    assert "--image takes whole numbers, as 0,1,2, got 'x'" in told("--image", "0,x")
    assert "no layer of neurons is called 'act9': did you mean" in told("--layers", "act9")
    assert "--delay takes a whole number or auto, got 'x'" in told("--delay", "x")
    assert "give fewer layers, images or timesteps" in told("--timesteps", "1000000")
