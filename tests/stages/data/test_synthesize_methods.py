"""The methods of `synthesize` other than few-shot drafts, with models that give the test's answers: requests, parsing,
reasons of drops, and exactly as many records as requested."""

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tokenizers_made import byte_bpe

from togi.core.codec import read_records, write_records
from togi.core.errors import InputError, StageError
from togi.core.files import read_json, read_lines
from togi.core.records import Completion, Document, Message, Prompt, Provenance, SamplingParams
from togi.stages.base import RECORDS_FILE
from togi.stages.context import Context, Control, Resolved
from togi.stages.data import continued_work, harvest_work, synthesize_work
from togi.stages.data.synthesize import Synthesize
from togi.text.grounded import NO_ANSWER, SYSTEM
from togi.text.template import TEMPLATES

END = "<|im_end|>"
SOURCE = Provenance(dataset="pages", licence="CC BY 4.0")
sampling: list[SamplingParams] = []
"""The sampling parameters of each call to a test's model."""
Reply = Callable[[str, int], str | Completion]


@pytest.fixture
def says(monkeypatch: pytest.MonkeyPatch):
    """A model that answers by the last message and the number of the request; installing it returns its requests."""
    asked: list[tuple[Message, ...]] = []
    sampling.clear()

    def install(reply: Reply, fits: Callable[[Sequence[Message]], bool] = lambda messages: True) -> list[Any]:
        class Speaker:
            terminator = END
            turn_starts = ("<|im_start|>",)

            def fits(self, prompt, params):
                return fits(prompt.messages)

            def generate(self, prompts, params):
                sampling.append(params)
                found = []
                for prompt in prompts:
                    text = reply(prompt.messages[-1].content, len(asked))
                    asked.append(prompt.messages)
                    found.append(
                        text if isinstance(text, Completion) else Completion(text=text + END, stop="terminator")
                    )
                return [[each] for each in found]

        monkeypatch.setattr(harvest_work, "generator", lambda context, ref, batch_rows: Speaker())
        monkeypatch.setattr("togi.stages.data.texts_work.fits_context", lambda settings, context: fits)
        return asked

    return install


def context(folder: Path, records: Sequence[Any] = (), kind: str = "prompts") -> Context:
    write_records(folder / "given" / RECORDS_FILE, kind, list(records))
    (folder / "synthesize-0").mkdir(exist_ok=True)
    inputs = {"$given": Resolved(kind, folder=folder / "given")}
    return Context("made", folder / "synthesize-0", folder, 17, inputs, Control(send=lambda event: None))


def run(made: Context, **given: Any) -> tuple[list[Any], dict[str, int]]:
    """Returns the records, and the drops by reason."""
    synthesize_work.run(Synthesize.model_validate({"model": "$m", **given}), made)
    made.finish()
    return read_records(made.folder / RECORDS_FILE)[1], read_json(made.folder / "summary.json")["drops"]


def questions(*texts: str, answer: str | None = None) -> list[Prompt]:
    return [
        Prompt(
            id=f"q{i}", messages=(Message("system", "Be brief."), Message("user", text)), answer=answer, source=SOURCE
        )
        for i, text in enumerate(texts)
    ]


# --- evolve, rewrite --------------------------------------------------------------------------------------------------

SKY = "Why is the sky blue?"


def test_an_evolved_question_takes_the_place_of_the_old_one_and_has_no_answer(tmp_path, says):
    asked = says(lambda text, n: '"Why is the sky red at sunset?"' if SKY in text else "How do owls see at night?")
    made, drops = run(
        context(tmp_path, questions(SKY, "How do cats see?", answer="x")), method="evolve", input="$given"
    )
    assert [prompt.text for prompt in made] == ["Why is the sky red at sunset?", "How do owls see at night?"]
    assert [prompt.parents for prompt in made] == [("q0",), ("q1",)] and drops == {}
    assert made[0].messages[0].content == "Be brief." and made[0].answer is None and made[0].inherited == (SOURCE,)
    assert len(asked[0]) == 1 and SKY in asked[0][0].content  # the model sees only the question


