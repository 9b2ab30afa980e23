"""A page that a browser opens without a network: text, tables and pictures in one file."""

import base64
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import jinja2

from tcl_jax.record import whole


@dataclass(frozen=True)
class Table:
    """Columns of text; the first names the rows.

    Attributes:
        headings: of the columns.
        rows: as many texts each.
        caption: what it shows.
    """

    headings: Sequence[str]
    rows: Sequence[Sequence[str]]
    caption: str = ""


@dataclass(frozen=True)
class Picture:
    """A PNG, and what it shows in words.

    Attributes:
        path: of the file, which is taken into the page.
        shows: for who does not see it.
        small: whether it is no panel of many.
    """

    path: Path
    shows: str
    small: bool = False

    @property
    def data(self) -> str:
        """The picture as an address that holds it."""
        return "data:image/png;base64," + base64.b64encode(self.path.read_bytes()).decode("ascii")


@dataclass(frozen=True)
class Section:
    """A part of a page.

    Attributes:
        title: its heading.
        sentences: paragraphs.
        tables: after them.
        pictures: after these.
        command: what would fill it, where it is empty.
    """

    title: str
    sentences: Sequence[str] = ()
    tables: Sequence[Table] = ()
    pictures: Sequence[Picture] = ()
    command: str = ""
    anchor: str = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "anchor", self.title.lower().replace(" ", "-"))


def write_page(path: Path, title: str, summary: str, sections: Sequence[Section]) -> None:
    """Write a page of HTML that loads nothing: its policy forbids all but what it holds itself.

    Args:
        path: the file.
        title: heading, and title of the window.
        summary: a sentence below it.
        sections: in order.
    """
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("tcl_jax.report", "."),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    text = environment.get_template("page.html").render(
        title=title, summary=summary, sections=sections
    )
    with whole(path) as file:
        file.write(text)
