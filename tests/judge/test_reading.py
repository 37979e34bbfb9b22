"""Verdicts of judges in all the forms in which models write them, and text that must not be read as a verdict."""

import pytest

from togi.judge.reading import read_choice, read_grade


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        # as asked
        ("Answer A is more correct.\n[[A]]", "A"),
        ("Both are right.\n\n[[C]]", "tie"),
        ("My final verdict is: **[[B]]**", "B"),
        ("[[ B ]]", "B"),
        ("[[**A**]]", "A"),
        ("[[Assistant B]]", "B"),
        ("[[A>>B]]", "A"),
        ("[[B<A]]", "A"),
        ("[[A=B]]", "tie"),
        ("[[tie]]", "tie"),
        ("[[b]]", "B"),
        # in Japanese and Russian
        ("説明です。\n［［Ａ］］", "A"),
        ("判定：【【B】】", "B"),
        ("[[回答A]]", "A"),
        ("［［Ａ≫Ｂ］］", "A"),
        ("[[引き分け]]", "tie"),
        ("Вердикт: [[А]]", "A"),  # the Cyrillic letter
        ("[[Ответ В]]", "B"),
        ("[[ничья]]", "tie"),
        # reasoning is no verdict
        ("<think>At first [[A]] looks better.</think>\n[[B]]", "B"),
        ("At first [[A]].</think>[[B]]", "B"),
        ("[THINK]maybe [[A]][/THINK][[C]]", "tie"),
        ("<|channel|>analysis<|message|>[[A]]<|channel|>final<|message|>[[B]]", "B"),
        ("<think>[[A]]", None),
        ("<think>I would say [[A]] but let me see", None),
        # the question, repeated
        ("You ask for [[A]] if A is better, [[B]] if B is better, [[C]] for a tie.\n\n[[B]]", "B"),
        ("> write [[A]] or whatever\n[[B]]", "B"),
        # one word, a line, JSON
        ("B", "B"),
        ("**A**", "A"),
        ("Final verdict: Assistant A", "A"),
        ("最終的な判定は「B」です。", "B"),
        ("Итог: Б", None),
        ("Победитель: A.", "A"),
        ('{"reason": "clear", "winner": "B"}', "B"),
        ('{\n  "reason": "clear",\n  "verdict": "tie"\n}', "tie"),
        # the same verdict twice
        ("[[A]] is my verdict.\nSo, [[A]].", "A"),
        # unreadable
        ("first I thought [[A>B]] but finally [[B>A]]", None),
        ("[[A]]\n\n[[B]]", None),
        ("[[A]]: the first is better\n[[B]]: the second is better", None),
        ("", None),
        ("I'm sorry, but I can't compare these answers.", None),
        ("申し訳ありませんが、評価できません。", None),
        ("[[10]]", None),
        ("[[winner]]", None),
        ("[[]]", None),
        ("Answer A has a mistake in the second line and answer B has none", None),
        ("A good answer would name the city", None),
        ("Rating: [[7]]", None),
        ("[[D]]", None),
    ],
)
def test_which_is_better(text, wanted):
    assert read_choice(text) == wanted


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("It is good. Rating: [[7]]", 7),
        ("[[7.5]]", 7.5),
        ("Оценка: [[7,5]]", 7.5),
        ("評価：［［８］］", 8),
        ("評価：【【4】】", 4),
        ("[[8/10]]", 8),
        ("[[ **9** ]]", 9),
        ("[[6点]]", 6),
        ("<think>[[3]] or so</think>Rating: [[9]]", 9),
        ("Rating: 8/10", 8),
        ("**Score:** 6", 6),
        ("評価：８点", 8),
        ("Оценка: 4 балла", 4),
        ('{"reason": "x", "score": 5}', 5),
        ("7", 7),
        ("[[5]]\nRating: [[5]]", 5),
        ("Write a grade from [[1]] to [[10]].\n[[4]]", 4),
        # unreadable
        ("[[11]]", None),
        ("[[0]]", None),
        ("[[-3]]", None),
        ("[[7/5]]", None),
        ("[[4/5]]", None),
        ("Rating: 1-10", None),
        ("The scale runs from 1 to 10.", None),
        ("評価は1から10の尺度です", None),
        ("[[5]] then\n[[2]]", None),
        ("[[rating]]", None),
        ("Rating: 7½", None),
        ("There are 3 mistakes", None),
        ("<think>[[7]]", None),
        ("I cannot grade this.", None),
        ("", None),
    ],
)
def test_a_grade(text, wanted):
    assert read_grade(text, 1, 10) == wanted


def test_a_grade_lies_on_the_scale_that_was_asked_for():
    assert read_grade("[[0]]", 0, 5) == 0 and read_grade("[[6]]", 0, 5) is None and read_grade("[[4/5]]", 0, 5) == 4
