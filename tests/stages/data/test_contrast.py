"""Pairs without labels: which answers are rejected, and that no prompt's own answer is."""

import re
from pathlib import Path

import pytest
from pydantic import ValidationError

from togi.core.codec import read_records, write_records
from togi.core.errors import StageError
from togi.core.records import Completion, Drop, Message, Pair, Prompt
from togi.stages.base import RECORDS_FILE
from togi.stages.context import Context, Control, Resolved
from togi.stages.data import contrast_work
from togi.stages.data.contrast import STAGE, Contrast
from togi.stages.data.contrast_work import Answers, instructed, of_others, pair_of


def test_off_topic_gives_every_prompt_the_answer_of_another_one():
    answers = [f"answer {i}" for i in range(9)]
    for seed in range(20):
        others = of_others(answers, seed)
        assert sorted(others) == sorted(answers)
        assert all(other != own for other, own in zip(others, answers, strict=True))
    assert of_others(answers, 1) != of_others(answers, 2)


def test_an_instruction_is_a_system_turn_or_the_whole_user_turn():
    prompt = Prompt(id="p", messages=(Message("system", "Be brief."), Message("user", "Why?")))
    system = instructed("Be careless.", "careless-0", prompt)
    assert system.messages == (Message("system", "Be careless."), Message("user", "Why?"))
    whole = instructed("Ask again: {question}", "careless-1", prompt)
    assert whole.messages == (Message("user", "Ask again: Why?"),)
    assert system.id != whole.id  # the random stream of a sample depends on the id


def test_with_examples_the_model_continues_a_list_of_answered_questions(monkeypatch, tmp_path):
    asked = []

    class Writer:
        def complete(self, texts, params, seeds):
            assert params.stop == ("\n",)
            first = len(asked) + 1
            asked.extend(texts)
            return [[Completion(text=f" answer {i}", stop="stop_string")] for i in range(first, len(asked) + 1)]

    monkeypatch.setattr(contrast_work, "completer", lambda context, ref, batch_rows: Writer())
    monkeypatch.setattr(Context, "units", lambda self, count, make, name: [make(number) for number in range(count)])
    folder = tmp_path / "contrast-0"
    folder.mkdir()
    context = Context("pairs", folder, folder, 17, {}, Control(send=lambda event: None))
    given = {"input": "$prompts", "model": "$base", "examples": "$seeds", "language": "ja", "batch_prompts": 3}
    settings = Contrast.model_validate({**given, "shots": 2})
    seeds = [Prompt(id=f"s{i}", messages=(Message("user", f"q{i}"),), answer=f"a{i}") for i in range(6)]
    prompts = [Prompt(id=f"p{i}", messages=(Message("system", "s"), Message("user", f"Why {i}?"))) for i in range(5)]

    answers = contrast_work.by_examples(settings, context, prompts, seeds)

    assert answers == [f"answer {i + 1}" for i in range(5)]
    for i, text in enumerate(asked):
        *shown, last = text.split("\n\n")
        assert last == f"質問: Why {i}?\n回答:"
        assert len(shown) == 2 and all(re.fullmatch(r"質問: q(\d)\n回答: a\1", block) for block in shown)
    assert len({text.partition("質問: Why")[0] for text in asked}) > 1  # the examples differ between questions


def test_an_answer_that_failed_drops_its_pairs_alone_and_too_many_end_the_stage(monkeypatch, tmp_path):
    class Speaker:
        terminator = "<|im_end|>"
        turn_starts = ()

        def generate(self, prompts, params):
            failed = Completion(text="", stop="error")
            return [
                [failed if "2" in p.id and "helpful" in p.id else Completion(text=f"{p.id} so", stop="terminator")]
                for p in prompts
            ]

    monkeypatch.setattr(contrast_work, "generator", lambda context, ref, batch_rows: Speaker())
    monkeypatch.setattr(contrast_work, "tokenizer", lambda context, ref: Characters())
    prompts = [Prompt(id=f"p{i}", messages=(Message("user", f"Why {i}?"),)) for i in range(5)]
    write_records(tmp_path / "prompts" / RECORDS_FILE, "prompts", prompts)
    inputs = {"$prompts": Resolved("prompts", folder=tmp_path / "prompts")}

    def run(name, **settings):
        folder = tmp_path / name
        folder.mkdir()
        context = Context("pairs", folder, folder, 17, inputs, Control(send=lambda e: None), reasons=STAGE.reasons)
        given = {"input": "$prompts", "model": "$base", "off_topic": True, "batch_prompts": 3, **settings}
        contrast_work.run(Contrast.model_validate(given), context)
        return context, read_records(folder / RECORDS_FILE)[1]

    context, pairs = run("some")
    assert context.drop_counts() == {"failed": 3}  # two pairs of its own, and one in which it was to be rejected
    assert len(pairs) == 7 and all("p2/helpful" not in pair.chosen[0].content for pair in pairs)
    with pytest.raises(StageError, match=r"1 of 5 requests to \$base \(helpful\) failed, but at most 0 may"):
        run("none", max_failed_share=0)


class Characters:
    """Tokenises into characters."""

    def __call__(self, text, add_special_tokens=False):
        return {"input_ids": [ord(character) for character in text]}

    def decode(self, ids, skip_special_tokens):
        return "".join(map(chr, ids))


@pytest.mark.parametrize("cut", [True, False])
def test_an_answer_that_is_too_short_drops_its_pair_whether_sides_are_cut_or_not(cut):
    folder = Path("contrast-0")
    context = Context("pairs", folder, folder, 17, {}, Control(send=lambda event: None))
    settings = Contrast.model_validate({"input": "$p", "model": "$m", "min_tokens": 3, "cut_to_shorter": cut})
    prompt = Prompt(id="p", messages=(Message("user", "Why?"),))
    kept = pair_of(settings, context, Characters(), Answers(prompt, "because", "nope", 0))
    assert isinstance(kept, Pair)
    assert (kept.chosen[0].content, kept.rejected[0].content) == ("beca" if cut else "because", "nope")
    gone = pair_of(settings, context, Characters(), Answers(prompt, "because", "no", 0))
    assert isinstance(gone, Drop) and gone.reason == "answer_too_short"


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"careless": []}, "nothing is rejected"), ({"max_tokens": 3}, "every pair would be dropped")],
)
def test_settings_that_make_no_pair_are_refused(settings, message):
    with pytest.raises(ValidationError, match=message):
        Contrast.model_validate({"input": "$p", "model": "$m", **settings})
