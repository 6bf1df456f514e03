"""Whether the HTML of something says what its plain text says: a front end may show either of them only."""

from __future__ import annotations

import re
from collections.abc import Mapping
from html.parser import HTMLParser

__all__ = ["assert_says_the_same", "assert_themed", "words", "words_of_html"]


class _Text(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.styles: list[str] = []
        self.parts: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        assert not [name for name, _ in attrs if name.startswith("on")], attrs
        self.styles += [value or "" for name, value in attrs if name == "style"]
        self.parts.append(" ")

    def handle_data(self, data: str) -> None:
        self.parts.append(data)


def _parse(markup: str) -> _Text:
    parser = _Text()
    parser.feed(markup)
    parser.close()
    return parser


def words(text: str) -> list[str]:
    """
    Examples
    --------
    >>> words("a <b>, c-d")
    ['a', 'b', 'c', 'd']
    """
    return re.findall(r"\w+", text)


def words_of_html(markup: str) -> list[str]:
    """
    Examples
    --------
    >>> words_of_html("<p>a <i>&lt;b&gt;</i></p>")
    ['a', 'b']
    """
    return words("".join(_parse(markup).parts))


def assert_says_the_same(bundle: Mapping[str, str]) -> None:
    """Assert that a display has plain text, and that its HTML, if any, is themed and has the same words in order."""
    assert bundle["text/plain"].strip()
    if "text/html" in bundle:
        assert words_of_html(bundle["text/html"]) == words(bundle["text/plain"])
        assert_themed(bundle["text/html"])


def assert_themed(markup: str) -> None:
    """Assert that there are no colours but the theme's, nothing that loads or runs, and no unescaped text."""
    parsed = _parse(markup)
    known = {"b", "code", "div", "i", "span", "table", "tbody", "td", "th", "thead", "tr"}
    assert parsed.tags <= known, parsed.tags
    for style in parsed.styles:
        assert "url(" not in style
        bare = re.sub(r"var\(--jp-[a-z0-9-]+, (?:#\w+|rgba\([^)]*\)|[\w-]+)\)", "", style)
        assert not re.search(r"#|rgb|(?<!-)color: ?(?!inherit)\w|background: ?\w", bare), style
