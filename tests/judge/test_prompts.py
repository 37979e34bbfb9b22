"""Prompts of judges: togi's own, and the files of other projects."""

import hashlib
import json

import pytest
from stored_verdicts import SHARED, needs_shared

from togi.core.errors import InputError
from togi.core.records import Message
from togi.judge.prompts import OWN, Case, load_prompt, own_prompt

ASKED = (Message("system", "Be brief."), Message("user", "Why {{ is }} the sky [[B]]?"))
TWO = Case(messages=ASKED, answers=("Because {air}.", "Because {{ question }}."))
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
    text = "".join(path.read_text(encoding="utf-8") for path in sorted(OWN.glob("*.j2")))
    assert hashlib.sha256(text.encode()).hexdigest()[:16] == "477da96758f13e65"


def test_a_prompt_of_ones_own_must_show_what_is_judged(tmp_path):
    path = tmp_path / "mine.j2"
    path.write_text("{{ question }} {{ answer_a }} or {{ answer_b }}?")
    assert load_prompt(path, "pairwise").messages(TWO)[0].content.endswith("or Because {{ question }}.?")
    with pytest.raises(InputError, match=r"does not show what is judged.*answer"):
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
    prompt = load_prompt(path, "graded")  # the only one
    assert prompt.wants_reference
    case = Case(messages=(Message("user", "q"),), answers=("a",), reference="r")
    assert prompt.messages(case)[0].content == "q|r|a {1}"
    with pytest.raises(InputError, match="a conversation has no ref_answer_1"):
        prompt.messages(ONE)
    with pytest.raises(InputError, match=r"which of them is meant\? Say prompt_name: pair or pair-two"):
        load_prompt(path, "pairwise")
    with pytest.raises(InputError, match="found prompt_name 'pear'"):
        load_prompt(path, "pairwise", "pear")
    path.write_text(json.dumps({**ROWS[0], "prompt_template": "{answer_a} {answer_b} {answer_a.__class__}"}))
    with pytest.raises(InputError, match=r"jsonl:1: nothing stands for \{answer_a.__class__\}"):
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
    with pytest.raises(InputError, match="no regular expression"):
        load_prompt(path, "graded")


@needs_shared
def test_the_file_of_a_japanese_benchmark():
    shared = SHARED / "ja_vicuna_qa" / "judge_prompts.jsonl"
    system, turn = load_prompt(shared, "pairwise", "pair").messages(TWO)
    assert "[[C]]" in system.content and turn.content.startswith("[ユーザーの質問]\nWhy {{ is }} the sky [[B]]?")
    assert load_prompt(shared, "graded", "single-math").wants_reference
    assert not load_prompt(shared, "graded", "single").wants_reference