def test_what_is_no_new_question_is_dropped_by_its_reason(tmp_path, says):
    texts = [f"Question {word} of the stars?" for word in ("one", "two", "three", "four", "five", "six", "seven")]
    cut, error = Completion(text="Why is", stop="length"), Completion(text="", stop="error")
    replies = [texts[0].upper(), "Почему звёзды светят?", "", cut, error, "Stars burn gas.", "What do stars burn?"]
    says(lambda text, n: replies[n])
    made, drops = run(context(tmp_path, questions(*texts)), method="rewrite", input="$given")
    assert [prompt.text for prompt in made] == ["What do stars burn?"]
    assert drops == {"unchanged": 1, "wrong_language": 1, "empty": 1, "no_end": 1, "failed": 1, "not_a_question": 1}


def test_a_rewritten_question_keeps_its_answer(tmp_path, says):
    says(lambda text, n: "Why does the sky look blue?")
    (made,), _ = run(context(tmp_path, questions(SKY, answer="It scatters.")), method="rewrite", input="$given")
    assert made.answer == "It scatters."


def test_exactly_as_many_records_as_asked_for_with_every_candidate_accounted_for(tmp_path, says):
    asked = says(lambda text, n: f"Why does star number {n} shine?" if n % 3 else "")
    progress: list[tuple[int, int]] = []
    made = context(tmp_path, questions(SKY, "How do cats see?"))
    made.control.send = lambda event: event["event"] == "progress" and progress.append((event["done"], event["total"]))
    found, _ = run(made, method="evolve", input="$given", count=7, batch_prompts=4)
    counts = read_json(made.folder / "summary.json")["counts"]
    assert len(found) == 7 == counts["out"] and counts["in"] == 11 and len(asked) == 12  # requests come in whole units
    assert sum(read_json(made.folder / "summary.json")["drops"].values()) == 4
    assert progress[-1] == (7, 7) and {total for _, total in progress} == {7}
    assert len({prompt.id for prompt in found}) == 7


def test_the_cap_on_candidates_is_said_with_the_reasons(tmp_path, says):
    says(lambda text, n: "Why does the sea taste of salt?")
    made = context(tmp_path, questions(SKY, "How do cats see?"))
    found, drops = run(made, method="evolve", input="$given", count=5, max_candidates=6)
    assert len(found) == 1 and drops == {"duplicate": 5}
    (alarm,) = read_lines(made.folder / "alarms.jsonl")
    assert alarm["name"] == "under_count"
    assert "only 1 of 5 records were accepted from 6 candidates; drops: duplicate 5" in alarm["message"]
    assert "Raise max_candidates" in alarm["message"]


def test_none_at_all_is_an_error_with_the_reasons(tmp_path, says):
    says(lambda text, n: Completion(text="", stop="error"))
    with pytest.raises(StageError, match="none of 2 candidates was accepted; reasons: failed 2"):
        run(context(tmp_path, questions(SKY, "How do cats see?")), method="evolve", input="$given")


def test_units_that_are_done_are_not_asked_again_and_the_file_is_the_same(tmp_path, says):
    asked = says(lambda text, n: f"Why does star number {n} shine?")
    given = {"method": "evolve", "input": "$given", "count": 5, "batch_prompts": 2}
    stars = questions(SKY, "How do cats see?")
    made = context(tmp_path, stars)
    run(made, **given)
    before, calls = (made.folder / RECORDS_FILE).read_bytes(), len(asked)
    (made.folder / "units" / "batch-000001.json").unlink()  # as after a kill, one unit is missing
    asked[:] = asked[:2]  # it is requested again; the reply depends on the number of requests, so it is the same
    run(context(tmp_path, stars), **given)
    assert calls == 6 and len(asked) == 4 and (made.folder / RECORDS_FILE).read_bytes() == before


def test_a_conversation_over_the_context_is_dropped_and_never_asked(tmp_path, says):
    asked = says(lambda text, n: "Why is it so?", lambda messages: "long" not in messages[-1].content)
    _, drops = run(context(tmp_path, questions(SKY, "How long is a long day?")), method="evolve", input="$given")
    assert drops == {"over_context": 1} and len(asked) == 1


