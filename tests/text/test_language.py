import random

import pytest

from togi.text.compare import comparable, jaccard, normalise, same, same_answer, shingles
from togi.text.language import detect
from togi.text.script import is_spaced, script_share, script_shares

ENGLISH = "How do I bake bread at home?"
JAPANESE = "家でパンを焼くにはどうすればいいですか。"
RUSSIAN = "Как испечь хлеб дома?"


@pytest.mark.parametrize(("text", "language"), [(ENGLISH, "en"), (JAPANESE, "ja"), (RUSSIAN, "ru")])
def test_detects(text: str, language: str) -> None:
    found, confidence = detect(text)
    assert found == language and 0.5 < confidence <= 1


def test_line_ends_do_not_matter() -> None:
    assert detect(JAPANESE.replace("。", "。\n\n") * 2)[0] == "ja"


@pytest.mark.parametrize("text", ["", " \n", "12345", "?!", "🙂"])
def test_nothing_to_go_by(text: str) -> None:
    assert detect(text) == ("", 0.0)


@pytest.mark.parametrize(
    ("text", "language", "share"),
    [(ENGLISH, "en", 1.0), (JAPANESE, "ja", 1.0), (RUSSIAN, "ru", 1.0), ("机械学习", "ja", 0.0), ("", "en", 0.0)],
)
def test_script_share(text: str, language: str, share: float) -> None:
    assert script_share(text, language) == share


def test_mixed_scripts() -> None:
    assert script_shares("abか字") == {"latin": 0.5, "kana": 0.25, "kanji": 0.25}
    assert is_spaced(ENGLISH) and is_spaced(RUSSIAN) and not is_spaced(JAPANESE)


def test_compare() -> None:
    assert normalise("  Ｈello,\nWORLD! 12 ") == "hello world 12"
    assert shingles("ab", 4) == frozenset(["ab"])
    assert jaccard(shingles("abcd", 2), shingles("bcde", 2)) == 0.5
    assert jaccard(shingles("", 3), shingles("", 3)) == 1.0


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("What is 3 - 4?", "What is 3 + 4?"),
        *(("3-4", "3+4"), ("3 * 4", "3 / 4"), ("(a) * (b)", "(a) / (b)"), ("a/b", "a b"), ("x < 5", "x > 5")),
        *(("Learn C#", "Learn C++"), ("Learn C#.", "Learn C."), ("f(-5)", "f(5)"), ("5%", "5"), ("x % 5", "x 5")),
        *(("😀", "😡"), ("!", "?"), ("R&D", "R D"), ("$5", "€5")),
    ],
)
def test_symbols_tell_texts_apart(one: str, other: str) -> None:
    assert not same(one, other)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        *(
            ("4.", "**4**"),
            ("Five!", "five"),
            ("-5", "−5"),
            ("−5 °C", "-5 °C"),
            ("+5", "5"),
            ("5.0", "5"),
            (".5", "0.5"),
        ),
        *(("1,5", "1.5"), ("1,000", "1000"), ("1 000", "1000"), ("1\u202f000,5", "1000.5"), ("12'000", "12000")),
        *(("1,234,567.8", "1.234.567,8"), ("1.234,5", "1234.5"), ("$18", "18"), ("$-5$", "-5"), ("5%", "5.0%")),
        *(
            ("5 %", "5%"),
            ("1/2", "1 / 2"),
            ("(3,4)", "(3, 4)"),
            ("x = -5", "x = −5.0"),
            ("9" * 5000, "9" * 5000 + ".0"),
        ),
    ],
)
def test_answers_that_are_the_same(one: str, other: str) -> None:
    assert same_answer(one, other) and same_answer(other, one)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        *(("-5", "5"), ("−5", "5"), ("x = -5", "x = 5"), ("-5 °C", "5 °C"), (".5", "5"), ("-.5", ".5"), ("0,5", "5")),
        *(
            ("1.5", "15"),
            ("1,5", "15"),
            ("1,000", "1"),
            ("1,000", "1000000"),
            ("5%", "5"),
            ("1/2", "12"),
            ("1/2", "2/1"),
        ),
        *(("3 - 4", "3 + 4"), ("-5", "--5"), ("1.2.3", "123"), ("4", "four"), ("", "5"), ("5", "5 6"), ("2^-3", "2^3")),
    ],
)
def test_answers_that_differ(one: str, other: str) -> None:
    assert not same_answer(one, other) and not same_answer(other, one)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        *(("Hello, World!", " hello world"), ("well-known", "well known"), ("wait -", "wait"), ("`code`", "code")),
        *(("- milk\n- bread", "milk\nbread"), ("* milk\n* bread", "milk, bread"), ("# Title\ntext", "title text")),
        *(("**Bold** text", "bold text"), ("3+4", "3 + 4"), ("3*4", "3 * 4"), ("3-4", "3 - 4"), (" ", "")),
    ],
)
def test_case_punctuation_and_spacing_do_not(one: str, other: str) -> None:
    assert same(one, other)


def test_a_text_of_punctuation_alone_stays() -> None:
    assert comparable(" ?! ") == "?!" and comparable("  ") == ""


def test_text_of_ascii_alone_has_the_form_that_it_has_beside_other_characters():
    draw = random.Random(17)
    for _ in range(2000):
        text = "".join(draw.choices(" \t\nab1_)]}([{#%*/\\&@-+=<>`~$^|.,:;!?\"'", k=draw.randrange(1, 14)))
        assert comparable(f"x; {text}") == comparable(f"é; {text}").replace("é", "x", 1)
