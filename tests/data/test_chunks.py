"""Long texts are cut into parts: nothing is lost, no part is too long, and each cut is at the best border."""

import pytest

from togi.data.chunks import chunks, halves

ENGLISH = "One two three. Four five six.\n\nSeven eight nine. Ten.\nEleven twelve."
JAPANESE = "今日は雨です。傘を持って出かけます。明日は晴れるでしょう。散歩に行きたいです。"


@pytest.mark.parametrize("text", [ENGLISH, JAPANESE, "x" * 40, "word " * 30, "", "  a  "])
@pytest.mark.parametrize("longest", [1, 7, 16, 33, 200])
def test_no_part_is_too_long_and_no_character_is_lost(text, longest):
    found = chunks(text, longest)
    assert all(0 < len(part) <= longest for part in found)
    assert "".join("".join(found).split()) == "".join(text.split())


def test_paragraphs_come_before_sentences_and_sentences_before_words():
    assert chunks(ENGLISH, 40) == ["One two three. Four five six.", "Seven eight nine. Ten.\nEleven twelve."]
    assert chunks(ENGLISH, 25) == ["One two three.", "Four five six.", "Seven eight nine. Ten.", "Eleven twelve."]
    assert chunks(JAPANESE, 20) == [
        "今日は雨です。傘を持って出かけます。",
        "明日は晴れるでしょう。",
        "散歩に行きたいです。",
    ]
    assert chunks("alpha beta gamma", 11) == ["alpha beta", "gamma"]


def test_halving_ends_where_everything_fits_or_is_one_character():
    assert halves("abcdefgh", lambda text: len(text) <= 3) == ["ab", "cd", "ef", "gh"]
    assert halves("abc", lambda text: False) == []
