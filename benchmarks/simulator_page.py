"""The page of benchmarks.simulator: tables and plots of its records, one of each machine."""

import json
import math
import statistics
import textwrap
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt

from benchmarks.systems import ANNS, PEERS
from results.pages import WIDTH, table
from tcl_jax import provenance

plt.switch_backend("Agg")
# Of whatever is beside ours, always the same.
_COLOURS = {"tcl_jax": "C3", "spikingjelly": "C0", "sinabs": "C1", "snntorch": "C2"}


def write(folder: Path) -> None:
    """README.md, and a plot beside each record.

    Args:
        folder: of the records.
    """
    lines = [
        "# Simulation beside other libraries",
        "",
        *_wrapped(
            "Written by `python -m benchmarks.simulator`, which says how it measures: seconds from "
            "images to output spike counts, medians; weights and images random."
        ),
    ]
    for path in sorted(folder.glob("*.json")):
        record = json.loads(path.read_text(encoding="utf-8"))
        if not record["rows"]:
            continue
        lines += ["", f"## {provenance.machine(record)}", "", *_rows(record)]
        if record.get("growth"):
            lines += ["", *_growth(record)]
        plot = path.with_suffix(".png")
        _plot(record, plot)
        lines += ["", f"![Times beside other libraries, and how they grow]({plot.name})"]
        lines += ["", *_sources(record)]
    (folder / "README.md").write_text("\n".join(lines) + "\n", encoding="utf-8")


def _rows(record: dict[str, Any]) -> list[str]:
    seconds, steps, costs, gains = [], [], [], []
    for key, row in record["rows"].items():
        workload, mine = key.split("/"), row["tcl_jax"]
        for t, ours in mine["seconds"].items():
            theirs = {peer: row[peer]["seconds"][t] for peer in PEERS}
            best = min(theirs, key=theirs.__getitem__)
            gains.append(theirs[best] / ours)
            differ = sum(map(int.__ne__, mine["counts"], row[best]["counts"]))
            times = [f"{s:.4f}" for s in (ours, *theirs.values())]
            of = f"{differ}/{len(mine['counts'])}"
            seconds.append((*workload, t, *times, f"{gains[-1]:.2f}", of))
        last = max(mine["seconds"], key=int)
        step = mine["seconds"][last] / int(last)
        forward = [s for ann in ANNS for s in row[ann]["seconds"].values()]
        times = [f"{1e3 * s:.3f}" for s in (step, *forward)]
        steps.append((*workload, *times, f"{step / min(forward):.2f}"))
        if "compile" in mine:
            costs.append((*workload, *_cost(row, last)))
    lines = [
        *table(("network", "batch", "T", "tcl_jax", *PEERS, "gain", "differ"), seconds),
        "",
        *_wrapped(
            "*gain* is the fastest peer's time over that of tcl_jax: geometric mean "
            f"{math.exp(statistics.fmean(map(math.log, gains))):.2f}, least {min(gains):.2f}. "
            "*differ* counts neurons whose spikes are not that peer's: a potential may meet its "
            "threshold but for the last bits, and snnTorch's neurons fire above it, not at it."
            + _checked(record)
            + " One step beside one forward pass of the network that it came from, in ms:"
        ),
        "",
        *table(("network", "batch", "step", "ANN, JAX", "ANN, PyTorch", "step ÷ ANN"), steps),
    ]
    if costs:
        headings = ("network", "batch", "lower, s", "compile, s", "program", "process", "peer's")
        lines += ["", "To compile, and memory in MiB:", "", *table(headings, costs)]
    return lines


def _cost(row: dict[str, Any], last: str) -> list[str]:
    """What is waited for before the first step, and what memory is taken."""
    mine = row["tcl_jax"]
    residents = [row[system]["resident"] for system in ("tcl_jax", *PEERS)]
    own, *peers = (f"{r / 2**20:.0f}" if r else "–" for r in residents)
    least = min(peers, key=lambda mib: int(mib) if mib.isdecimal() else 0)
    times = [f"{mine['compile'][of]:.1f}" for of in ("lower", last)]
    return [*times, f"{mine['memory'][last] / 2**20:.0f}", own, least]


