"""Progress bars with rate and time left, and the console that they and tables are printed on."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

import rich.console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from tcl_jax.letters import spelled


class Console(rich.console.Console):
    """Rich's, for any terminal and none.

    Letters that the terminal lacks are spelled before widths are measured, so that columns stay in
    line; names are taken as they are, brackets and colons too; a closed pipe is an error as any
    other, which a command reports.
    """

    def __init__(self, **how: Any) -> None:
        super().__init__(markup=False, emoji=False, **how)

    def render_str(self, text: str, **how: Any) -> Text:
        return super().render_str(spelled(text, self.encoding), **how)

    def on_broken_pipe(self) -> NoReturn:
        raise  # Rich's would end the process without a word


class _Rate(ProgressColumn):
    def __init__(self, unit: str):
        super().__init__()
        self.unit = unit

    def render(self, task: Task) -> Text:
        return Text(f"{task.speed:.1f} {self.unit}/s" if task.speed else "")


def make(unit: str, console: Console | None = None) -> Progress:
    """A progress display; tasks carry a `note`.

    Args:
        unit: of what is counted.
        console: where it is shown, if it is a terminal.  None is standard output, whatever that
            is: in a file it is one line at the end.
    """
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[note]}"),
        TimeElapsedColumn(),
        TextColumn("<"),
        TimeRemainingColumn(),
        _Rate(unit),
        console=console or Console(),
        disable=console is not None and not console.is_terminal,
    )


def say(display: Progress, line: str) -> None:
    """Print a line above a display, however long."""
    display.console.print(line, highlight=False, soft_wrap=True)


@contextmanager
def bar(
    description: str, *, total: int, unit: str, shown: bool = True
) -> Iterator[Callable[[int], None]]:
    """One bar, beside the output, where there is a terminal; yields what moves it on."""
    if not shown:
        yield lambda amount: None
        return
    with make(unit, Console(stderr=True)) as display:
        task = display.add_task(description, total=total, note="")
        yield lambda amount: display.advance(task, amount)