def test_a_strangers_prompt_file_is_asked_and_a_wrong_one_says_so(tmp_path, says):
    asked = says(lambda text, n: "Why is it so blue?")
    own = tmp_path / "own.j2"
    own.write_text("Sharpen: {{ question }}")
    run(context(tmp_path, questions(SKY)), method="evolve", input="$given", prompt=str(own))
    assert asked[0][0].content == f"Sharpen: {SKY}"
    own.write_text("{{ text }}")
    with pytest.raises(InputError, match=r"own\.j2.*it may use question, answer, number"):
        run(context(tmp_path / "2", questions(SKY)), method="evolve", input="$given", prompt=str(own))


# --- chain of thought -------------------------------------------------------------------------------------------------


def test_reasoning_is_kept_whole_and_held_against_the_reference(tmp_path, says):
    replies = ["Two and two.\nAnswer: 4", "Two times two.\nAnswer: five", "I cannot say."]
    says(lambda text, n: replies[n])
    sums = questions("What is 2 + 2?", "What is 2 * 2?", "What is 1 + 3?", answer="4.")
    given = {"method": "cot", "input": "$given", "check_answer": True, "system": "Think."}
    (chat,), drops = run(context(tmp_path, sums), **given)
    assert [message.content for message in chat.messages] == ["Think.", "What is 2 + 2?", "Two and two.\nAnswer: 4"]
    assert drops == {"wrong_answer": 1, "no_answer": 1} and chat.parents == ("q0",)
    says(lambda text, n: f"Less and less.\nAnswer: {('5', '-5')[n % 2]}")
    chats, drops = run(context(tmp_path / "signs", questions("What is 1 - 6?", answer="-5")), **given, count=2)
    assert {chat.messages[-1].content for chat in chats} == {"Less and less.\nAnswer: -5"}
    assert drops["wrong_answer"] == 1
    with pytest.raises(InputError, match="prompt q0 has no reference answer"):
        run(context(tmp_path / "2", questions(SKY)), method="cot", input="$given", check_answer=True)


def test_prompts_with_the_final_answer_alone(tmp_path, says):
    asked = says(lambda text, n: "Two and two.\nAnswer: 4")
    (prompt,), _ = run(context(tmp_path, questions("What is 2 + 2?")), method="cot", input="$given", kind="prompts")
    assert (prompt.text, prompt.answer) == ("What is 2 + 2?", "4")
    assert "What is 2 + 2?\n\nThink step by step." in asked[0][-1].content and asked[0][0].content == "Be brief."


# --- questions and answers from documents -----------------------------------------------------------------------------

MOON = "The Moon turns once in 27 days. It shows the same side."
SEA = "The sea is salt because rivers carry minerals into it."


def documents(*texts: str, titles: bool = False) -> list[Document]:
    return [
        Document(id=f"d{i}", text=text, source=SOURCE, extra={"title": f"T{i}"} if titles else {})
        for i, text in enumerate(texts)
    ]


def pair(question: str, answer: str) -> str:
    return f"Question: {question}\nAnswer: {answer}\n\n"


def test_text_and_pairs_become_one_document_for_pretraining(tmp_path, says):
    asked = says(
        lambda text, n: pair("How long does the Moon turn?", "27 days.") + pair("Which side?", "The same side.")
    )
    (made,), drops = run(context(tmp_path, documents(MOON), "documents"), method="qa", documents="$given")
    assert MOON in made.text and "Question: Which side?\nAnswer: The same side." in made.text and drops == {}
    assert made.parents == ("d0",) and made.inherited == (SOURCE,)
    assert MOON in asked[0][0].content and "2 different questions" in asked[0][0].content


