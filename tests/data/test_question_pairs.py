"""Reads the question-answer pairs that models write about a text, in three languages and many formats."""

import pytest

from togi.data.prompts_fewshot import LABELS
from togi.data.question_pairs import QuestionPair, clean_reply, final_answer, read_question_pairs, support

ONE = [QuestionPair("Why is it sharp?", "Because it is thin.")]


@pytest.mark.parametrize(
    "text",
    [
        "Question: Why is it sharp?\nAnswer: Because it is thin.",
        "Here you are:\n\n**Question 1:** Why is it sharp?\n**Answer 1:** Because it is thin.",
        "1. Question: Why is it sharp?\n   Answer: Because\nit is thin.",
        "Q: Why is it sharp?\n\nA: Because it is thin.",
        " <QUE> Why is it sharp? <ANS> Because it is thin. </END>",
        "### Question: Why is it sharp?\n### Answer: Because it is thin.\n",
    ],
)
def test_labels_are_found_in_every_disguise(text):
    assert read_question_pairs(text, "en") == ONE
    assert read_question_pairs(text, "ja") == ONE  # models fall back to English labels


def test_each_language_has_its_labels_and_several_pairs_keep_their_order():
    for language, labels in LABELS.items():
        text = f"{labels.question} a?\n{labels.answer} b\n\n{labels.question} c?\n{labels.answer} d"
        assert read_question_pairs(text, language) == [QuestionPair("a?", "b"), QuestionPair("c?", "d")]
    assert read_question_pairs("質問１：空は何色?\n回答：青", "ja") == [QuestionPair("空は何色?", "青")]


def test_what_is_no_pair_is_none_and_a_missing_answer_is_empty():
    assert read_question_pairs("The text is about knives.", "en") == []
    assert read_question_pairs("Question: Why?", "en") == [QuestionPair("Why?", "")]
    assert read_question_pairs("<QUE> a <ANS> b", "en") == []


def tagged(*pairs: str) -> str:
    return "\n\n".join(f"{pair} </END>" for pair in pairs)


def test_tagged_pairs_are_read_by_the_rules_of_the_published_code():
    good, other = "<QUE> q1 <ANS> a1", QuestionPair("q1", "a1")
    for bad in (
        "<QUE> q2",
        "<QUE> q2 <ANS> a <ANS> b",
        "So: <QUE> q2 <ANS> a2",
        "q2 <ANS> a2",
        "Question: q2\nAnswer: a2",
    ):
        assert read_question_pairs(tagged(bad, good), "en") == read_question_pairs(tagged(good, bad), "en") == [other]
    lines = "<QUE> Which?\n- A\n- B <ANS> B,\nbecause A is not."
    assert read_question_pairs(tagged(lines), "en") == [QuestionPair("Which?\n- A\n- B", "B,\nbecause A is not.")]
    assert read_question_pairs(tagged("<QUE> q1 <ANS> "), "en") == [QuestionPair("q1", "")]


def test_what_the_length_limit_cut_is_left_out_and_what_precedes_it_stays():
    for end in ("", "\n\n<QUE> q2", "\n\n<QUE> q2 <ANS> a2", " <QUE>\nQuestion: q2\nAnswer: a2"):
        assert read_question_pairs(tagged("<QUE> q1 <ANS> a1") + end, "en", cut=True) == [QuestionPair("q1", "a1")]
    labelled = "Question: q1\nAnswer: a1\n\nQuestion: q2\nAnswer: a"
    assert read_question_pairs(labelled, "en", cut=True) == [QuestionPair("q1", "a1")]
    assert len(read_question_pairs(labelled, "en")) == 2


def test_the_final_answer_is_the_last_labelled_line():
    assert final_answer("Answer: first guess\nNo.\n**Answer:** 42", "en") == "42"
    assert final_answer("よって、\n回答：１２", "ja") == "１２"
    assert final_answer("It is 42.", "en") is None
    assert final_answer("Answer:", "en") == ""


def test_a_reply_loses_its_label_and_its_quotation_marks():
    assert clean_reply('Question: "Why is\nthe sky blue?"', "en") == "Why is the sky blue?"
    assert clean_reply("質問: 「空はなぜ青いのですか。」", "ja") == "空はなぜ青いのですか。"
    assert clean_reply('"A" or "B"?', "en") == '"A" or "B"?'
    assert clean_reply('""', "en") == '""'


def test_support_counts_words_or_pairs_of_characters():
    text = "The Moon turns once in 27 days."
    assert support("27 days", text) == 1 and support("28 days.", text) == 0.5 and support("", text) == 0
    assert support("二十七日", "月は二十七日で一回りします。") == 1
    assert 0 < support("二十八日", "月は二十七日で一回りします。") < 1
