"""The one exception that means *the input is at fault*."""


class InputError(ValueError):
    """Something the user gave cannot be used: its message says what, where, and what to do.

    The message is one sentence that can be shown as it is.  Command lines turn it into that
    sentence and exit status 2; library users catch it as the `ValueError` that it is.
    """


def first_line(error: BaseException) -> str:
    """What went wrong, short enough for one sentence; TensorStore's messages fill pages."""
    line = next(iter(str(error).splitlines()), "") or type(error).__name__
    return line if len(line) <= 120 else line[:117] + "..."
