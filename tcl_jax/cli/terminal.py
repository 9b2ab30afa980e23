"""A command at a terminal: its errors in one sentence, Ctrl-C, closed pipes, terminals without λ.

Imports nothing that takes long, for commands import it before all else.
"""

import contextlib
import errno
import io
import logging
import os
import select
import signal
import sys
import threading
import traceback
import warnings
from collections.abc import Iterator
from typing import NoReturn

from tcl_jax.errors import InputError
from tcl_jax.letters import SPELLED

_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@contextlib.contextmanager
def ends_at_ctrl_c() -> Iterator[None]:
    """Ctrl-C ends the process at once: for where there is nothing to save, as while imports last.

    `KeyboardInterrupt` would come up from an import as whatever the library makes of it, if at all.
    """
    before = signal.getsignal(signal.SIGINT)
    # In another thread signals do not arrive; in the background they may be ignored, and stay so.
    if threading.current_thread() is not threading.main_thread() or before is signal.SIG_IGN:
        yield
        return
    signal.signal(signal.SIGINT, lambda number, frame: _end_at_once())
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _end_at_once() -> NoReturn:
    """Not by way of the interpreter's end, where libraries' threads in mid-work crash it."""
    with contextlib.suppress(OSError):
        os.write(2, b"interrupted\n")
    os._exit(130)


@contextlib.contextmanager
def reported_at_exit(options: type | None = None) -> Iterator[None]:
    """Turn an `InputError` into one line on standard error and exit status 2.

    Likewise a file or folder that the system refuses, and an output that nobody reads any more.
    Where a dataclass of options is given, arguments that the line names are named as options.

    Ctrl-C, where nothing else takes care of it, ends with a line and status 130.  Letters that the
    terminal lacks are spelled: λ becomes ``lambda``.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors=SPELLED)
    logging.basicConfig()  # does nothing where a library did it first, in its own format
    for handler in logging.getLogger().handlers:
        handler.setFormatter(logging.Formatter("warning: %(message)s"))
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    # Orbax logs what it then raises, and leaves coroutines behind that complain as they go.
    for library in ("absl", "asyncio"):
        logging.getLogger(library).setLevel(logging.CRITICAL)
    warnings.filterwarnings("ignore", "coroutine .* was never awaited", RuntimeWarning)
    sys.unraisablehook = _unraisable
    try:
        try:
            yield
        except SystemExit:
            _flush()  # here, for at the interpreter's end a failure is a page of its own
            raise
        _flush()
    except (InputError, OSError) as error:
        sentence = _sentence(error, options)
        if sentence is None:
            _leave_others(1, error)
            raise
        sys.unraisablehook = lambda _: None
        with contextlib.suppress(OSError):  # standard error may be closed as well
            print(f"error: {' '.join(sentence.split())}", file=sys.stderr)
        _leave_others(2)
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        with contextlib.suppress(OSError):
            _flush()
        _end_at_once()
    except Exception as error:
        _leave_others(1, error)
        raise


def _leave_others(status: int, error: BaseException | None = None) -> None:
    """Among several processes, end at once: at the interpreter's end JAX waits for the others.

    They would wait for this one, minutes long, where its end would have told them.
    """
    jax = sys.modules.get("jax")
    if jax is not None and jax.distributed.is_initialized():
        with contextlib.suppress(OSError):
            if error is not None:
                traceback.print_exception(error)
            _flush()
        os._exit(status)


def _flush() -> None:
    if sys.stdout is not None:
        sys.stdout.flush()


def _sentence(error: InputError | OSError, options: type | None) -> str | None:
    """What to say of an error; nothing of one that is not the user's."""
    if isinstance(error, InputError):
        if options is None:
            return str(error)
        from tcl_jax.cli.options import in_options  # takes long

        return in_options(error, options)
    if isinstance(error, BrokenPipeError):
        return _of_closed_output()
    if error.filename is None and error.errno not in _NO_ROOM:
        return None
    advice = "make room; what was saved before is whole" if error.errno in _NO_ROOM else None
    return ": ".join(str(part) for part in (error.filename, error.strerror, advice) if part)


def _of_closed_output() -> str | None:
    """The sentence, where it is the standard output that nobody reads any more."""
    asked = select.poll()
    asked.register(sys.stdout, 0)
    if not asked.poll(0):  # an end of reading is told unasked
        return None
    # Or what is left of the output is tried again at the interpreter's end.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return (
        "the program that the output was piped into has ended: pipe into one that reads to the "
        "end, or write to a file; what was saved before is whole"
    )


def _unraisable(unraisable: "sys.UnraisableHookArgs") -> None:
    """What is raised where nothing can catch it: two kinds are not for the user's eyes.

    Where one read of a checkpoint fails, others are answered in threads of TensorStore's.  By then
    orbax may have closed the event loop that they answer to, which they complain about before the
    failure itself has come up to the command line.

    Ctrl-C that comes while garbage is collected, where JAX has a callback, is dropped by Python and
    the program goes on; so it is sent again, a little later: here it would be dropped as well.
    """
    if issubclass(unraisable.exc_type, KeyboardInterrupt):
        again = threading.Timer(0.05, os.kill, (os.getpid(), signal.SIGINT))
        again.daemon = True
        again.start()
    elif str(unraisable.exc_value) != "Event loop is closed":
        sys.__unraisablehook__(unraisable)
