"""A report as one HTML file that needs nothing else: no script, no font, no picture from anywhere outside it.

Text is escaped by the template; figures are embedded as SVG, and those that draw text and axes in `INK` follow the
reader's light or dark theme.
"""

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.resources import files
from typing import TYPE_CHECKING, ClassVar

from heliostat.errors import MissingExtraError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from heliostat.storage import Store

INK = "#1f2430"
"""The colour of text and axes in figures: dark on a light page, turned light on a dark one."""

_INK_ON_DARK = "#e4e7ee"
_THEME = (
    f"<style>svg{{color:{INK}}}@media(prefers-color-scheme:dark){{svg{{color:{_INK_ON_DARK}}}}}</style>"  # of the image
)


@dataclass(frozen=True, slots=True)
class KeyNumber:
    """One number that a reader should not have to look for."""

    label: str
    value: str
    """As shown, unit included."""
    note: str = ""
    """What to compare it with."""


@dataclass(frozen=True, slots=True)
class Text:
    """One paragraph."""

    kind: ClassVar[str] = "text"
    text: str


@dataclass(frozen=True, slots=True)
class KeyNumbers:
    """A row of numbers in large print."""

    kind: ClassVar[str] = "numbers"
    numbers: tuple[KeyNumber, ...]


@dataclass(frozen=True, slots=True)
class Table:
    """Cells as shown; the first column names the row."""

    kind: ClassVar[str] = "table"
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    caption: str = ""
    links: tuple[str, ...] = ()
    """Where the name of each row leads, relative to the report; empty is nowhere."""


@dataclass(frozen=True, slots=True)
class Picture:
    """A figure as the URI of its own bytes."""

    kind: ClassVar[str] = "picture"
    data_uri: str
    alt: str
    caption: str


Block = Text | KeyNumbers | Table | Picture


@dataclass(slots=True)
class Section:
    """A heading and what stands below it, in the order in which it was added."""

    title: str
    blocks: list[Block] = field(default_factory=list)

    def text(self, text: str) -> "Section":
        """Add a paragraph."""
        self.blocks.append(Text(text))
        return self

    def numbers(self, *numbers: KeyNumber) -> "Section":
        """Add a row of key numbers."""
        self.blocks.append(KeyNumbers(numbers))
        return self

    def table(
        self,
        header: Sequence[str],
        rows: Sequence[Sequence[object]],
        caption: str = "",
        links: Sequence[str] = (),
    ) -> "Section":
        """Add a table; cells are shown as ``str`` makes them.

        Args:
            header: Names of the columns.
            rows: Cells; the first one names the row.
            caption: Above it.
            links: For each row where its name leads, relative to the report; empty is nowhere. None at all if left out.

        Raises:
            ValueError: A row has more or fewer cells than the header.
        """
        cells = tuple(tuple(str(cell) for cell in row) for row in rows)
        if any(len(row) != len(header) for row in cells):
            raise ValueError(f"every row of a table needs {len(header)} cells, as its header has")
        self.blocks.append(Table(tuple(header), cells, caption, tuple(links) or ("",) * len(cells)))
        return self

    def drawing(self, svg: str, caption: str) -> "Section":
        """Add an SVG that stands for itself."""
        uri = "data:image/svg+xml;base64," + base64.b64encode(svg.encode()).decode()
        self.blocks.append(Picture(uri, caption, caption))
        return self

    def figure(self, figure: "Figure", caption: str, alt: str = "") -> "Section":
        """Add a matplotlib figure, drawn now.

        Args:
            figure: The figure; it is not changed.
            caption: What the reader sees in it; shown below.
            alt: For readers who cannot see it; the caption if empty.
        """
        self.blocks.append(Picture(svg_data_uri(figure), alt or caption, caption))
        return self


@dataclass(slots=True)
class Report:
    """Sections under a title; `html` makes the file.

    Args:
        title: What is reported on.
        summary: One or two sentences for readers who read no further.
        made_utc: When it was made, shown in the foot of the page; now if not said.
    """

    title: str
    summary: str = ""
    made_utc: datetime = field(default_factory=lambda: datetime.now(UTC))
    sections: list[Section] = field(default_factory=list)

    def section(self, title: str) -> Section:
        """Add an empty section and return it."""
        section = Section(title)
        self.sections.append(section)
        return section

    def html(self) -> str:
        """The whole page.

        Raises:
            MissingExtraError: jinja2 is not installed.
        """
        try:
            import jinja2
        except ImportError as error:
            raise MissingExtraError(
                "a report needs jinja2, which is not installed", 'Run pip install "heliostat[train]"'
            ) from error
        environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
        source = files("heliostat.observe").joinpath("report.html.j2").read_text(encoding="utf-8")
        made = self.made_utc.astimezone(UTC).strftime("%Y-%m-%d %H:%M UTC")
        return environment.from_string(source).render(report=self, made=made)

    def write(self, store: "Store", key: str = "reports/report.html") -> None:
        """Put the page into a store."""
        store.put(key, self.html().encode())


def svg_data_uri(figure: "Figure") -> str:
    """A matplotlib figure as an SVG of its own: transparent, `INK` as the theme has it, same bytes for same figure."""
    import matplotlib

    buffer = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": "heliostat"}):
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    svg = buffer.getvalue().replace(INK, "currentColor")
    end_of_root_tag = svg.index(">", svg.index("<svg")) + 1
    themed = svg[:end_of_root_tag] + _THEME + svg[end_of_root_tag:]
    return "data:image/svg+xml;base64," + base64.b64encode(themed.encode()).decode()
