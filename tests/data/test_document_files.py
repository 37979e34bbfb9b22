"""Documents from lists and files: how they are read and cut, and the position of each part."""

import json
import time
from pathlib import Path

import pytest

from togi.core.errors import InputError
from togi.data.document_files import read_parts
from togi.data.html_text import page_text
from togi.text.grounded import Shown

PAGE = """\
<!doctype html>
<html><head><title>Glaciers &amp; ice</title><style>p {color: red}</style></head>
<body>
<h1>Glaciers</h1>
<p>They <b>melt</b>, and
they shrink.</p>
<script>let x = "<p>no</p>"</script>
<ul><li>one</li><li>two <i>words</i></li></ul>
<table><tr><th>Year</th><th>Loss</th></tr><tr><td>1990</td><td>3&nbsp;%</td></tr></table>
<pre>a
  b</pre>
</body></html>
"""


def test_a_page_is_read_as_its_reader_sees_it():
    page = page_text(PAGE)
    assert page.title == "Glaciers & ice"
    assert page.text == (
        "# Glaciers\n\nThey melt, and they shrink.\n\n- one\n- two words\n\nYear | Loss\n1990 | 3 %\n\na\n  b"
    )
    assert [page.line(page.text.index(word)) for word in ("# Gl", "They", "- two", "1990", "a\n")] == [4, 5, 8, 9, 10]


@pytest.mark.parametrize("html", ["", "plain", "<p>", "</p></b>", "<ul><li>open", "a < b & c", "<title>only"])
def test_pages_that_are_no_whole_html_are_read_as_far_as_they_go(html):
    assert "<" not in page_text(html).text.replace("a < b", "")


def files(folder: Path, **texts: str) -> Path:
    for name, text in texts.items():
        path = folder / name.replace("__", "/").replace("_", ".")
        path.parent.mkdir(exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return folder


def test_the_files_of_a_folder_are_read_by_kind(tmp_path):
    files(
        tmp_path, a_html=PAGE, b_md="Intro.\n\n## Ice ##\n\nText.", sub__c_txt="Чай.", d_py="x = 1", _hidden_md="# no"
    )
    found = read_parts(tmp_path)
    assert (found.documents, found.passed) == (3, 1)
    assert [(part.file, part.shown.title, part.place) for part in found.parts] == [
        ("a.html", "Glaciers & ice", "lines 4 to 10"),
        ("b.md", "Ice", "lines 1 to 5"),
        ("sub/c.txt", "c", "line 1"),
    ]


def test_long_files_are_cut_and_every_part_says_its_lines(tmp_path):
    paragraphs = [f"Paragraph {number}. " + "word " * 30 for number in range(40)]
    path = tmp_path / "long.txt"
    path.write_text("\n\n".join(paragraphs), encoding="utf-8")
    found = read_parts(path, longest=1000)
    assert len(found.parts) > 5 and all(len(part.shown.content) <= 1000 for part in found.parts)
    lines = path.read_text().splitlines()
    for number, part in enumerate(found.parts, 1):
        assert (part.part, part.parts) == (number, len(found.parts))
        first, last = (int(word) for word in part.place.split() if word.isdigit())
        assert "\n".join(lines[first - 1 : last]).strip() == part.shown.content.strip()


def test_a_short_list_is_shown_as_it_stands_and_a_long_one_is_cut(tmp_path):
    rows = [{"doc_id": i, "title": None, "content": f"{i} " * 600} for i in range(3)]
    path = tmp_path / "list.json"
    path.write_text(json.dumps(rows))
    found = read_parts(path, longest=500, whole=3)
    assert [part.shown for part in found.parts] == [Shown(None, row["content"]) for row in rows]
    assert [part.place for part in found.parts] == ["item 1", "item 2", "item 3"]
    cut = read_parts(path, longest=500, whole=2)
    assert cut.documents == 3 and len(cut.parts) == 9 and cut.parts[-1].part == 3


def test_rows_of_texts_are_documents_too(tmp_path):
    path = tmp_path / "pages.jsonl"
    path.write_text('{"id": "x", "title": "T", "text": "Words."}\n')
    assert read_parts(path).parts[0].shown == Shown("T", "Words.")


def test_a_page_in_the_encoding_that_it_declares(tmp_path):
    path = tmp_path / "old.html"
    path.write_bytes('<meta charset="windows-1251"><p>Ледники тают.</p>'.encode("cp1251"))
    assert read_parts(path).parts[0].shown.content == "Ледники тают."


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("gone", None, "there is no such file or folder; documents are a list"),
        ("a.docx", b"x", "cannot read this kind of file"),
        ("a.txt", "ё".encode("cp1251"), "is not utf-8 text"),
        ("a.txt", b" \n ", "none of its documents has any text"),
        ("a.json", b'{"title": "x"}', "content: found"),
        ("a.json", b'[{"content": "x"}, {"content": ""}]', "item 2: content: found an empty text"),
        ("a.json", b'[{"content": "x", "title": 3}]', "item 1: title: found"),
        ("a.json", b"[1]", "item 1: found a number, wanted an object"),
        ("a.json", b"[]", "none of its documents has any text"),
    ],
)
def test_what_cannot_be_read_is_said_with_its_place(tmp_path, name, content, says):
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError, match=f"{name}.*{says}"):
        read_parts(path)