def test_pairs_as_a_chat_about_the_text_and_a_layout_of_ones_own(tmp_path, says):
    says(lambda text, n: pair("How long does the Moon turn?", "27 days.") + pair("Which side?", "The same side."))
    given = {"method": "qa", "documents": "$given"}
    (chat,), _ = run(context(tmp_path, documents(MOON), "documents"), **given, kind="chats")
    assert chat.messages[0].content == f"{MOON}\n\nHow long does the Moon turn?"
    assert [message.role for message in chat.messages] == ["user", "assistant"] * 2
    own = tmp_path / "own.j2"
    own.write_text("{{ title }}|{% for pair in pairs %}{{ pair.question }}{% endfor %}")
    again = context(tmp_path / "2", documents(MOON, titles=True), "documents")
    (document,), _ = run(again, **given, layout=str(own))
    assert document.text == "T0|How long does the Moon turn?Which side?"


def test_a_bad_pair_leaves_and_a_text_without_a_good_one_is_dropped_by_its_first_reason(tmp_path, says):
    replies = [
        pair("How long does the Moon turn?", "In 31 years of travelling.")
        + pair("Which side does it show?", "The same side."),
        pair("How salt is it?", ""),
        "The sea is salt.",
        Completion(text=pair("Why is the sea salt?", "Rivers carry minerals.") + "Question: And", stop="length"),
        Completion(text="Question: Why is the sea so salt?\nAnswer: Rivers", stop="length"),
    ]
    says(lambda text, n: replies[n])
    given = {"method": "qa", "documents": "$given", "min_support": 0.7}
    made, drops = run(context(tmp_path, documents(MOON, SEA, SEA, SEA, SEA), "documents"), **given)
    assert len(made) == 2 and "31 years" not in made[0].text and "The same side." in made[0].text
    assert "Rivers carry minerals." in made[1].text and "And" not in made[1].text
    assert drops == {"no_answer": 1, "empty": 1, "no_end": 1}


def test_a_tagged_pair_that_ended_is_kept_when_the_limit_cuts_the_next_one(tmp_path, says):
    text = "<QUE> How long is a turn? <ANS> 27 days. </END>\n\n<QUE> Which side is shown? <ANS> The sa"
    says(lambda _, n: Completion(text=text, stop="length"))
    (made,), _ = run(context(tmp_path, documents(MOON), "documents"), method="qa", documents="$given")
    assert "27 days." in made.text and "The sa" not in made.text.replace(MOON, "")


def test_a_question_may_be_asked_of_every_text_but_of_each_only_once(tmp_path, says):
    twice = pair("What is told of it?", "What {} does.") + pair("what is told of it", "Something.")
    says(lambda text, n: twice.format("the Moon" if MOON in text else "the sea"))
    given = {"method": "qa", "documents": "$given"}
    made, drops = run(context(tmp_path, documents(MOON, SEA, MOON), "documents"), **given)
    assert [each.parents for each in made] == [("d0",), ("d1",)] and drops == {"duplicate": 1}
    assert all(each.text.lower().count("told of it") == 1 for each in made)
    again, drops = run(context(tmp_path / "passes", documents(MOON, SEA), "documents"), **given, count=3)
    assert len(again) == 2 and drops == {"duplicate": 10}
    _, drops = run(
        context(tmp_path / "grounded", documents(MOON, SEA), "documents"),
        **{**given, "method": "grounded"},
        distractors=0,
        unanswerable=0,
    )
    assert drops == {"duplicate": 1}, "a dialogue does not say which document its question is about"


@pytest.mark.parametrize("most", [{}, {"max_candidates": 9}])
def test_a_greedy_model_is_asked_once_about_each_text(tmp_path, says, most):
    asked = says(lambda text, n: pair(f"What is number {n}?", "The sea."))
    given = {"method": "qa", "documents": "$given", "count": 5, **most}
    made = context(tmp_path, documents(MOON, SEA), "documents")
    assert len(run(made, **given, temperature=0.0)[0]) == len(asked) == 2
    (alarm,) = read_lines(made.folder / "alarms.jsonl")
    assert "only 2 of 5 records were accepted from 2 candidates" in alarm["message"]
    assert "about once, because at temperature 0 the same question has the same answer: raise" in alarm["message"]
    made = context(tmp_path / "2", documents(MOON, SEA), "documents")
    assert len(run(made, **given, temperature=0.1)[0]) == 5 and not (made.folder / "alarms.jsonl").exists()


