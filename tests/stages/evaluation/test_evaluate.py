"""The numbers of an evaluation, recomputed by hand from known answers."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from togi.core.codec import write_records
from togi.core.errors import GraderError, StageError
from togi.core.files import read_json, read_lines, write_json
from togi.core.records import Completion, Message, Prompt
from togi.stages.base import RECORDS_FILE
from togi.stages.context import Context, Control, Resolved
from togi.stages.evaluation import evaluate_work
from togi.stages.evaluation.evaluate import Evaluate

END = "<|im_end|>"
# two answers of each model to each of four prompts; the second model ends more of them properly, with fewer words
ANSWERS = {
    "$base": ["a b c d e f", f"a b c{END}", "g h i j", "k l m n", "o p q", "r s t", "u v w x", "y z a b"],
    "$policy": [
        f"a b{END}",
        f"c d e{END}",
        f"f g{END}",
        "h i j",
        f"k l m{END}",
        f"n o{END}",
        f"p q r s{END}",
        f"t{END}",
    ],
}
PROMPTS = [Prompt(id=f"p{i}", messages=(Message("user", f"Question {i}?"),)) for i in range(4)]


def words(text: str) -> int:
    return len(text.removesuffix(END).split())


class Generator:
    terminator = END
    turn_starts = ("<|im_start|>",)

    def __init__(self, context: Context, ref: str, *, batch_rows: int) -> None:
        assert batch_rows == 6
        self.answers = ANSWERS[ref]

    def generate(self, prompts, params):
        assert params.n == 2
        found = [[self.answers[2 * int(p.id[1]) + i] for i in range(2)] for p in prompts]
        return [[self.completion(text) for text in group] for group in found]

    def completion(self, text: str) -> Completion:
        return Completion(text=text, stop="terminator" if END in text else "length", token_ids=(1,) * words(text))


class Scorer:
    """Scores an answer by its number of words, with the opposite sign for the judge, and records what it was asked."""

    def __init__(self, sign: int) -> None:
        self.sign = sign
        self.asked: list[str] = []
        self.roles: set[str] = set()

    def score(self, items):
        self.asked += [text for _, text in items]
        self.roles.update(message.role for messages, _ in items for message in messages)
        return [float(self.sign * words(text)) for _, text in items]


@pytest.fixture
def scored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    scorers = {"$reward": Scorer(1), "$judge": Scorer(-1)}
    monkeypatch.setattr(evaluate_work, "generator", Generator)
    monkeypatch.setattr(evaluate_work, "scorer", lambda context, ref: scorers[ref])
    write_records(tmp_path / "prompts" / RECORDS_FILE, "prompts", PROMPTS)
    for name in ("reward", "judge", "stage"):
        (tmp_path / name).mkdir()
        write_json(tmp_path / name / "summary.json", {"table": []})
    inputs = {f"${name}": Resolved("x", folder=tmp_path / name) for name in ("prompts", "reward", "judge")}
    inputs |= {name: Resolved("model", folder=tmp_path) for name in ANSWERS}
    context = Context("scores", tmp_path / "stage", tmp_path, 1, inputs, Control(send=lambda event: None))
    refs = {"base": "$base", "policy": "$policy", "prompts": "$prompts", "reward": "$reward", "held_out": "$judge"}
    return context, Evaluate.model_validate({**refs, "samples": 2, "batch_prompts": 3, "bootstrap": 200}), scorers


def test_the_reward_may_be_shown_no_system_turn(scored):
    context, settings, scorers = scored
    led = [replace(prompt, messages=(Message("system", "Be brief."), *prompt.messages)) for prompt in PROMPTS]
    write_records(context.inputs["$prompts"].folder / RECORDS_FILE, "prompts", led)
    evaluate_work.run(settings.model_copy(update={"reward_system": "drop"}), context)
    assert scorers["$reward"].roles == {"user"} and scorers["$judge"].roles == {"system", "user"}


def test_dropping_the_system_turn_of_no_reward_model_is_refused():
    with pytest.raises(ValueError, match="reward_system applies to `reward`, which is not set"):
        Evaluate(base="$base", policy="$policy", prompts="$prompts", reward_system="drop")


def by_prompt(values: list[float]) -> np.ndarray:
    return np.array(values).reshape(4, 2).mean(1)


def test_every_row_is_the_mean_over_prompts_and_its_paired_difference(scored):
    context, settings, scorers = scored
    evaluate_work.run(settings, context)
    context.finish()
    rows = {row["metric"]: row for row in read_json(context.folder / "summary.json")["table"]}
    texts = [[text.removesuffix(END) for text in ANSWERS[side]] for side in ("$base", "$policy")]
    lengths = [[float(words(text)) for text in side] for side in texts]
    closed = [[float(END in text) for text in ANSWERS[side]] for side in ("$base", "$policy")]
    for metric, (base, policy) in (("ended properly", closed), ("reward", lengths), ("length (tokens)", lengths)):
        row = rows[metric]
        assert row["base"]["mean"] == pytest.approx(by_prompt(base).mean())
        assert row["policy"]["mean"] == pytest.approx(by_prompt(policy).mean())
        assert row["difference"]["mean"] == pytest.approx((by_prompt(policy) - by_prompt(base)).mean())
        assert row["difference"]["n"] == 4
    assert rows["ended properly"]["difference"]["mean"] == 0.75
    assert rows["held-out reward"]["difference"]["mean"] == 0  # it counts words, and both models have equally many
    assert rows["held-out reward"]["base"]["mean"] == -np.mean([min(pair) for pair in zip(*lengths, strict=True)])
    assert rows["held-out reward: length read"]["difference"]["mean"] == 0
    assert not any(END in text for scorer in scorers.values() for text in scorer.asked)
    assert scorers["$reward"].asked == texts[0] + texts[1]
    assert {"distinct-1", "distinct-2", "distinct-3", "self-BLEU", "embedding dispersion"} <= rows.keys()


def alarms(context: Context) -> list[str]:
    return [row["name"] for row in read_lines(context.folder / "alarms.jsonl")]


def test_answers_that_take_one_form_raise_an_alarm(scored, monkeypatch):
    context, settings, _ = scored
    one_form = [f"what a user can do about {word}{END}" for word in "abcdefgh"]
    monkeypatch.setitem(ANSWERS, "$policy", one_form)
    varied = ["in spring we plant beans outside", "a violin has four strings", "no", "rain falls on hills at night"]
    monkeypatch.setitem(ANSWERS, "$base", [text for text in varied for _ in range(2)])
    evaluate_work.run(settings, context)
    assert alarms(context) == ["answers_alike"]


def test_answers_as_varied_as_before_raise_no_alarm(scored):
    context, settings, _ = scored
    evaluate_work.run(settings, context)
    assert alarms(context) == []


def test_the_answers_that_are_shown_have_the_scores_of_the_judge(scored):
    context, settings, _ = scored
    evaluate_work.run(settings, context)
    first = context.summary["answers"][0]
    assert (first["base"], first["policy"]) == ("a b c d e f", "a b")
    assert (first["base_score"], first["policy_score"]) == (-2.0, -2.0)
    assert [row["question"] for row in context.summary["answers"]] == [prompt.text for prompt in PROMPTS]
    note = context.summary["answers_note"]
    assert note.startswith("scores are the held-out reward of the text without terminator, both answers cut")
    assert note.endswith("the answers are shown uncut")


def test_what_an_uncut_reward_read_is_what_is_shown(scored):
    context, settings, _ = scored
    evaluate_work.run(settings.model_copy(update={"held_out": None}), context)
    assert context.summary["answers_note"] == "scores are the reward of the text without terminator"


def test_answers_that_cannot_be_scored_leave_their_prompts_out_and_too_many_end_it(scored):
    context, settings, scorers = scored
    score = scorers["$reward"].score
    scorers["$reward"].score = lambda items: [
        GraderError("too long") if text == "f g" else found
        for (_, text), found in zip(items, score(items), strict=True)
    ]
    evaluate_work.run(settings, context)
    rows = {row["metric"]: row for row in context.summary["table"]}
    kept = [by_prompt([float(words(text)) for text in ANSWERS[side]])[[0, 2, 3]] for side in ("$base", "$policy")]
    assert rows["reward"]["difference"]["n"] == 3 and rows["held-out reward"]["difference"]["n"] == 4
    assert rows["reward"]["difference"]["mean"] == pytest.approx((kept[1] - kept[0]).mean())
    (alarm,) = read_lines(context.folder / "alarms.jsonl")
    assert alarm["message"].startswith(
        "1 of 16 requests to the reward failed, so their prompts are left out of its rows"
    )
    scorers["$reward"].score = lambda items: [1.0, GraderError("too long"), GraderError("why"), *[1.0] * 5]
    with pytest.raises(StageError, match=r"4 of 16 requests to the reward failed, but at most 1 .*prompt p0: too long"):
        evaluate_work.run(settings, context)


def test_a_prompt_whose_answer_failed_counts_for_neither_model(scored, monkeypatch):
    context, settings, _ = scored

    class Broken(Generator):
        def generate(self, prompts, params):
            found = super().generate(prompts, params)
            failed = [Completion(text="", stop="error")] * 2
            lost = self.answers is ANSWERS["$policy"]
            return [failed if lost and p.id == "p2" else group for p, group in zip(prompts, found, strict=True)]

    monkeypatch.setattr(evaluate_work, "generator", Broken)
    evaluate_work.run(settings, context)
    assert context.drop_counts() == {"failed": 1} and context.counts["out"] == 3
    rows = {row["metric"]: row for row in context.summary["table"]}
    lengths = [by_prompt([float(words(text)) for text in ANSWERS[side]])[[0, 1, 3]] for side in ("$base", "$policy")]
    for metric in ("reward", "length (tokens)"):
        assert rows[metric]["base"]["mean"] == pytest.approx(lengths[0].mean())
        assert rows[metric]["policy"]["mean"] == pytest.approx(lengths[1].mean())
    assert [row["question"] for row in context.summary["answers"]] == ["Question 0?", "Question 1?", "Question 3?"]
