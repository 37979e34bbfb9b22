"""The text of an HTML page: headings, paragraphs, lists and cells on separate lines, without scripts and styles."""

from bisect import bisect_right
from dataclasses import dataclass, field
from html.parser import HTMLParser

UNSEEN = ("script", "style", "template", "noscript", "svg")
HEADINGS = {f"h{level}": f"{'#' * level} " for level in range(1, 7)}
PARAGRAPHS = ("p", "pre", "table", "ul", "ol", "dl", "blockquote", "section", "article", "figure", *HEADINGS)
LINES = (
    *("br", "div", "li", "tr", "dt", "dd", "hr", "body", "title", "header", "footer", "main", "nav", "form"),
    *("aside", "caption", "figcaption", "option", "summary", "details"),
)


@dataclass(slots=True)
class PageText:
    """A page's `title` and `text`. `marks` are (position in the text, line of the file), one for each piece of text."""

    title: str = ""
    text: str = ""
    marks: list[tuple[int, int]] = field(default_factory=list)

    def line(self, place: int) -> int:
        """The line of the file that a position in the text comes from."""
        found = bisect_right(self.marks, place, key=lambda mark: mark[0])
        return self.marks[max(found - 1, 0)][1] if self.marks else 1


def page_text(html: str) -> PageText:
    """The text that a reader of the page sees, with headings in Markdown and a dash before list items."""
    parser = _Reader()
    parser.feed(html)
    parser.close()
    found = parser.page
    found.title = " ".join(parser.title.split())
    found.text = found.text.rstrip()
    return found


class _Reader(HTMLParser):
    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.page = PageText()
        self.title = ""
        self.unseen = 0
        self.kept = 0  # inside <pre>, where white space is kept
        self.in_title = False
        self.gap = ""  # white space to write before the next words

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self.unseen += tag in UNSEEN
        self.kept += tag == "pre"
        self.in_title = tag == "title" and not self.unseen
        self._border(tag)
        if tag in HEADINGS or tag == "li":
            self._write(HEADINGS.get(tag, "- "))
            self.gap = ""
        if tag in ("td", "th") and self.page.text and not self.page.text.endswith("\n") and "\n" not in self.gap:
            self._write(" | ")

    def handle_endtag(self, tag: str) -> None:
        self.unseen = max(self.unseen - (tag in UNSEEN), 0)
        self.kept = max(self.kept - (tag == "pre"), 0)
        self.in_title = self.in_title and tag != "title"
        self._border(tag)

    def handle_data(self, data: str) -> None:
        if self.in_title:
            self.title += data
        elif not self.unseen and self.kept:
            self._write(data)
        elif not self.unseen:
            self._words(data)

    def _words(self, data: str) -> None:
        """Writes words separated by single spaces; white space at either end becomes one space."""
        if data[:1].isspace():
            self.gap = self.gap or " "
        if words := " ".join(data.split()):
            self._write(words)
            self.gap = " " if data[-1:].isspace() else ""

    def _border(self, tag: str) -> None:
        border = "\n\n" if tag in PARAGRAPHS else "\n" if tag in LINES else ""
        self.gap = max(self.gap, border, key=lambda gap: gap.count("\n"))

    def _write(self, text: str) -> None:
        page = self.page
        lead = self.gap if page.text and not (self.gap == " " and page.text[-1].isspace()) else ""
        self.gap = ""
        page.text += lead
        page.marks.append((len(page.text), self.getpos()[0]))
        page.text += text
