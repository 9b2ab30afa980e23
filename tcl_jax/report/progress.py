"""Progress bars with rate and time left."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

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

from tcl_jax.report.console import Console


class _Rate(ProgressColumn):
    def __init__(self, unit: str):
        super().__init__()
        self.unit = unit

    def render(self, task: Task) -> Text:
        return Text(f"{task.speed:.1f} {self.unit}/s" if task.speed else "")


def make(unit: str, *, stderr: bool = False) -> Progress:
    """A progress display; tasks carry a `note`."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[note]}"),
        TimeElapsedColumn(),
        TextColumn("<"),
        TimeRemainingColumn(),
        _Rate(unit),
        console=Console(stderr=stderr),
    )


@contextmanager
def bar(description: str, *, total: int, unit: str) -> Iterator[Callable[[int], None]]:
    """One bar, beside the output; yields the function that moves it on."""
    with make(unit, stderr=True) as display:
        task = display.add_task(description, total=total, note="")
        yield lambda amount: display.advance(task, amount)
