"""Reports say what the records say, and nothing else."""

import json

import pytest

from results.experiment import Curve, _ranges, write_report
from tcl_jax.report.plots import plot_curves
from tcl_jax.report.tables import print_conversion

PNG = b"\x89PNG\r\n\x1a\n"


def _record(folder, *, tcl, ann, accuracy, snn="snn"):
    """What a run and its simulation leave behind."""
    (folder / snn).mkdir(parents=True)
    about = {
        "command": f"python train.py x --workdir {folder.name}",
        "commit": "0123456789abcdef+changes",
    }
    about["hardware"] = {"device": "a processor", "host_cores": 3}
    (folder / "config.json").write_text(json.dumps({"seed": 7}))
    (folder / "environment.json").write_text(json.dumps(about))
    lam = {"act10": 1.5, "act2": 2.5} if tcl else {}  # as JAX sorts them
    epochs = [
        {
            "kind": "epoch",
            "step": 10 * e,
            "epoch": e,
            "train_loss": 1 / e,
            "test_loss": 1.1 / e,
            "train_accuracy": 0.9,
            "test_accuracy": ann,
            "lambda": lam,
        }
        for e in (1, 2)
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(e) + "\n" for e in epochs))
    rows = "".join(f"{t},{a}\n" for t, a in enumerate(accuracy, start=1))
    (folder / snn / "curve.csv").write_text("T,accuracy\n" + rows)
    summary = {
        "tcl": tcl,
        "ann_accuracy": ann,
        "images": 123,
        "readout": "spikes",
        "v0": 0.0,
    }
    for file in ("summary.json", "conversion.json"):
        (folder / snn / file).write_text(json.dumps(summary | about))
    return Curve.read("TCL" if tcl else "max norm", folder, snn)


@pytest.fixture
def report(tmp_path):
    tcl = _record(tmp_path / "net-tcl", tcl=True, ann=0.93, accuracy=[0.1, 0.5, 0.8, 0.9254])
    plain = _record(tmp_path / "net-relu", tcl=False, ann=0.94, accuracy=[0.1, 0.2, 0.85, 0.86])
    readme = tmp_path / "project.md"
    readme.write_text("before\n<!-- results:x -->\nold\n<!-- end:x -->\nafter\n")
    write_report("x", {"net": [tcl, plain]}, ["net, 99 % norm: not trained"], tmp_path, readme)
    return tmp_path


def test_table_holds_the_figures_of_the_curves(report):
    page = (report / "README.md").read_text()
    assert "(commit 0123456789+changes; a processor, 3 cores)" in page
    assert "| T   |   TCL | max norm |\n" in page
    assert "| 4   | 92.54 |    86.00 |\n" in page
    assert "| ANN | 93.00 |    94.00 |\n" in page
    said = " ".join(page.split())
    assert (
        "123 test images, spikes readout, V(0) = 0; trained for 2 epochs, seed 7, one run" in said
    )
    assert "a processor, 3 cores." in said
    assert max(map(len, page.split("## Commands")[0].splitlines())) <= 80


def test_what_is_left_out_is_named_in_the_page_and_the_readme(report):
    for page in ("README.md", "project.md"):
        assert (
            "### Left out of the tables\n\n- net, 99 % norm: not trained.\n"
            in (report / page).read_text()
        )


def test_findings_are_those_of_the_figures(report):
    page = " ".join((report / "README.md").read_text().split())
    assert "The ANN with TCL is 1.00 points below the one without" in page
    said = (
        "TCL is above the max norm at every T from 1 to 4, except: level at T = 1, behind at T = 3."
    )
    assert said in page


def test_neighbouring_latencies_are_drawn_together():
    assert _ranges([1, 2, 3, 7, 9, 10]) == "1–3, 7, 9–10"


def test_readme_keeps_what_is_not_the_results(report):
    text = (report / "project.md").read_text()
    assert text.startswith("before\n<!-- results:x -->")
    assert text.endswith("<!-- end:x -->\nafter\n")
    assert "old" not in text


def test_plots_and_history_are_written_beside(report):
    for plot in ("net.png", "net-tcl/lambda.png", "net-tcl/training.png", "net-relu/training.png"):
        assert (report / plot).read_bytes().startswith(PNG)
    assert (report / "net-tcl/lambda.csv").read_text() == "epoch,act2,act10\n1,2.5,1.5\n2,2.5,1.5\n"
    assert not (report / "net-relu/lambda.csv").exists()


def test_a_curve_of_one_step_can_be_plotted(tmp_path):
    plot_curves({"a": [0.5]}, {"": 0.9}, tmp_path / "one.png", title="T = 1")
    assert (tmp_path / "one.png").read_bytes().startswith(PNG)


def test_norm_factors_of_channels_are_printed_as_a_range(capsys):
    verification = {
        "images": 10,
        "same_class": 10,
        "largest_logit": 3.0,
        "max_abs_logit_difference_folded": 0.0,
        "max_abs_logit_difference_normalised": 0.0,
    }
    lam = {"one": 1.25, "loose": 3e9, "many": [0.5] * 100 + [0.25] + [2.0] * 90, "map": [[[0.5]]]}
    about = {"norm": "max/channel", "lambda": lam, "verification": verification}
    about["ann"] = {"images": 10, "accuracy": {"float32": 0.5}}
    print_conversion({**about, "checkpoint_step": 9, "total_steps": 9})
    rows = {
        cells[0].strip(): cells[1].strip()
        for line in capsys.readouterr().out.splitlines()
        if len(cells := line.strip("│").split("│")) == 2
    }
    assert rows == {
        "one": "1.2500",
        "loose": "3.000e+09",
        "many": "0.2500–2.0000, median 0.5000 of 191",
        "map": "0.5000–0.5000, median 0.5000 of 1",
    }
