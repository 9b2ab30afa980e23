"""The one exception that means *the input is at fault*."""


class InputError(ValueError):
    """Something the user gave cannot be used: its message says what, where, and what to do.

    The message is one sentence that can be shown as it is.  Command lines turn it into that
    sentence and exit status 2; library users catch it as the `ValueError` that it is.

    Args:
        what: the sentence, or what follows its first word where that is an argument's name.
        argument: the function's argument that it is about.  It and others, which stand in the
            sentence with a value as in ``batch_size=64``, are options of a command line.

    >>> str(InputError("must be at least 1, got 0", "batch_size"))
    'batch_size must be at least 1, got 0'
    """

    def __init__(self, what: str, argument: str | None = None):
        super().__init__(what if argument is None else f"{argument} {what}")
        self.argument = argument


def first_line(error: BaseException) -> str:
    """What went wrong, short enough for one sentence; TensorStore's messages fill pages."""
    line = next(iter(str(error).splitlines()), "") or type(error).__name__
    return line if len(line) <= 120 else line[:117] + "..."
