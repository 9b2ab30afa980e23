"""Compiled programs, kept for the next command: the same shapes are compiled once.

What JAX keeps is run as it is found, so it lies where only its user may write, apart for each kind
of processor: what is compiled for one may crash another, as where nodes share a home.
"""

import contextlib
import glob
import hashlib
import math
import os
import platform
import re
import sys
import warnings
from pathlib import Path
from typing import TextIO

import jax
import platformdirs

_MOST = 2 << 30
"""Bytes that all of them may take; then those go that were not used for longest."""

_FAILED = re.compile(r"Error (reading|writing) persistent compilation cache entry for '([^']*)'")
"""How JAX warns; the name is that which the file's begins with."""


def keep_programs() -> None:
    """Keep what is compiled from now on in the user's cache folder; call before all compilation.

    JAX's own variables decide where they are given: ``JAX_COMPILATION_CACHE_DIR`` names another
    folder, and ``JAX_ENABLE_COMPILATION_CACHE=false`` keeps nothing.
    """
    enabled = jax.config.values["jax_enable_compilation_cache"]
    if "JAX_COMPILATION_CACHE_DIR" in os.environ or not enabled:
        return
    everywhere = platformdirs.user_cache_path("tcl_jax")
    folder = everywhere / _processor()
    try:
        new = not folder.exists()
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError:  # as where there is no home: then all is compiled each time
        return
    if not os.access(folder, os.W_OK):
        return
    with contextlib.suppress(OSError):  # another command may do the same just now
        _trim(everywhere)
    if new:
        off = "JAX_ENABLE_COMPILATION_CACHE=false"
        print(f"compiled programs are kept in {folder}; {off} keeps none", file=sys.stderr)
    jax.config.update("jax_compilation_cache_dir", str(folder))
    # Most of what a command waits for is many short ones.
    if "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS" not in os.environ:
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    _mend(folder)


def _processor() -> str:
    """A name of its kind, the same for those that can run the same programs."""
    told = platform.processor()
    if (system := Path("/proc/cpuinfo")).exists():
        lines = system.read_text(encoding="utf-8", errors="replace").splitlines()
        told = next((line for line in lines if re.match(r"flags\b|Features\b", line)), told)
    able = " ".join(sorted(told.split()))
    return f"{platform.machine()}-{hashlib.sha256(able.encode()).hexdigest()[:8]}"


def _trim(folder: Path) -> None:
    """Delete what was used least recently, where all is more than it may be."""
    found = [(path, path.stat()) for path in folder.rglob("*") if path.is_file()]
    taken = 0
    for path, about in sorted(found, key=lambda f: -max(f[1].st_atime, f[1].st_mtime)):
        taken += about.st_size
        if taken > _MOST:
            path.unlink(missing_ok=True)


def _mend(folder: Path) -> None:
    """Delete what cannot be read, as of a process that was killed while it wrote.

    JAX would warn of it for ever: it compiles in its place, and does not write what there is.
    """
    show = warnings.showwarning

    def shown(
        message: Warning | str,
        category: type[Warning],
        filename: str,
        lineno: int,
        file: TextIO | None = None,
        line: str | None = None,
    ) -> None:
        failed = _FAILED.match(str(message))
        if failed is None:
            show(message, category, filename, lineno, file, line)
            return
        for path in folder.glob(f"{glob.escape(failed[2])}-*"):
            path.unlink(missing_ok=True)
        if failed[1] == "writing":  # as on a full disk: once is enough
            jax.config.update("jax_persistent_cache_min_compile_time_secs", math.inf)
            show(message, category, filename, lineno, file, line)

    warnings.showwarning = shown
    warnings.filterwarnings("always", _FAILED.pattern)
