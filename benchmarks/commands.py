"""What is compiled once only: `python -m benchmarks.commands` writes results/commands.

Each command line of a small network, as a new user's: seconds that it takes where nothing is kept,
the first time, and again for another run, and how many programs it compiles.  Takes five minutes.
"""

import json
import os
import re
import subprocess
import sys
import tempfile
import textwrap
import time
from pathlib import Path
from typing import Any

from results.pages import WIDTH, source, table
from tcl_jax import provenance
from tcl_jax.record import write_json

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "results" / "commands"
NETWORKS = ("cnet", "resnet20")
COMMANDS = (
    ("train", "digits-{network}", "--epochs", "1", "--workdir", "{run}"),
    ("convert", "{run}"),
    ("simulate", "{run}", "--timesteps", "100"),
)
WAYS = ("none kept", "first", "again")


def main() -> int:
    record: dict[str, Any] = {**provenance.describe(), "seed": 0, "rows": []}
    RESULTS.mkdir(parents=True, exist_ok=True)
    for network in NETWORKS:
        with tempfile.TemporaryDirectory() as folder:
            rows = {command[0]: {"network": network, "command": command[0]} for command in COMMANDS}
            for way in WAYS:
                for name, *options in COMMANDS:
                    run = Path(folder) / way.replace(" ", "-")
                    told = [option.format(network=network, run=run) for option in options]
                    rows[name][way] = _measured(name, told, Path(folder), way != WAYS[0])
                    print(f"{network}, {name}, {way}: {rows[name][way]}", flush=True)
        record["rows"] += rows.values()
        write_json(RESULTS / "commands.json", record)
    _write(json.loads((RESULTS / "commands.json").read_text(encoding="utf-8")))
    return 0


def _measured(name: str, options: list[str], home: Path, kept: bool) -> dict[str, float]:
    """Seconds of a command, and how many programs it did not find among those that are kept."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("JAX_")} | {
        "JAX_PLATFORMS": "cpu",
        "JAX_ENABLE_COMPILATION_CACHE": str(kept).lower(),
        "JAX_EXPLAIN_CACHE_MISSES": "true",
        "XDG_CACHE_HOME": str(home),
    }
    started = time.perf_counter()
    done = subprocess.run(
        [sys.executable, str(ROOT / f"{name}.py"), *options],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    seconds = time.perf_counter() - started
    return {
        "seconds": seconds,
        "compiled": len(re.findall("PERSISTENT COMPILATION CACHE MISS", done.stderr)),
    }


def _write(record: dict[str, Any]) -> None:
    rows = [
        (
            row["network"],
            row["command"],
            *(f"{row[way]['seconds']:.1f}" for way in WAYS),
            *(str(row[way]["compiled"]) for way in WAYS[1:]),
        )
        for row in record["rows"]
    ]
    text = (
        "Seconds of a command where compiled programs are not kept, where they are, the first "
        "time, and again for another run of the same shapes; and how many programs it compiles "
        "the first time, and again. Trained for one epoch on images of digits, simulated to T=100."
    )
    lines = [
        "# Commands, and what they need not compile again",
        "",
        "Written by `python -m benchmarks.commands`.",
        "",
        *textwrap.wrap(text, WIDTH),
        "",
        *table(("network", "command", "none kept", "first", "again", "compiled", "again"), rows),
        "",
        *source(record),
    ]
    (RESULTS / "README.md").write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
