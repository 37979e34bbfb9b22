"""Finds texts of evaluation sets within other texts, in languages with and without spaces."""

import pytest

from togi.data.contamination import Contamination, Found, Sought

EN = "A farmer has seventeen sheep and all but nine of them die. How many sheep does the farmer have left?"
JA = "ある農夫が十七匹の羊を飼っていましたが、九匹を除いてすべて死んでしまいました。残りは何匹ですか？"
RU = "У фермера было семнадцать овец, и все кроме девяти умерли. Сколько овец осталось у этого фермера?"
SHORT = "What is rain?"
SETS = [
    Sought("$tests", "en", EN),
    Sought("$tests", "ja", JA),
    Sought("$more", "ru", RU),
    Sought("$more", "short", SHORT),
]


def found(*texts: str, share: float = 0.5) -> list[Found]:
    return Contamination(SETS, 8, 16, share).find(texts)


def ids(*texts: str, share: float = 0.5) -> list[tuple[int, str]]:
    return [(match.row, match.sought.id) for match in found(*texts, share=share)]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (EN, ["en"]),
        (f"Solve this puzzle, please: {EN.upper()} Think step by step.", ["en"]),
        (f"次の問題を英語で解いてください。「{EN}」", ["en"]),  # English within Japanese
        (f"この問題を解いて：{JA}ありがとう。", ["ja"]),
        (RU.replace(",", " —"), ["ru"]),
        (f"{JA} {RU}", ["ja", "ru"]),
        ("what is RAIN", ["short"]),
        ("Tell me: what is rain? And why does it fall from the sky on some days?", []),  # shorter than an n-gram
        ("A farmer has many sheep and all of them live. How many cows does the neighbour have left?", []),
        ("羊は何匹いますか。", []),
        ("", []),
    ],
)
def test_a_text_of_a_set_is_found_within_others(text, expected):
    assert [name for _, name in ids("Something else entirely, about the sea.", text)] == expected
    assert all(row == 1 for row, _ in ids("Something else entirely, about the sea.", text))


def test_the_share_of_an_evaluation_text_counts_and_not_that_of_the_other_one():
    half = " ".join(EN.split()[:14])  # 7 of the 13 runs of eight words
    (match,) = found(f"{half} {'and then something quite different happened ' * 20}")
    assert match.sought.id == "en" and match.share == pytest.approx(7 / 13)
    assert match.text == "a farmer has seventeen sheep and all but nine of them die how many"
    assert found(half, share=0.6) == [] and len(found(half, half)) == 2


def test_repeating_a_part_does_not_make_it_more():
    part = " ".join(EN.split()[:10])
    assert found(f"{part}. {part}. {part}. {part}.") == []


def test_equal_texts_of_a_set_are_both_told():
    twice = Contamination([*SETS, Sought("$third", "again", EN)], 8, 16, 0.5)
    assert [match.sought.id for match in twice.find([EN])] == ["en", "again"]
    assert Contamination([], 8, 16, 0.5).find([EN]) == []
