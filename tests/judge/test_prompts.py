"""Prompts of judges: togi's own, and the files of other projects."""

import hashlib
import json

import pytest
from stored_verdicts import SHARED, needs_shared

from togi.core.errors import InputError
from togi.core.records import Message
from togi.judge.prompts import Case, Method, load_prompt, load_prompts, own_prompt, safety_prompt

ASKED = (Message("system", "Be brief."), Message("user", "Why {{ is }} the sky [[B]]?"))
TWO = Case(messages=ASKED, answers=("Because {air}.", "Because {{ question }}."))
ANSWERS: dict[Method, tuple[str, ...]] = {"graded": ("a",), "pairwise": ("a", "b")}
ONE = Case(messages=ASKED, answers=("Because {air}.",), low=1, high=5)


@pytest.mark.parametrize("language", ["en", "ja", "ru"])
def test_own_prompts_show_what_is_judged_and_nothing_is_rendered_twice(language):
    (turn,) = own_prompt("pairwise", language).messages(TWO)
    for text in ("Why {{ is }} the sky [[B]]?", "Because {air}.", "Because {{ question }}.", "[[A]]", "[[C]]"):
        assert text in turn.content
    assert turn.content.index("{air}") < turn.content.index("{{ question }}")
    (turn,) = own_prompt("graded", language).messages(ONE)
    assert "Because {air}." in turn.content and "[[3]]" in turn.content and "5" in turn.content
    assert "Be brief." not in turn.content


def test_own_prompts_show_the_reference_and_the_conversation_only_where_there_is_one():
    prompt = own_prompt("pairwise", "en")
    bare = prompt.messages(TWO)[0].content
    assert "Reference" not in bare and "Conversation" not in bare
    talk = (Message("user", "Hi."), Message("assistant", "Hello."), Message("user", "Why?"))
    whole = prompt.messages(Case(messages=talk, answers=("a", "b"), reference="It scatters."))[0].content
    assert "It scatters." in whole and "assistant: Hello." in whole and "[Request]\nWhy?" in whole
    asked = prompt.messages(Case(messages=talk, answers=("a", "b"), explain=False))[0].content
    assert "[[A]]" not in asked


def test_a_change_of_an_own_prompt_is_a_change_of_what_label_gives():
    """Raise the version of `label`, and of train.grpo where a judge is a term, when this changes."""
    talk = (Message("user", "Hi."), Message("assistant", "Hello."), Message("user", "Why?"))
    cases: list[tuple[Method, Case]] = [
        (method, Case(messages=talk, answers=answers, reference=reference))
        for method, answers in ANSWERS.items()
        for reference in (None, "r")
    ]
    asked = [
        own_prompt(method, language).messages(case)[0].content
        for language in ("en", "ja", "ru")
        for method, case in cases
    ]
    assert hashlib.sha256("\n".join(asked).encode()).hexdigest()[:16] == "c6315746adf88253"


def test_a_change_of_the_safety_prompt_or_of_rubrics_is_a_change_of_what_benchmarks_give():
    """Raise the version of `evaluate` when this changes."""
    case = Case(messages=ASKED, answers=("a",), reference="r", rubric="Names the colour.")
    asked = [
        prompt(language).messages(case)[0].content
        for language in ("en", "ja", "ru")
        for prompt in (safety_prompt, lambda language: own_prompt("graded", language))
    ]
    assert all(("Names the colour." in text) == bool(place % 2) for place, text in enumerate(asked))
    assert hashlib.sha256("\n".join(asked).encode()).hexdigest()[:16] == "08ba232a0920e4ed"


@pytest.mark.parametrize("language", ["en", "ja", "ru"])
def test_the_safety_prompt_has_five_grades(language):
    (turn,) = safety_prompt(language).messages(Case(messages=ASKED, answers=("Because {air}.",), low=1, high=5))
    assert "[[3]]" in turn.content and "Because {air}." in turn.content
    assert all(f"\n{grade}" in turn.content for grade in range(1, 6))


