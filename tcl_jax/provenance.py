"""Where a figure comes from: command, code, libraries and hardware, to be written beside it."""

import dataclasses
import hashlib
import json
import os
import platform
import re
import shlex
import subprocess
import sys
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import jax

_LIBRARIES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy")


def describe() -> dict[str, Any]:
    """The running command, the code's commit, library versions and the hardware."""
    device = jax.devices()[0]
    return {
        "command": shlex.join([*_program(), *sys.argv[1:]]),
        "commit": _commit(),
        "python": platform.python_version(),
        "libraries": {name: metadata.version(name) for name in _LIBRARIES},
        "hardware": {
            "backend": device.platform,
            "device": device.device_kind if device.platform != "cpu" else _cpu(),
            "devices": jax.device_count(),
            "processes": jax.process_count(),
            "host_cores": cores(),
        },
    }


def cores() -> int:
    """Of the CPU, how many this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1  # as on a Mac


def short(commit: str) -> str:
    """A recorded commit for a page: ten digits, and still marked where the code was changed.

    >>> short("17ecff495a97fea1ea35a4aac1770fb85dc434b3+changes")
    '17ecff495a+changes'
    """
    return re.sub(r"^([0-9a-f]{10})[0-9a-f]+", r"\1", commit)


def fingerprint(**settings: Any) -> str:
    """Of the settings that a figure depends on, to be written beside it: 16 hex digits.

    A record whose fingerprint is not that of its command's settings is older than the command.

    Args:
        settings: JSON types and dataclasses of such.

    >>> fingerprint(timesteps=100, v0=0.0) == fingerprint(v0=0.0, timesteps=100)
    True
    >>> fingerprint(timesteps=100, v0=0.0) == fingerprint(timesteps=100, v0=0.5)
    False
    """
    text = json.dumps(settings, sort_keys=True, default=dataclasses.asdict)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def machine(record: Mapping[str, Any]) -> str:
    """Where a figure was measured, for a page: of a record that has what `describe` gives.

    >>> machine({"hardware": {"device": "TPU v5e", "host_cores": 112}})
    'TPU v5e, 112 cores'
    """
    return "{device}, {host_cores} cores".format(**record["hardware"])


def _program() -> list[str]:
    """What runs, as it is called from the checkout; of another program the name alone."""
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    if spec is not None:
        return ["python", "-m", spec.name.removesuffix(".__main__")]
    script, root = Path(sys.argv[0]).resolve(), Path(__file__).resolve().parents[1]
    if not script.suffix:  # an installed command
        return [script.name]
    inside = script.is_relative_to(root)
    return ["python", str(script.relative_to(root)) if inside else script.name]


def _commit() -> str:
    """Commit of the checkout that holds this file, marked where tracked files have changed.

    But not where records have, in folders of ``results/``: a command that goes on writes its own.
    Not of a repository that this file merely lies in, as where an environment is part of it.
    """
    here = Path(__file__).resolve()
    # Our checkout may be another user's, as one that is mounted into a container; no other folder's
    # git configuration, which can have programs run, is trusted for that.
    trusted = f"safe.directory={here.parents[1]}"
    # Git tells its hooks of another repository by these.
    environment = {k: v for k, v in os.environ.items() if not k.startswith("GIT_")}

    def git(*args: str) -> str:
        command = ["git", "-C", str(here.parent), "-c", trusted, *args]
        return subprocess.run(
            command, env=environment, capture_output=True, text=True, check=True
        ).stdout.strip()

    try:
        git("ls-files", "--error-unmatch", here.name)
        records = ":(top,exclude,glob)results/*/**"
        changed = git("status", "--porcelain", "--untracked-files=no", "--", ":/", records)
        return git("rev-parse", "HEAD") + ("+changes" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return "not a git checkout"


def _cpu() -> str:
    try:
        info = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.split(":", 1)[1].strip() for line in info.splitlines() if "model name" in line]
    vector = "AVX-512" if "avx512f" in info else "AVX2" if "avx2" in info else "no AVX"
    return f"{names[0] if names else platform.machine()} ({vector})"
