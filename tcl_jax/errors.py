"""The one exception that means *the input is at fault*, and how a command line reports it."""

import contextlib
import errno
import logging
import os
import signal
import sys
import threading
import warnings
from collections.abc import Iterator


class InputError(ValueError):
    """Something the user gave cannot be used: its message says what, where, and what to do.

    The message is one sentence that can be shown as it is.  Command lines turn it into that
    sentence and exit status 2; library users catch it as the `ValueError` that it is.
    """


def first_line(error: BaseException) -> str:
    """What went wrong, short enough for one sentence; TensorStore's messages fill pages."""
    line = next(iter(str(error).splitlines()), "") or type(error).__name__
    return line if len(line) <= 120 else line[:117] + "..."


_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@contextlib.contextmanager
def reported_at_exit() -> Iterator[None]:
    """Turn an `InputError` into one line on standard error and exit status 2.

    Likewise a file or folder that the system refuses.

    Ctrl-C, where nothing else takes care of it, ends with a line and status 130.
    """
    logging.basicConfig()  # does nothing where a library did it first, in its own format
    for handler in logging.getLogger().handlers:
        handler.setFormatter(logging.Formatter("warning: %(message)s"))
    # Orbax logs what it then raises, and leaves coroutines behind that complain as they go.
    for library in ("absl", "asyncio"):
        logging.getLogger(library).setLevel(logging.CRITICAL)
    warnings.filterwarnings("ignore", "coroutine .* was never awaited", RuntimeWarning)
    sys.unraisablehook = _unraisable
    try:
        yield
    except (InputError, OSError) as error:
        message = str(error)
        if isinstance(error, OSError):
            if error.filename is None and error.errno not in _NO_ROOM:
                raise
            message = ": ".join(str(part) for part in (error.filename, error.strerror) if part)
            if error.errno in _NO_ROOM:
                message += ": make room; what was saved before is whole"
        sys.unraisablehook = lambda _: None
        print(f"error: {' '.join(message.split())}", file=sys.stderr)
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        raise SystemExit(130) from None


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
