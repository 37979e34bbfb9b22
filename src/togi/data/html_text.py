"""The text of an HTML page: headings, paragraphs, lists and cells on separate lines, without scripts and styles."""

import codecs
import re
from bisect import bisect_right
from dataclasses import dataclass, field
from html.parser import HTMLParser

_CHARSET = re.compile(rb"""<meta[^>]{0,200}charset\s*=\s*["']?\s*([^\s"'/>;]+)""", re.I)
_COMMENT = re.compile(rb"<!--.*?(?:-->|$)", re.S)
_LABELS = {
    "utf-8": "utf-8 utf8 unicode-1-1-utf-8 utf-16 utf-16le utf-16be unicode ucs-2 iso-10646-ucs-2",
    "cp1252": "windows-1252 cp1252 x-cp1252 iso-8859-1 iso8859-1 iso88591 iso_8859-1 iso_8859-1:1987 latin1 l1 "
    "us-ascii ascii ansi_x3.4-1968 cp819 ibm819 x-user-defined",
    "cp1254": "windows-1254 cp1254 x-cp1254 iso-8859-9 iso8859-9 iso88599 iso_8859-9 latin5 l5",
    "cp874": "windows-874 dos-874 tis-620 iso-8859-11 iso8859-11",
    "cp866": "ibm866 cp866 866 csibm866",
    "koi8_r": "koi8-r koi8 koi koi8_r cskoi8r",
    "koi8_u": "koi8-u koi8-ru",
    "mac_roman": "macintosh mac x-mac-roman csmacintosh",
    "mac_cyrillic": "x-mac-cyrillic x-mac-ukrainian",
    "gb18030": "gb18030 gbk x-gbk gb2312 gb_2312 gb_2312-80 csgb2312 chinese iso-ir-58",
    "big5hkscs": "big5 big5-hkscs cn-big5 csbig5 x-x-big5",
    "euc_jp": "euc-jp x-euc-jp cseucpkdfmtjapanese",
    "iso2022_jp": "iso-2022-jp csiso2022jp",
    "cp932": "shift_jis shift-jis sjis x-sjis ms_kanji ms932 windows-31j csshiftjis",
    "cp949": "euc-kr cseuckr korean ks_c_5601-1987 ks_c_5601-1989 ksc5601 ksc_5601 windows-949",
    **{f"cp{page}": f"windows-{page} cp{page} x-cp{page}" for page in (1250, 1251, 1253, 1255, 1256, 1257, 1258)},
    **{f"iso8859-{n}": f"iso-8859-{n} iso8859-{n} iso_8859-{n}" for n in (2, 3, 4, 5, 6, 7, 8, 10, 13, 14, 15, 16)},
}
"""Encodings of pages by Python's codec. A page that can be read this far is not UTF-16, so that label means UTF-8."""
CODECS = {label: codec for codec, labels in _LABELS.items() for label in labels.split()}

CONTROLS = "whatwg-controls"
"""The name of an error handler for `bytes.decode`. If a Windows encoding does not define a byte from 0x80 to 0x9F, the
handler reads it as the control character of that number, as the Encoding Standard does."""


def _control(error: UnicodeError) -> tuple[str, int]:
    assert isinstance(error, UnicodeDecodeError)
    byte = error.object[error.start]
    if error.encoding != "charmap" or not 0x80 <= byte <= 0x9F:
        raise error
    return chr(byte), error.start + 1


codecs.register_error(CONTROLS, _control)

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
    return PageText(" ".join("".join(parser.title).split()), "".join(parser.written).rstrip(), parser.marks)


def declared_encoding(page: bytes) -> tuple[str, str]:
    """The encoding that a page declares in its first kilobyte, as the page writes it ("" if it declares none), and
    Python's codec for it. The codec is that of the WHATWG's Encoding Standard; without a declaration, or for an unknown
    encoding, it is UTF-8."""
    found = _CHARSET.search(_COMMENT.sub(b"", page[:1024]))
    label = found[1].decode("ascii", "replace") if found else ""
    return label, CODECS.get(label.lower(), "utf-8")


class _Reader(HTMLParser):
    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.marks: list[tuple[int, int]] = []
        self.written: list[str] = []
        self.length = 0
        self.title: list[str] = []
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
        if tag in ("td", "th") and self._last not in ("", "\n") and "\n" not in self.gap:
            self._write(" | ")

    def handle_endtag(self, tag: str) -> None:
        self.unseen = max(self.unseen - (tag in UNSEEN), 0)
        self.kept = max(self.kept - (tag == "pre"), 0)
        self.in_title = self.in_title and tag != "title"
        self._border(tag)

    def handle_data(self, data: str) -> None:
        if self.in_title:
            self.title.append(data)
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
        last = self._last
        lead = self.gap if last and not (self.gap == " " and last.isspace()) else ""
        self.gap = ""
        self.marks.append((self.length + len(lead), self.getpos()[0]))
        self.length += len(lead) + len(text)
        self.written += [each for each in (lead, text) if each]

    @property
    def _last(self) -> str:
        """The last character so far, or an empty text."""
        return self.written[-1][-1] if self.written else ""
