import base64
import re
from datetime import UTC, datetime
from html.parser import HTMLParser
from pathlib import Path

import pytest
from matplotlib.figure import Figure

from heliostat.observe.report import INK, KeyNumber, Report, svg_data_uri
from heliostat.storage import open_store

HOSTILE = "<script>alert('x')</script>\"><img src=http://evil.example/a onerror=alert(1)> {{ 7*7 }}"


class Outline(HTMLParser):
    """Tags of the body and the values of attributes that make a browser fetch or run something."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.addresses: list[str] = []
        self.attributes: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes |= {name for name, _ in attrs}
        self.addresses += [value or "" for name, value in attrs if name in {"src", "href", "srcset", "data", "action"}]


def outline(html: str) -> Outline:
    parser = Outline()
    parser.feed(html)
    return parser


def figure(title: str = "t") -> Figure:
    drawn = Figure(figsize=(2, 1))
    axes = drawn.subplots()
    axes.plot([0, 1], [0, 1], color=INK)
    axes.set_title(title, color=INK)
    return drawn


def full_report(text: str = "plain") -> Report:
    report = Report(text, text, made_utc=datetime(2026, 1, 2, 3, 4, tzinfo=UTC))
    section = report.section(text).text(text).numbers(KeyNumber(text, text, text), KeyNumber("k", "1"))
    section.table([text, "b"], [[text, 2]], text).figure(figure(text.replace("{", "")), text, text)
    return report


def test_html__has_the_agreed_structure() -> None:
    body = full_report().html().split("<body>")[1]
    assert outline(body).tags == [
        *("main", "header", "h1", "p", "section", "h2", "p"),
        *("dl", "div", "dt", "dd", "small", "div", "dt", "dd"),
        *("div", "table", "caption", "thead", "tr", "th", "th", "tbody", "tr", "th", "td"),
        *("figure", "img", "figcaption", "footer"),
    ]


def test_html__hostile_text_stays_text() -> None:
    html = full_report(HOSTILE).html()
    page = outline(html)
    assert outline(full_report().html()).tags == page.tags
    assert "onerror" not in page.attributes and "49" not in re.sub(r"base64,[^\"]*", "", html).split("<body>")[1]


def test_html__asks_for_nothing_outside_itself() -> None:
    html = full_report().html()
    assert all(address.startswith("data:image/svg+xml;base64,") for address in outline(html).addresses)
    assert not re.search(r"https?://|url\(|@import", html)
    assert "default-src 'none'" in html


def test_html__knows_both_themes_and_small_screens() -> None:
    html = full_report().html()
    assert "prefers-color-scheme: dark" in html and 'name="viewport"' in html


def test_svg_data_uri__follows_the_theme_and_is_reproducible() -> None:
    uri = svg_data_uri(figure())
    svg = base64.b64decode(uri.split(",")[1]).decode()
    assert "currentColor" in svg and "prefers-color-scheme:dark" in svg
    assert svg.count(INK) == 1, "only where the light theme's colour is set"
    assert uri == svg_data_uri(figure())


def test_table__uneven_rows_are_refused() -> None:
    with pytest.raises(ValueError, match="2 cells"):
        Report("r").section("s").table(["a", "b"], [["only one"]])


def test_write__puts_the_page_into_the_store(tmp_path: Path) -> None:
    store = open_store(str(tmp_path))
    report = full_report()
    report.write(store)
    assert store.get("reports/report.html").decode() == report.html()