def test_an_answer_that_only_says_its_question_again_is_none(tmp_path, says):
    replies = [
        pair("What is the side that the Moon shows?", "The side that the Moon shows."),
        pair("Does the Moon turn once or twice?", "Once."),
    ]
    says(lambda text, n: replies[n])
    made, drops = run(context(tmp_path, documents(MOON, MOON), "documents"), method="qa", documents="$given")
    assert drops == {"echo": 1} and "Answer: Once." in made[0].text


@pytest.mark.parametrize(("way", "parts"), [("split", 2), ("cut", 1), ("drop", 0)])
def test_long_documents_are_cut_as_the_recipe_says_and_it_is_said(tmp_path, says, way, parts):
    asked = says(lambda text, n: pair(f"What is number {n}?", "The sea."))
    said: list[str] = []
    made = context(tmp_path, documents(f"{MOON}\n\n{SEA}", SEA), "documents")
    made.control.send = lambda event: said.append(event.get("message", ""))
    given = {"method": "qa", "documents": "$given", "chunk_chars": 60, "long_documents": way}
    found, drops = run(made, **given)
    assert len(found) == len(asked) == parts + 1 and drops == ({"too_long": 1} if way == "drop" else {})
    assert made.summary["documents"] == {"documents": 2, "long": 1, "parts": parts + 1}
    assert any("1 of 2 documents are longer than 60 characters" in message and way in message for message in said)


def test_a_document_over_the_models_context_is_halved_until_it_fits(tmp_path, says):
    asked = says(
        lambda text, n: pair(f"What is number {n}?", "The sea."), lambda messages: len(messages[-1].content) < 420
    )
    run(context(tmp_path, documents(f"{SEA} " * 8), "documents"), method="qa", documents="$given")
    assert len(asked) > 1 and all(len(messages[-1].content) < 420 for messages in asked)


EXAMPLES = [
    Prompt(id="e0", messages=(Message("user", "What is made?"),), answer="Clocks.", extra={"text": "Clocks are made."}),
    Prompt(id="e1", messages=(Message("user", "What spoils?"),), answer="Milk.", extra={"text": "Milk spoils."}),
]


def with_examples(made: Context, examples: Sequence[Prompt] = EXAMPLES) -> Context:
    write_records(made.cache / "examples" / RECORDS_FILE, "prompts", list(examples))
    made.inputs["$examples"] = Resolved("prompts", folder=made.cache / "examples")
    return made


def test_with_examples_a_model_goes_on_with_a_list_of_texts(tmp_path, says, monkeypatch):
    says(lambda text, n: "never asked")
    shown: list[str] = []

    class Writer:
        def complete(self, texts, params, seeds):
            assert params.n == 2 and params.stop == ("\n\n", "\nText:", "\nQuestion:")
            assert len({seed for group in seeds for seed in group}) == 2 * len(texts)
            shown.extend(texts)
            first = Completion(text=" Which side is shown?\nAnswer: The same side.\n\n", stop="stop_string")
            other = Completion(text=" How long", stop="length")
            good = Completion(text=" How long is a turn?\nAnswer: 27 days.", stop="terminator")
            return [[first, other if SEA in text.splitlines()[-2] else good] for text in texts]

    monkeypatch.setattr(harvest_work, "completer", lambda context, ref, batch_rows: Writer())
    made = with_examples(context(tmp_path, documents(MOON, SEA), "documents"))
    found, drops = run(made, method="qa", documents="$given", examples="$examples", min_support=0.5)
    assert found[0].text.count("Answer:") == 2 and "27 days." in found[0].text
    assert drops == {"unsupported_answer": 1} and found[0].parents == ("d0",)
    blocks = shown[0].split("\n\n")
    assert (
        blocks[-1] == f"Text: {MOON}\nQuestion:"
        and "Text: Milk spoils.\nQuestion: What spoils?\nAnswer: Milk." in blocks
    )


