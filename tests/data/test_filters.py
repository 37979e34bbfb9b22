import pytest

from togi.core.records import Chat, Completion, Document, Drop, Message, Pair, Prompt, Sample
from togi.data import filters
from togi.data.filters import Filter, asks, first_failure, repeated_share, run_filters, text_of

QUESTION = "How do I bake bread at home?"
LOOP = "the cat sat on the mat and " * 6


def said(found: str, confidence: float):
    return lambda text: (found, confidence)


@pytest.mark.parametrize(
    ("rule", "bad", "good"),
    [
        (filters.too_short(8), " short ", QUESTION),
        (filters.too_long(20), QUESTION, "How?"),
        (filters.repeated_ngrams(0.3), LOOP, QUESTION),
        (filters.repeated_ngrams(0.3), "それはとても良いことです。" * 6, "明日の天気はどうですか。教えてください。"),
        (filters.wrong_script("ja"), QUESTION, "明日の天気は？"),
        (filters.wrong_script("en"), "Как дела?", QUESTION),
        (filters.copy_of_seed([QUESTION]), "how do I bake bread, at home", "How do I sell a car?"),
        (filters.not_a_question("en"), "The bread is baked at home.", "Describe how bread is baked."),
        (filters.not_a_question("ja"), "パンはおいしいです。", "パンの焼き方を教えてください。"),
        (filters.not_a_question("ru"), "Хлеб пекут дома.", "Расскажи, как пекут хлеб."),
        (filters.contains(["Question:", "http"], "label_inside"), "A? Question: B?", QUESTION),
    ],
)
def test_rules(rule: Filter, bad: str, good: str) -> None:
    assert rule.fails(bad) and not rule.fails(good)


@pytest.mark.parametrize(("found", "confidence", "fails"), [("ja", 0.9, False), ("ja", 0.3, True), ("en", 0.9, True)])
def test_language_by_a_detector(found: str, confidence: float, fails: bool) -> None:
    assert filters.wrong_language("ja", said(found, confidence)).fails("x") is fails


def test_repeated_share() -> None:
    assert repeated_share("") == repeated_share("one two") == 0
    assert repeated_share("a b c a b c") == pytest.approx(1 / 4)


def test_a_mark_makes_a_question_in_any_language() -> None:
    assert asks("Wie geht es?", "de") and not asks("Es geht.", "de")


def test_the_first_failure_names_the_drop() -> None:
    rules = [filters.too_short(8), filters.not_a_question("en")]
    records = [Document(id=str(i), text=text) for i, text in enumerate(["short", QUESTION, "bread is baked at home"])]
    kept, drops = run_filters(records, rules, stage="curate")
    assert [r.id for r in kept] == ["1"]
    expected = [("0", "too_short"), ("2", "not_a_question")]
    assert drops == [Drop(id=name, stage="curate", reason=reason) for name, reason in expected]
    assert first_failure(QUESTION, rules) is None
    assert run_filters(records, rules, stage="x", text=lambda r: QUESTION)[1] == []


def test_text_of_every_kind() -> None:
    ask, reply = Message("user", "Q"), Message("assistant", "A")
    prompt = Prompt(id="p", messages=(ask,))
    records = [
        prompt,
        Chat(id="c", messages=(ask, reply)),
        Pair(id="r", prompt=(ask,), chosen=(reply,), rejected=(ask,)),
        Sample(id="s", prompt=prompt, completion=Completion(text="A", stop="length")),
        Document(id="d", text="D"),
    ]
    assert [text_of(r) for r in records] == ["Q", "A", "A", "A", "D"]
