"""The health of single answers: each sign alone, in the languages and templates that togi knows."""

import pytest

from togi.evaluate.benchmarks.chat_health import Reply, check_up
from togi.evaluate.health import health, looped, repeated
from togi.text.language import detect
from togi.text.template import TEMPLATES

EN = "Please tell me how a river finds its way to the sea."
JA = "川がどのようにして海へ流れていくのかを教えてください。"
RU = "Расскажите, пожалуйста, как река находит дорогу к морю."
GOOD = {
    EN: "Water always runs downhill. Rain feeds small streams, and these meet in larger ones until they reach a shore.",
    JA: "水は高いところから低いところへ流れます。雨が集まって小川になり、やがて大きな川となって海に注ぎます。",
    RU: "Вода течёт вниз по склону. Дожди питают ручьи, ручьи сливаются в реки, и так они доходят до самого моря.",
}


@pytest.mark.parametrize("prompt", GOOD, ids=["en", "ja", "ru"])
def test_a_good_answer_suffers_from_nothing(prompt):
    found = health(prompt, GOOD[prompt], detect)
    assert (found.empty, found.leaks, found.headers, found.drift, found.mixed) == (False, (), False, False, False)
    assert found.repeated == 0 and not found.looped


@pytest.mark.parametrize("name", TEMPLATES)
def test_strings_of_every_template_are_leaks(name):
    template = TEMPLATES[name]
    for mark in (template.terminator, *template.turn_starts):
        assert health(EN, f"{GOOD[EN]}\n{mark}user", detect).leaks == (mark,)


OTHERS = ["<|endoftext|>", "[/INST]", "<start_of_turn>", "<｜User｜>", "### Instruction:", "<<SYS>>"]
TURNS = [
    "User: and then?",
    "Human: and then?",
    "assistant",
    "ユーザー：それから",
    "Пользователь: а потом?",
    "**Assistant:** yes",
]


@pytest.mark.parametrize("mark", OTHERS)
def test_strings_of_other_templates_are_leaks_unless_the_prompt_has_them(mark):
    assert health(EN, f"It begins with {mark} and so on.", detect).leaks == (mark,)
    assert health(f"What does {mark} mean?", f"It begins with {mark} and so on.", detect).leaks == ()


@pytest.mark.parametrize("line", TURNS)
def test_a_line_that_opens_another_turn_is_a_header(line):
    assert health(EN, f"{GOOD[EN]}\n{line}", detect).headers
    assert not health(EN, f"{GOOD[EN]} As one user said, it was fine.", detect).headers
    assert not health(f"Write a dialogue.\n{line}", f"{GOOD[EN]}\n{line}", detect).headers


def test_the_language_drifts_where_the_answer_has_another_than_the_prompt():
    assert health(EN, GOOD[RU], detect).drift is True
    assert health(JA, GOOD[EN], detect).drift is True
    assert health(EN, GOOD[RU], detect, language="ru").drift is False
    assert health(EN, GOOD[EN], detect, language="ja").drift is True


def test_a_language_is_not_guessed_from_few_letters_code_or_an_unsure_detector():
    assert health(EN, "42.", detect).drift is None
    assert health(EN, f"```\n{GOOD[RU]}\n```", detect).drift is None
    assert health(EN, GOOD[RU], lambda text: ("ru", 0.3)).drift is None


def test_letters_of_another_writing_system_are_foreign_but_latin_and_the_prompts_own_are_not():
    assert health(RU, GOOD[RU] + " 因此", detect).mixed
    assert health(EN, GOOD[EN] + " Вот так.", detect).mixed
    assert not health(RU, GOOD[RU] + " DNA", detect).mixed
    assert not health(EN + " Что значит «река»?", GOOD[EN] + " Река is a river.", detect).mixed


def test_repetition_is_the_share_of_runs_that_stood_before():
    assert repeated("a b c d e a b c d e") == pytest.approx(2 / 7)
    assert repeated("A, b. C d!  a b c d") == pytest.approx(1 / 5)
    assert repeated("あいうえおかきくけこ" * 2) == pytest.approx(1 / 11)
    assert repeated("") == repeated("one two") == 0


@pytest.mark.parametrize(
    ("text", "is_loop"),
    [
        ("It was a nice day. " + "I like it a lot. " * 3, True),
        ("It was a nice day. " + "I like it a lot. " * 3 + "I like", True),
        ("はい、" * 10, True),
        ("a" * 24, True),
        ("It was a nice day. " + "I like it a lot. " * 2, False),
        ("ha ha ha", False),
        ("I like it a lot. " * 3 + "It was a nice day after all, as one says.", False),
        ("", False),
    ],
)
def test_a_loop_is_a_piece_that_ends_the_answer_three_times(text, is_loop):
    assert looped(text) is is_loop


def test_every_answer_has_its_numbers_and_none_where_nothing_can_be_said():
    replies = {
        "a": [
            [Reply(text=GOOD[EN], closed=True, cut=False), Reply(text="", closed=False, cut=False)],
            [Reply(text="<|im_end|> yes", closed=False, cut=True)],
            [None],
        ]
    }
    found = check_up([EN, EN, EN], replies, detect)
    values = found.values["a"]
    assert values["ended properly"] == [1.0, 0.0, 0.0, None]
    assert values["cut off"] == [0.0, 0.0, 1.0, None]
    assert values["empty"] == [0.0, 1.0, 0.0, None]
    assert values["template leaks"] == [0.0, None, 1.0, None]
    assert values["language drift"] == [0.0, None, None, None]
    assert found.leaked == {"a": {"<|im_end|>": 1}}
    assert "length (tokens)" not in values, "nobody counted them"


def test_tokens_are_a_column_where_all_are_counted():
    replies = {"a": [[Reply(text="yes", closed=True, cut=False, tokens=2)], [Reply(text="", closed=False, cut=False)]]}
    assert check_up([EN, EN], replies, detect).values["a"]["length (tokens)"] == [2.0, 0.0]