def test_an_example_without_its_text_is_refused(tmp_path, says):
    says(lambda text, n: "")
    made = with_examples(context(tmp_path, documents(MOON), "documents"), questions(SKY, answer="x"))
    with pytest.raises(InputError, match=r"example q0 lacks a text: .* the columns text, question and answer"):
        run(made, method="qa", documents="$given", examples="$examples")


def test_where_no_text_fits_or_none_is_left_one_message_says_what_to_do(tmp_path, says):
    asked = says(lambda text, n: "", lambda messages: False)
    given = {"method": "qa", "documents": "$given", "count": 3}
    with pytest.raises(InputError, match=r"context of \$m has no room .* at most 256 tokens: lower max_tokens"):
        run(context(tmp_path, documents(MOON), "documents"), **given)
    says(lambda text, n: "")
    with pytest.raises(InputError, match=r"no document of \$given is left .*too_long 1.* long_documents: split"):
        made = context(tmp_path / "2", documents(f"{MOON}\n\n{SEA}"), "documents")
        run(made, **given, chunk_chars=60, long_documents="drop")
    assert asked == []


# --- grounded dialogues -----------------------------------------------------------------------------------------------

PAGES = [
    "Kitchen knives are ground on a wet stone at a steady angle.",
    "Kitchen knives of steel are wiped dry so that kitchen knives do not rust.",
    "Kitchen knives are kept in a wooden block, edges of knives up.",
    "Breads of the bakery are baked in a hot oven of the bakery.",
    "Breads of the bakery go stale as the starch of breads grows firm.",
    "Breads of the bakery rise because the yeast of breads makes gas.",
]


def about(text: str, n: int) -> str:
    page = next(page for page in PAGES if page in text)
    return pair(f"What is said of {page.split()[0].lower()} number {PAGES.index(page)}?", page)


GROUNDED = {"method": "grounded", "documents": "$given", "distractors": 2, "min_support": 0.5}


def test_a_dialogue_shows_the_document_among_its_relatives_and_names_it(tmp_path, says):
    says(about)
    made, drops = run(context(tmp_path, documents(*PAGES, titles=True), "documents"), **GROUNDED, unanswerable=0)
    assert len(made) == 6 and drops == {}
    places = set()
    for chat, page in zip(made, PAGES, strict=True):
        system, shown, _, relevant, answer = chat.messages
        rows = json.loads(shown.content)
        assert system.content == SYSTEM and shown.role == "documents" and [row["doc_id"] for row in rows] == [0, 1, 2]
        (place,) = json.loads(relevant.content)["relevant_doc_ids"]
        assert rows[place]["content"] == page == answer.content and rows[place]["title"] == f"T{PAGES.index(page)}"
        assert {row["content"].split()[0] for row in rows} == {page.split()[0]}  # relatives share the subject
        places.add(place)
    assert len(places) > 1  # its position varies


def test_where_nothing_helps_the_list_is_empty_and_the_document_is_not_shown(tmp_path, says):
    says(about)
    made, _ = run(context(tmp_path, documents(*PAGES), "documents"), **GROUNDED, unanswerable=1, language="en")
    for chat, page in zip(made, PAGES, strict=True):
        rows = json.loads(chat.messages[1].content)
        assert len(rows) == 3 and page not in {row["content"] for row in rows}
        assert [m.content for m in chat.messages[3:]] == ['{"relevant_doc_ids": []}', NO_ANSWER["en"]]


def test_the_share_without_an_answer_is_drawn_row_by_row_and_an_answer_elsewhere_is_no_dialogue(tmp_path, says):
    says(lambda text, n: pair(f"What is rule number {n}?", "Kitchen knives are kept."))
    given = {**GROUNDED, "min_support": 0.0, "count": 40, "no_answer": "Nothing here."}
    made, _ = run(context(tmp_path, documents(*PAGES), "documents"), **given, unanswerable=0.5)
    empty = [chat for chat in made if chat.messages[4].content == "Nothing here."]
    assert 10 <= len(empty) <= 30
    says(lambda text, n: pair("What are kitchen knives?", "Kitchen knives are kept."))
    twice = documents(PAGES[2], f"{PAGES[2]} What are kitchen knives?")
    with pytest.raises(StageError, match="answer_elsewhere"):
        run(context(tmp_path / "2", twice, "documents"), **given, unanswerable=0.0)