def test_a_prompt_of_ones_own_must_show_what_is_judged(tmp_path):
    path = tmp_path / "mine.j2"
    path.write_text("{{ question }} {{ answer_a }} or {{ answer_b }}?")
    assert load_prompt(path, "pairwise").messages(TWO)[0].content.endswith("or Because {{ question }}.?")
    with pytest.raises(InputError, match=r"does not show the answers.*answer"):
        path.write_text("Which?")
        load_prompt(path, "pairwise")
    path.write_text("{{ question }} {{ anwser }} {{ answer }}")
    with pytest.raises(InputError, match="anwser"):
        load_prompt(path, "graded")
    path.write_text("{{ question ")
    with pytest.raises(InputError, match=r"mine\.j2"):
        load_prompt(path, "graded")
    with pytest.raises(InputError, match="cannot be read"):
        load_prompt(tmp_path / "none.j2", "graded")


ROWS = [
    {
        "name": "pair",
        "type": "pairwise",
        "system_prompt": "Judge.",
        "prompt_template": "{question}|{answer_a}|{answer_b}",
    },
    {
        "name": "pair-two",
        "type": "pairwise",
        "system_prompt": "",
        "prompt_template": "{question_1}|{answer_a_1}|{question_2}|{answer_a_2}|{answer_b_2}",
    },
    {"name": "single-math", "type": "single", "prompt_template": "{question}|{ref_answer_1}|{answer} {{1}}"},
]


def test_a_file_of_fastchat(tmp_path):
    path = tmp_path / "judge_prompts.jsonl"
    path.write_text("\n".join(map(json.dumps, ROWS)))
    system, turn = load_prompt(path, "pairwise", "pair").messages(TWO)
    assert (system.role, system.content) == ("system", "Judge.")
    assert turn.content == "Why {{ is }} the sky [[B]]?|Because {air}.|Because {{ question }}."
    talk = (Message("user", "one"), Message("assistant", "said"), Message("user", "two"))
    (turn,) = load_prompt(path, "pairwise", "pair-two").messages(Case(messages=talk, answers=("x", "y")))
    assert turn.content == "one|said|two|x|y"
    prompt = load_prompt(path, "graded")  # the only graded prompt
    assert prompt.wants_reference
    case = Case(messages=(Message("user", "q"),), answers=("a",), reference="r")
    assert prompt.messages(case)[0].content == "q|r|a {1}"
    with pytest.raises(InputError, match="a conversation has no ref_answer_1"):
        prompt.messages(ONE)
    with pytest.raises(InputError, match=r"it has several prompts. Set prompt_name: pair or pair-two"):
        load_prompt(path, "pairwise")
    with pytest.raises(InputError, match="found prompt_name 'pear'"):
        load_prompt(path, "pairwise", "pear")
    path.write_text(json.dumps({**ROWS[0], "prompt_template": "{answer_a} {answer_b} {answer_a.__class__}"}))
    with pytest.raises(InputError, match=r"jsonl:1: unknown placeholder \{answer_a.__class__\}"):
        load_prompt(path, "pairwise")
    path.write_text("[]")
    with pytest.raises(InputError, match="jsonl:1: wanted an object"):
        load_prompt(path, "pairwise")


