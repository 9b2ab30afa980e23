"""The console that tables and progress bars are printed on."""

from typing import Any, NoReturn

import rich.console
from rich.text import Text

from tcl_jax.terminal import spelled


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
