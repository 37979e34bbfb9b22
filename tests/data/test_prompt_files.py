"""The shipped prompts exist in three languages and ask for what their parsers read; a user's file can replace one."""

import pytest

from togi.core.errors import InputError
from togi.data.prompt_files import FOLDER, prompt_of, shipped_prompt
from togi.data.prompts_fewshot import LABELS
from togi.text.script import script_share

LANGUAGES = ("en", "ja", "ru")
PAIRS = [{"question": "Q1?", "answer": "A1."}, {"question": "Q2?", "answer": "A2."}]
VALUES = {
    "evolve": {"question": "QUESTION", "answer": None, "number": 3},
    "rewrite": {"question": "QUESTION", "answer": "ANSWER", "number": 3},
    "cot": {"question": "QUESTION", "answer": None, "number": 3},
    "curate": {"question": "QUESTION", "answer": None},
    "qa": {"text": "QUESTION", "title": None, "pairs": 2, "number": 3},
    "qa-text": {"text": "QUESTION", "title": "TITLE", "pairs": PAIRS, "number": 3},
}


def test_every_prompt_is_there_in_every_language_and_no_other():
    assert {path.name for path in FOLDER.iterdir()} == {f"{n}.{lang}.j2" for n in VALUES for lang in LANGUAGES}


@pytest.mark.parametrize("language", LANGUAGES)
@pytest.mark.parametrize("name", VALUES)
def test_every_prompt_holds_what_it_is_given_and_speaks_its_language(name, language):
    text = shipped_prompt(name, language).render(VALUES[name])
    assert text.count("QUESTION") == 1 and "{" not in text.replace('{"keep"', "") and "\n\n\n" not in text
    own = text
    for word in ("QUESTION", "ANSWER", "TITLE", "JSON", "Q1?", "A1.", "Q2?", "A2."):
        own = own.replace(word, "")
    share = 0.4 if name == "curate" else 0.9  # the keys of its JSON are English
    assert script_share(f"の{own}" if language == "ja" else own, language) > share  # labels have no kana


@pytest.mark.parametrize("language", LANGUAGES)
def test_prompts_ask_for_the_labels_that_are_read(language):
    labels = LABELS[language]
    asked = shipped_prompt("qa", language).render(VALUES["qa"])
    assert f"\n{labels.question} ...\n{labels.answer} ..." in asked
    assert labels.answer in shipped_prompt("cot", language).render(VALUES["cot"])
    for number in range(3):
        text = shipped_prompt("qa-text", language).render({**VALUES["qa-text"], "number": number})
        assert f"{labels.question} Q1?\n{labels.answer} A1.\n\n{labels.question} Q2?\n{labels.answer} A2." in text


@pytest.mark.parametrize("language", LANGUAGES)
def test_the_ways_of_evolving_take_turns_and_answers_are_judged_only_where_there_are_some(language):
    evolve = shipped_prompt("evolve", language)
    assert len({evolve.render({**VALUES["evolve"], "number": number}) for number in range(10)}) == 5
    judged = shipped_prompt("curate", language).render({**VALUES["curate"], "answer": "ANSWER"})
    assert "ANSWER" in judged and '"keep"' in judged
    titled = shipped_prompt("qa", language).render({**VALUES["qa"], "title": "TITLE"})
    assert "TITLE" in titled and "TITLE" not in shipped_prompt("qa", language).render(VALUES["qa"])


def test_a_strangers_file_takes_the_place_of_a_shipped_one(tmp_path):
    path = tmp_path / "own.j2"
    path.write_text("Sharpen this: {{ question }} ({{ number }})", encoding="utf-8")
    assert prompt_of(path, "evolve", "ja").render(VALUES["evolve"]) == "Sharpen this: QUESTION (3)"
    assert prompt_of(None, "evolve", "ja") == shipped_prompt("evolve", "ja")
    path.write_text("{{ text }}", encoding="utf-8")
    with pytest.raises(InputError, match=r"own\.j2.*'text' is undefined; it may use question, answer, number"):
        prompt_of(path, "evolve", "ja").render(VALUES["evolve"])
