"""Commands, and whether the records in a folder are those that they would write today."""

import json
import shlex
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tcl_jax import provenance
from tcl_jax.cli import convert, simulate, train
from tcl_jax.cli.options import check_options
from tcl_jax.conversion import norm_method
from tcl_jax.graph import artifact as artifacts
from tcl_jax.runs import adapt
from tcl_jax.runs.simulate import settings_fingerprint
from tcl_jax.training import CONFIG, presets
from tcl_jax.training import config as configs
from tcl_jax.training.log import METRICS, read

ROOT = Path(__file__).resolve().parent.parent
CONVERSION = "conversion.json"
"""What is kept of a spiking network: what it says about itself, and its fingerprint."""


@dataclass(frozen=True)
class Command:
    """One of the project's scripts and its arguments."""

    script: str
    arguments: tuple[str, ...]

    def run(self, *more: str) -> None:
        """Run it from the project's root; ends the program where it fails, having said why."""
        words = (self.script, *self.arguments, *more)
        print("$ python", shlex.join(words), flush=True)
        done = subprocess.run([sys.executable, *words], cwd=ROOT, check=False)
        if done.returncode:
            raise SystemExit(done.returncode)


def load(path: Path) -> dict[str, Any]:
    """A record in JSON; nothing where there is none."""
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def about(snn: Path) -> dict[str, Any]:
    """What a spiking network says about itself, and its fingerprint, in a run or as it was kept."""
    if not (snn / artifacts.GRAPH).exists():
        return load(snn / CONVERSION)
    said: dict[str, Any] = load(snn / artifacts.GRAPH)["about"]
    return said | {"fingerprint": artifacts.fingerprint(snn)}


def untrained(command: Command, run: Path) -> str | None:
    """What a run's folder lacks of what a command of train.py makes; None if nothing."""
    if not (run / CONFIG).exists():
        return "not trained"
    name, *options = command.arguments
    default = train.Options(presets.PRESETS.find(name), Path())
    wanted = check_options(train.Options, default, options, prog=command.script).config
    if differ := configs.differences(configs.read(run / CONFIG), wanted):
        return f"trained with other settings ({'; '.join(differ)})"
    done = _last_epoch(run).get("epoch", 0)
    return None if done == wanted.epochs else f"trained for {done} of {wanted.epochs} epochs"


def unconverted(command: Command, run: Path, snn: str) -> str | None:
    """Likewise of convert.py."""
    if not (said := about(run / snn)):
        return "not converted"
    o = check_options(convert.Options, None, command.arguments, prog=command.script)
    settings = provenance.fingerprint(
        norm=str(norm_method(o.norm)),
        calibration_images=o.calibration_images,
        verification_images=o.verification_images,
        step=_last_epoch(run)["step"],
    )
    return None if said.get("settings") == settings else _older("converted", said)


def unsimulated(command: Command, record: Path, snn: Path) -> str | None:
    """Likewise of simulate.py, which may be adaptive: of a record and the network that it is of."""
    if not (said := load(record)):
        return "not simulated"
    o = check_options(simulate.Options, None, command.arguments, prog=command.script)
    [settings] = o.settings()
    how: dict[str, Any] = {"images": o.images}
    if o.adaptive:
        how |= {"max_loss": o.max_loss, "calibration_images": o.calibration_images}
        how |= {} if o.margin == "charge" else {"margin": o.margin}
    else:
        how["cost"] = o.cost if o.energy else None
    fingerprint = adapt.settings_fingerprint if o.adaptive else settings_fingerprint
    if said.get("settings") != fingerprint(o.timesteps, settings, **how):
        return _older("simulated", said)
    if said["snn_fingerprint"] != about(snn).get("fingerprint"):
        return "simulated on another network than the one that is there"
    return None


def _older(done: str, record: dict[str, Any]) -> str:
    known = "settings" in record
    how = " with other settings than today's" if known else ", with no settings recorded"
    return f"{done}{how}, by `{record['command']}`"


def _last_epoch(run: Path) -> dict[str, Any]:
    records = read(run / METRICS) if (run / METRICS).exists() else []
    return next((r for r in reversed(records) if r["kind"] == "epoch"), {})