def _checked(record: dict[str, Any]) -> str:
    checks = record.get("checks", {})
    if not checks:
        return ""
    neurons = sum(check["neurons"] for check in checks.values())
    systems = {system for check in checks.values() for system in check["systems"]} - {"tcl_jax"}
    return (
        f" In float64 all {neurons} counts of {', '.join(checks)} are those of "
        f"{' and '.join(sorted(systems))}."
    )


def _growth(record: dict[str, Any]) -> list[str]:
    """Whether time is in proportion to T and to the batch, and memory does not grow with T."""
    rows = []
    for network, found in record["growth"].items():
        for what, points in (("T", found["timesteps"]), ("batch", found["batch"])):
            first, *_, last = sorted(points, key=int)
            each = [points[n]["seconds"] / int(n) for n in (first, last)]
            more = [
                f"{points[last][of] / points[first][of]:.2f}" if points[last][of] else "–"
                for of in ("memory", "resident")
            ]
            times = [f"{1e3 * s:.3f}" for s in each]
            rows.append((network, f"{what} {first} to {last}", *times, *more))
    return [
        *_wrapped(
            "From few to many, T for one image and batches at the first T: ms for each, and by "
            "what the program's memory grows, and that of the process:"
        ),
        "",
        *table(("network", "growing", "few, ms", "many, ms", "program", "process"), rows),
    ]


def _plot(record: dict[str, Any], path: Path) -> None:
    rows, growth = record["rows"], record.get("growth", {})
    columns = 3 if growth else 1
    figure, every = plt.subplots(1, columns, figsize=(2 + 4.2 * columns, 4.8), squeeze=False)
    beside, *growing = every[0]
    names = []
    for key, row in rows.items():
        for t, ours in row["tcl_jax"]["seconds"].items():
            for system, colour in _COLOURS.items():
                beside.plot(row[system]["seconds"][t] / ours, len(names), "o", color=colour)
            names.append(f"{key.replace('/', ', ')} image{'s' * (key[-2:] != '/1')}, T = {t}")
    beside.set_xscale("log", base=2)
    beside.xaxis.set_major_formatter("{x:g}")
    beside.set_yticks(range(len(names)), names, fontsize=8)
    beside.invert_yaxis()
    beside.set_xlabel("time ÷ that of tcl_jax")
    for system, colour in _COLOURS.items():
        beside.plot([], [], "o", color=colour, label=system)
    beside.legend(fontsize=8, ncols=2, loc="lower center", bbox_to_anchor=(0.5, 1))
    beside.grid(alpha=0.3)
    of = (("timesteps", "T, one image"), ("batch", "images at a time"))
    for axes, (what, label) in zip(growing, of, strict=False):
        for network, found in growth.items():
            points = sorted((int(n), p["seconds"]) for n, p in found[what].items())
            axes.loglog(*zip(*points, strict=True), "o-", markersize=3, label=network)
        axes.set_xlabel(label)
        axes.set_ylabel("seconds")
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)
    figure.suptitle(provenance.machine(record))
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    plt.close(figure)


def _sources(record: dict[str, Any]) -> list[str]:
    commits: dict[str, list[str]] = {}
    for part in ("rows", "checks", "growth"):
        for key, found in record.get(part, {}).items():
            of = key if part == "rows" else f"{part} {key}"
            commits.setdefault(provenance.short(found["commit"]), []).append(of)
    versions = ", ".join(f"{peer} {version}" for peer, version in record["peers"].items())
    if len(commits) == 1:
        return [f"{versions}. Commit {next(iter(commits))}."]
    return [
        f"{versions}. Commits:",
        *(
            line
            for commit, keys in commits.items()
            for line in _wrapped(f"{commit} ({', '.join(keys)})")
        ),
    ]


def _wrapped(text: str) -> list[str]:
    return textwrap.wrap(text, WIDTH, break_on_hyphens=False)