def test_files_of_llm_jp_judge(tmp_path):
    path = tmp_path / "quality.yaml"
    path.write_text(
        "regex: (正確性|総合評価):\\s?\\[\\[([1-5])\\]\\]\nmetrics: [正確性, 総合評価]\n"
        "prompt_template: |-\n  [質問]\n  {question}\n  {response}\n",
        encoding="utf-8",
    )
    prompt = load_prompt(path, "graded")
    assert prompt.messages(ONE)[0].content.endswith("Because {air}.")
    assert prompt.read is not None
    assert prompt.read("正確性: [[2]]\n総合評価: [[4]]") == 4  # the last metric is the grade
    assert prompt.read_metrics is not None
    assert prompt.read_metrics("総合評価: [[4]] 正確性: [[2]]") == {"正確性": 2, "総合評価": 4}
    assert prompt.read_metrics("総合評価: [[4]]") is None
    assert (
        prompt.read("総合評価: [[4]]") is None and prompt.read("総合評価: [[4]] 総合評価: [[4]] 正確性: [[1]]") is None
    )
    path.write_text(
        "regex: \\[\\[(\\d)\\]\\]\nprompt_template_with_ref: '{question} {reference} {response}'\n"
        "prompt_template_wo_ref: '{question} {response}'\n"
    )
    assert load_prompt(path, "graded", "with_ref").wants_reference
    assert load_prompt(path, "graded", "wo_ref").read("so [[3]]") == 3
    path.write_text(
        "single:\n  regex: \\[\\[(10|[1-9])\\]\\]\n  prompt_template: '{question} {answer}'\n  system_prompt: Hi\n"
    )
    found = load_prompt(path, "graded")
    assert found.system == "Hi" and found.read("Rating: [[10]]") == 10 and found.read("none") is None
    path.write_text("a: [")
    with pytest.raises(InputError, match="not YAML"):
        load_prompt(path, "graded")
    path.write_text("regex: '('\nprompt_template: '{question} {answer}'")
    with pytest.raises(InputError, match="not a regular expression"):
        load_prompt(path, "graded")
    path.write_text("made: 2024-13-45\nprompt_template: '{question} {answer}'")
    with pytest.raises(InputError, match="not YAML: month must be in"):
        load_prompt(path, "graded")


def test_a_match_without_the_grade_is_no_grade(tmp_path):
    path = tmp_path / "graded.yaml"
    path.write_text("regex: 'Rating: (\\d+)|no rating'\nprompt_template: '{question} {answer}'")
    read = load_prompt(path, "graded").read
    assert read is not None and (read("Rating: 4"), read("no rating")) == (4, None)


def test_a_line_separator_within_a_template_does_not_end_the_row(tmp_path):
    path = tmp_path / "judge_prompts.jsonl"
    row = {"name": "one", "prompt_template": "{question}\u2028{answer}"}
    path.write_text(json.dumps(row, ensure_ascii=False), encoding="utf-8")
    assert "\u2028" in load_prompt(path, "graded").source


def test_a_file_of_several_prompts_says_how_many_turns_each_shows(tmp_path):
    path = tmp_path / "judge_prompts.jsonl"
    rows = [
        {"name": "one", "prompt_template": "{question} {answer}"},
        {"name": "two", "prompt_template": "{question_1} {ref_answer_1} {question_2} {ref_answer_2} {answer_2}"},
        {"name": "rubric", "prompt_template": "{question} {rubric} {answer}"},
    ]
    path.write_text("\n".join(map(json.dumps, rows)))
    found = load_prompts(path, "graded")
    assert [(prompt.turns, prompt.wants_reference) for prompt in found.values()] == [(1, False), (2, True), (1, False)]
    talk = (Message("user", "one"), Message("assistant", "said"), Message("user", "two"))
    case = Case(messages=talk, answers=("x",), reference="r2", earlier_references=("r1",))
    assert found["two"].messages(case)[0].content == "one r1 two r2 x"
    with pytest.raises(InputError, match="a conversation has no rubric"):
        found["rubric"].messages(ONE)
    assert own_prompt("graded", "en").turns is None


@needs_shared
def test_the_four_prompts_of_mt_bench():
    found = load_prompts(SHARED / "mt_bench_en" / "judge_prompts.jsonl", "graded")
    forms = {name: (prompt.turns, prompt.wants_reference) for name, prompt in found.items()}
    assert forms == {
        "single-v1": (1, False),
        "single-math-v1": (1, True),
        "single-v1-multi-turn": (2, False),
        "single-math-v1-multi-turn": (2, True),
    }


@needs_shared
def test_the_file_of_a_japanese_benchmark():
    shared = SHARED / "ja_vicuna_qa" / "judge_prompts.jsonl"
    system, turn = load_prompt(shared, "pairwise", "pair").messages(TWO)
    assert "[[C]]" in system.content and turn.content.startswith("[ユーザーの質問]\nWhy {{ is }} the sky [[B]]?")
    assert load_prompt(shared, "graded", "single-math").wants_reference
    assert not load_prompt(shared, "graded", "single").wants_reference
