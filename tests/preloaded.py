"""Runs the command lines in processes that need not import their libraries anew.

Started as a program, it reads one command a line and forks: the child runs the script as its main
program, and the parent answers with its process number; asked for that one's exit status, it
answers with it, or null while there is none.
"""

import atexit
import gc
import json
import os
import resource
import runpy
import sys
import threading
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def serve() -> dict | None:
    """In the parent, None at the end of all commands; in a child, the command to run."""
    for line in sys.stdin:
        asked = json.loads(line)
        if "poll" in asked:
            pid, status = os.waitpid(asked["poll"], os.WNOHANG)
            print(json.dumps(os.waitstatus_to_exitcode(status) if pid else None), flush=True)
            continue
        child = os.fork()
        if child == 0:
            return asked
        print(child, flush=True)
    return None


def become(command: dict) -> None:
    """Be the process that `python SCRIPT ARGUMENTS` would have started."""
    for number, where in ((0, os.devnull), (1, command["out"]), (2, command["err"])):
        os.dup2(os.open(where, os.O_RDWR | os.O_CREAT), number)
    os.environ.update(command["environment"])
    if room := command["room"]:
        import jax

        resource.setrlimit(resource.RLIMIT_FSIZE, (room, room))
        # Anew, for those that there are may be of a file, where these are of pipes.
        sys.stdout, sys.stderr = (open(number, "w", closefd=False) for number in (1, 2))  # noqa: SIM115
        # What is compiled would be written.
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 1e9)
    sys.argv = [command["script"], *command["arguments"]]
    status = 0
    try:
        runpy.run_path(command["script"], run_name="__main__")
    except SystemExit as end:
        if not isinstance(end.code, int | None):
            raise
        status = end.code or 0
    # What the interpreter does at its end, but for freeing all that was imported, which is most of
    # what a short command takes.  Commands that tests start anew, and do not fork, do that too.
    threading._shutdown()
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    # No JAX backend starts at import, so that forking is safe and children choose devices.
    import sklearn.datasets  # noqa: F401  where the digits come from: a third of a short command

    from tcl_jax.cli import convert, simulate, train  # noqa: F401

    gc.freeze()  # else a child copies all of this at its end, to find what nobody uses any more
    if command := serve():
        become(command)