# --- Magpie -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def continues(monkeypatch: pytest.MonkeyPatch):
    """A ChatML model that continues texts as the test specifies. Installing it returns the texts that it was shown."""
    shown: list[str] = []

    def install(*drafts: tuple[str, str]) -> list[str]:
        class Writer:
            def complete(self, texts, params, seeds):
                assert params.temperature == 1 and params.top_p == 1 and "\n" in params.stop
                first = len(shown)
                shown.extend(texts)
                flat = [drafts[i % len(drafts)] for i in range(first * params.n, len(shown) * params.n)]
                made = [Completion(text=text, stop=stop) for text, stop in flat]
                return [made[i : i + params.n] for i in range(0, len(made), params.n)]

        monkeypatch.setattr(harvest_work, "completer", lambda context, ref, batch_rows: Writer())
        monkeypatch.setattr(continued_work, "reader", lambda context, ref: (byte_bpe(), TEMPLATES["chatml"]))
        return shown

    return install


DRAFTS = [("Why is the sky blue?<|im_end|>", "terminator"), ("Why", "length"), ("How do cats see?\n", "stop_string")]


def test_magpie_shows_the_beginning_of_a_users_turn_and_reads_what_a_user_asks(tmp_path, continues):
    shown = continues(*DRAFTS)
    given = {"method": "magpie", "count": 2, "samples_per_prompt": 3, "batch_prompts": 1, "system": "Be brief."}
    made, drops = run(context(tmp_path), **given)
    assert shown == ["<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n"]
    assert [prompt.text for prompt in made] == ["Why is the sky blue?", "How do cats see?"] and drops == {"no_end": 1}
    assert made[0].messages[0] == Message("system", "Be brief.") and made[0].answer is None


def test_magpie_answers_greedily_what_passes_the_rules(tmp_path, continues, says):
    continues(*DRAFTS)
    asked = says(lambda text, n: f"Because of {text}")
    given = {"method": "magpie", "count": 2, "samples_per_prompt": 3, "batch_prompts": 1, "answer_tokens": 9}
    made, _ = run(context(tmp_path), **given, kind="chats")
    assert [chat.messages[-1].content for chat in made] == [
        "Because of Why is the sky blue?",
        "Because of How do cats see?",
    ]
    assert {(params.temperature, params.max_tokens) for params in sampling} == {(0.0, 9)}
    assert len(asked) == 2 and [message.role for message in made[0].messages] == ["user", "assistant"]
    prompts, _ = run(context(tmp_path / "2"), **given)
    assert prompts[0].answer == "Because of Why is the sky blue?"


@pytest.mark.parametrize(
    ("template", "begins"),
    [
        ("chatml-nobos", "<|im_start|>user\n"),
        ("llm-jp", "<s>\n\n### 指示:\n"),
        ("sarashina", "<|user|>"),
        ("vikhr-nemo", "<s><|start_header_id|>user<|end_header_id|>\n\n"),
    ],
)
def test_what_stands_before_a_users_words(template, begins):
    assert continued_work.pre_query(byte_bpe(), TEMPLATES[template]) == begins


def test_a_template_that_repeats_the_users_words_is_refused():
    said = replace(TEMPLATES["chatml"], roles={**TEMPLATES["chatml"].roles, "user": ("Zq7kV ", "")})
    with pytest.raises(InputError, match="template 'chatml' does not render the user's words unchanged"):
        continued_work.pre_query(byte_bpe(), said)


def test_what_the_tokenizer_writes_by_itself_is_not_written_twice():
    begun = continued_work.pre_query(byte_bpe(adds_bos=True), TEMPLATES["llm-jp"])
    assert begun == "\n\n### 指示:\n"  # the completer's tokenizer adds <s>
