"""What ImageNet's steps take on TPU slices: `python -m benchmarks.plan` writes results/plan.

Each is compiled by the TPU's own compiler, which needs no TPU but pip install 'tcl_jax[plan]', and
minutes of a few cores; what results/plan has already is not compiled again. On the first slice
also with plain ReLUs in place of TCL, and the network that waits longest for its memory with fewer
images.
"""

import argparse
import importlib.metadata
import json
import textwrap
from dataclasses import replace
from pathlib import Path
from typing import Any

from results.pages import WIDTH, table
from tcl_jax import provenance, topology
from tcl_jax.record import write_json
from tcl_jax.training import presets
from tcl_jax.training.plan import plan

RESULTS = Path(__file__).resolve().parent.parent / "results" / "plan"
NETWORKS = ("vgg16", "resnet34", "resnet50", "mobilenet")
SLICES = ("v5e:2x4", "v5e:16x16", "v4:4x4x4")
IMAGES = 128
"""On each chip."""
WAITING, FEWER = "mobilenet", 16
"""The network whose traffic bounds it most, and images of which the layers are smaller than what a
chip keeps near its matrix units."""


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--report-only", action="store_true", help="write the page again")
    path = RESULTS / "plans.json"
    record = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    if not parser.parse_args().report_only:
        RESULTS.mkdir(exist_ok=True)
        about = {**provenance.describe(), "libtpu": importlib.metadata.version("libtpu")}
        wanted = [
            *((network, SLICES[0], tcl, IMAGES) for network in NETWORKS for tcl in (True, False)),
            *((network, name, True, IMAGES) for name in SLICES[1:] for network in NETWORKS),
            (WAITING, SLICES[0], True, FEWER),
        ]
        for network, name, tcl, images in wanted:
            key = f"{network}, {name}, {'TCL' if tcl else 'ReLU'}"
            key += "" if images == IMAGES else f", {images} images"
            if key not in record:
                print(f"{key} …", flush=True)
                record[key] = {**_planned(network, name, tcl, images), "about": about}
                write_json(path, record)
    (RESULTS / "README.md").write_text("\n".join(_page(record)) + "\n", encoding="utf-8")
    return 0


def _planned(network: str, name: str, tcl: bool, images: int) -> dict[str, Any]:
    config = presets.PRESETS.find(f"imagenet2012-{network}")
    there = topology.find(name)
    model = replace(config.model, dtype="bfloat16", tcl=tcl)
    batch_size = images * there.cluster.mesh.size
    return plan(replace(config, model=model, batch_size=batch_size), there).said()


def _page(record: dict[str, Any]) -> list[str]:
    lines = [
        "# ImageNet's training steps on TPU slices, compiled without a TPU",
        "",
        *textwrap.wrap(
            "Written by `python -m benchmarks.plan`: the steps that `train.py` runs, in bfloat16, "
            f"{IMAGES} images of 224×224 on each chip, as the TPU's compiler makes them. Nothing "
            "was run. Least: the roofline, the longest of products, memory traffic and links at "
            "what is published of the chip (`tcl_jax/topology.py`). Expected: the cycles that the "
            "compiler expects its operations to take, one after another. MFU: what the step "
            "needs, as it is written, of what the matrix units can.",
            WIDTH,
            break_on_hyphens=False,
        ),
    ]
    for name in SLICES:
        there = {n: found for n in NETWORKS if (found := record.get(f"{n}, {name}, TCL"))}
        if there:
            lines += ["", f"## {name}", "", *_tables(there)]
    pairs = {
        n: both
        for n in NETWORKS
        if all(both := [record.get(f"{n}, {SLICES[0]}, {how}") for how in ("TCL", "ReLU")])
    }
    if pairs:
        lines += ["", f"## TCL against plain ReLU, {SLICES[0]}", "", *_against(pairs)]
    several, few = (
        record.get(f"{WAITING}, {SLICES[0]}, TCL{more}") for more in ("", f", {FEWER} images")
    )
    if several and few:
        lines += ["", f"## Fewer images, {WAITING} on {SLICES[0]}", "", *_fewer(several, few)]
    return [*lines, "", *_commands(record)]


def _tables(there: dict[str, dict[str, Any]]) -> list[str]:
    """What a step takes on a chip, and what that comes to."""
    takes, comes_to = [], []
    for network, found in there.items():
        seconds = found["seconds"]
        times = [f"{1e3 * seconds[of]:.1f}" for of in ("products", "memory", "links")]
        expected = f"{1e3 * seconds['expected']:.1f}"
        memory, intensity = found["memory_bytes"] / 2**30, found["flops"] / found["bytes"]
        takes.append((network, f"{memory:.2f}", f"{intensity:.0f}", *times, expected))
        for how, of in (("least", "at_bound"), ("expected", "at_expected")):
            at = found[of]
            comes_to.append(
                (
                    f"{network}, {how}",
                    f"{at['images_per_second']:,.0f}",
                    f"{at['epochs_per_hour']:.2f}",
                    f"{at['utilisation']:.1%}",
                    f"{at['cores']:.1f}",
                )
            )
    (chip,) = {(f["published"]["flops"], f["published"]["bandwidth"]) for f in there.values()}
    headings = ("network", "GiB", "FLOP/byte", "products", "memory", "links", "expected")
    return [
        "On each chip; times in ms:",
        "",
        *table(headings, takes),
        "",
        *textwrap.wrap(
            f"A chip has {chip[0] / chip[1]:.0f} FLOP a byte of memory traffic: what has fewer "
            "waits for its memory, as do depthwise convolutions, with a few products for each "
            "number that batch norm and clip read and write again.",
            WIDTH,
        ),
        "",
        "Over all chips; cores are of a host, for each of its chips:",
        "",
        *table(("network, time", "images/s", "epochs/h", "MFU", "cores"), comes_to),
    ]


def _against(pairs: dict[str, list[dict[str, Any]]]) -> list[str]:
    """How much more TCL takes."""

    def more(tcl: float, relu: float) -> str:
        return f"{tcl / relu - 1:+.2%}"

    rows = [
        (
            network,
            more(tcl["flops"], relu["flops"]),
            more(tcl["bytes"], relu["bytes"]),
            more(tcl["memory_bytes"], relu["memory_bytes"]),
            *(more(tcl["seconds"][of], relu["seconds"][of]) for of in ("bound", "expected")),
        )
        for network, (tcl, relu) in pairs.items()
    ]
    return table(("network", "products", "traffic", "memory", "least time", "expected"), rows)


def _fewer(*both: dict[str, Any]) -> list[str]:
    """Whether traffic falls where every layer would have room on the chip."""
    rows = [
        (
            str(images),
            f"{found['bytes'] / images / 2**20:.1f}",
            f"{found['flops'] / found['bytes']:.0f}",
            f"{found['at_bound']['utilisation']:.1%}",
        )
        for images, found in zip((IMAGES, FEWER), both, strict=True)
    ]
    return [
        *table(("images on a chip", "MiB/image", "FLOP/byte", "MFU, least"), rows),
        "",
        *textwrap.wrap(
            "The compiler has each layer's output written and read again whether or not it would "
            "fit: batch norm needs all of it before the next layer, and its gradient all of it "
            "twice.",
            WIDTH,
        ),
    ]


def _commands(record: dict[str, Any]) -> list[str]:
    every = [found["about"] for found in record.values()]
    runs = {(about["command"], about["commit"][:10], about["libtpu"]) for about in every}
    return [
        f"By `{command}` at commit {commit}, libtpu {v}." for command, commit, v in sorted(runs)
    ]


if __name__ == "__main__":
    raise SystemExit(main())