def test_a_folder_without_documents(tmp_path):
    (tmp_path / "code.py").write_text("x = 1")
    with pytest.raises(InputError, match=r"has no file with the ending \.html"):
        read_parts(tmp_path)


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ('<meta charset="utf-16"><p>Чай'.encode(), "Чай"),
        (b'<meta charset="unicode_escape"><p>\\u0041', "\\u0041"),
        (b'<meta charset="utf-7"><p>+2AA- x', "+2AA- x"),
        ('<meta charset="undefined"><p>Чай'.encode(), "Чай"),
        ('<meta charset="rot13"><p>Чай'.encode(), "Чай"),
        (b'<meta charset="iso-8859-1"><p>\x93x\x94 \x80', "“x” €"),
        (b'<meta http-equiv="content-type" content="text/html; charset=Latin1"><p>caf\xe9', "café"),
        ('<meta charset="Shift_JIS"><p>茶①'.encode("cp932"), "茶①"),
        ('<meta charset="gb2312"><p>茶镕'.encode("gbk"), "茶镕"),
        ('<!-- <meta charset="koi8-r"> --><meta charset="ISO-8859-5"><p>Чай'.encode("iso8859-5"), "Чай"),
        (b'<meta charset="windows-1252"><p>a\x81\x8d\x8f\x90\x9d', "a\x81\x8d\x8f\x90\x9d"),
        (b'<meta charset="iso-8859-1"><p>\x9d\x93x\x94', "\x9d“x”"),
        (b'<meta charset="windows-1251"><p>\x98\xd7\xe0\xe9', "\x98Чай"),
        ('<meta charset="koi8-r"><p>Чай'.encode("utf-8-sig"), "Чай"),
        ('<meta charset="koi8-r"><p>Чай'.encode("utf-16"), "Чай"),
    ],
)
def test_the_encoding_of_a_page_is_that_of_the_web(tmp_path, content, text):
    path = tmp_path / "page.html"
    path.write_bytes(content)
    assert read_parts(path).parts[0].shown.content == text


@pytest.mark.parametrize("label", ["undefined", "idna", "unicode_escape", "hex", "x-nothing"])
def test_a_page_in_an_unknown_encoding_is_an_error(tmp_path, label):
    path = tmp_path / "page.html"
    path.write_bytes(f'<meta charset="{label}"><p>Чай'.encode("cp1251"))
    with pytest.raises(InputError, match=rf"page.html: is not utf-8 text \(it declares '{label}'\)"):
        read_parts(path)


@pytest.mark.parametrize(
    ("label", "content"), [("shift_jis", b"\x81"), ("windows-1253", b"\xaa"), ("utf-8", b"\x9d"), ("gbk", b"\x9d ")]
)
def test_bytes_that_an_encoding_does_not_have_are_an_error(tmp_path, label, content):
    path = tmp_path / "page.html"
    path.write_bytes(f'<meta charset="{label}"><p>a'.encode() + content)
    with pytest.raises(InputError, match=rf"it declares '{label}'"):
        read_parts(path)


def test_headings_may_be_closed_and_may_end_with_a_sharp(tmp_path):
    for text, title in (("# C#\n", "C#"), ("## Ice ##\n", "Ice"), ("#\n\nText", "a"), ("# a" + " " * 50_000 + "b", "")):
        path = tmp_path / "a.md"
        path.write_text(text)
        assert read_parts(path).parts[0].shown.title == (title or text[2:])


def test_the_time_to_read_grows_with_the_length_alone(tmp_path):
    """100,000 pieces that were each copied or counted from the start would take minutes."""
    pieces, line = 100_000, "word " * 40 + "end.\n"
    began = time.perf_counter()
    page = page_text(f"<p>{line}" * pieces)
    assert page.line(len(page.text) - 1) == pieces
    path = tmp_path / "long.txt"
    path.write_text(line * pieces)
    parts = read_parts(path, longest=len(line)).parts
    assert len(parts) == pieces and parts[-1].place == f"line {pieces}"
    assert time.perf_counter() - began < 60
