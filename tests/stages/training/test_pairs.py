"""Input of preference training: pairs become trees, and every drop and cut is counted."""

from dataclasses import replace

import pytest
from tiny_pairs import bare_context, pair, pairs

from togi.core.errors import InputError
from togi.core.records import Message
from togi.core.settings import ModelRef
from togi.stages.models import load_trainable
from togi.stages.training.pairs_work import PairToExample, read_pairs
from togi.stages.training.smpo import TrainSmpo
from togi.stages.training.smpo_work import terminator_marks
from togi.text.render import render_chat, render_prompt
from togi.text.turns import Unrendered

QUESTION = "Why is the sky blue?"


def border(folder, records=(), template="chatml", **settings) -> PairToExample:
    context = bare_context(folder, list(records) or pairs(), template)
    made = TrainSmpo.model_validate({"type": "train.smpo", "init": "$base", "pairs": "$pairs", **settings})
    model = load_trainable(context, ModelRef("$base"))
    return PairToExample(
        settings=made, context=context, model=model, header=made.score_header, second_bos=made.second_bos
    )


def prompt_ids(made: PairToExample, text: str = QUESTION) -> tuple[int, ...]:
    return tuple(render_prompt(made.model.template, made.model.tokenizer, [Message("user", text)]))


def scored_text(made: PairToExample, side) -> str:
    ids = [i for i, scored in zip(side.ids, side.scored, strict=True) if scored]
    return made.model.tokenizer.decode(ids)


def test_a_pair_is_one_prompt_with_two_answers_of_which_the_answers_are_scored(tmp_path):
    made = border(tmp_path)
    example = made(pair(QUESTION, "Light.", "No idea."))
    prompt = prompt_ids(made)
    for side, text in zip(example.group, ("Light.", "No idea."), strict=True):
        assert side.ids[: len(prompt)] == prompt and not any(side.scored[: len(prompt)])
        assert scored_text(made, side) == f"{text}<|im_end|>"


def test_a_pair_with_what_the_template_leaves_out_is_dropped_with_its_reason(tmp_path):
    made = border(tmp_path)
    call = Message("assistant", "", extra={"tool_calls": [{"function": {"name": "f", "arguments": {}}}]})
    with pytest.raises(Unrendered, match="has no place for tool_calls"):
        made(replace(pair(QUESTION, "Light.", "No."), chosen=(call,)))


def test_sides_of_several_messages_score_every_answer_and_no_question(tmp_path):
    made = border(tmp_path)
    chosen = [("assistant", "Light."), ("user", "Sure?"), ("assistant", "Yes.")]
    example = made(pair([("user", "Hi"), ("assistant", "Hello"), ("user", QUESTION)], chosen, "No."))
    assert scored_text(made, example.group[0]) == "Light.<|im_end|>Yes.<|im_end|>"
    assert scored_text(made, example.group[1]) == "No.<|im_end|>"


@pytest.mark.parametrize(
    ("chosen", "rejected", "reason"),
    [
        ("Light.", "Light. ", "equal_answers"),
        ("", "No.", "empty_answer"),
        ("Yes.", "  \n", "empty_answer"),
        ([("user", "Why?")], "No.", "empty_answer"),
        ([("assistant", "Yes.", False)], "No.", "nothing_scored"),
    ],
)
def test_what_teaches_nothing_is_dropped_with_its_reason_or_is_an_error(tmp_path, chosen, rejected, reason):
    assert border(tmp_path)(pair(QUESTION, chosen, rejected)) == reason
    with pytest.raises(InputError, match="pair p0 cannot be trained on"):
        border(tmp_path, on_bad_pair="error")(pair(QUESTION, chosen, rejected))


def test_drops_and_cuts_are_counted(tmp_path):
    records = [*pairs(), pair(QUESTION, "same", "same", "q0"), pair(QUESTION, "a" * 90, "b", "q1")]
    made = border(tmp_path, records, max_length=96, overflow="truncate", max_prompt_length=70)
    data = read_pairs(made.settings, made.context, made)
    assert [drop.reason for drop in made.context.drops] == ["equal_answers"]
    assert made.context.counts["cut_answers"] == 1 and "cut_prompts" not in made.context.counts
    assert data.warnings == [("cut_answers", "1 answers were cut to fit max_length 96")]
    assert len(data.training) == 9


def test_pairs_whose_system_turn_the_template_replaces_are_counted_and_told(tmp_path):
    records = [*pairs(), pair([("system", "Be brief."), ("user", QUESTION)], "Light.", "No.", "q0")]
    made = border(tmp_path, records, "llm-jp")
    data = read_pairs(made.settings, made.context, made)
    assert made.context.counts["system_replaced"] == 1
    ((name, told),) = data.warnings
    assert name == "system_replaced" and "the system turn of 1 records" in told


def test_long_pairs_follow_the_policy(tmp_path):
    long = pair("a" * 200, "Light.", "No idea.")
    assert border(tmp_path, max_length=64)(long) == "too_long"
    with pytest.raises(InputError, match="max_length is 64"):
        border(tmp_path, max_length=64, overflow="error")(long)


def test_a_long_prompt_keeps_its_end_and_both_answers_stay_whole(tmp_path):
    made = border(tmp_path, max_length=100, overflow="truncate", max_prompt_length=60)
    text = "".join(chr(97 + i % 26) for i in range(200))
    example = made(pair(text, "Light.", "No idea."))
    prompt = prompt_ids(made, text)
    for side, answer in zip(example.group, ("Light.", "No idea."), strict=True):
        assert side.ids[:60] == prompt[-60:] and scored_text(made, side) == f"{answer}<|im_end|>"
    assert made.counts == {"cut_prompts": 1, "cut_answers": 0}


def test_a_cut_prompt_keeps_its_bos(tmp_path):
    made = border(tmp_path, template="llm-jp", max_length=100, overflow="truncate", max_prompt_length=60)
    example = made(pair("a" * 200, "Light.", "No."))
    assert made.bos and example.group[0].ids[: len(made.bos)] == made.bos
    assert len(prompt_ids(made, "a" * 200)) > 60 and example.group[0].scored.index(True) == 60


def test_long_answers_are_cut_to_what_the_prompt_leaves(tmp_path):
    made = border(tmp_path, max_length=100, overflow="truncate", max_prompt_length=60)
    example = made(pair(QUESTION, "b" * 300, "No."))
    start = len(prompt_ids(made))
    assert [len(side.ids) - start for side in example.group] == [40, len(example.group[1].ids) - start]
    assert made.counts == {"cut_prompts": 0, "cut_answers": 1} and "<|im_end|>" not in scored_text(
        made, example.group[0]
    )


def test_answers_that_only_differ_behind_the_cut_are_equal(tmp_path):
    made = border(tmp_path, max_length=100, overflow="truncate", max_prompt_length=60)
    assert made(pair(QUESTION, "b" * 300, "b" * 301)) == "equal_answers"


def test_the_header_is_scored_where_it_is_asked_for(tmp_path):
    made = border(tmp_path, score_header=True)
    plain = border(tmp_path)
    found, expected = (one(pair(QUESTION, "Light.", "No.")) for one in (made, plain))
    assert [side.ids for side in found.group] == [side.ids for side in expected.group]
    assert scored_text(made, found.group[0]) == f"{made.model.template.generation}Light.<|im_end|>"


def test_a_second_bos_stands_before_the_header_and_is_scored(tmp_path):
    made = border(tmp_path, template="llm-jp", score_header=True, second_bos=True)
    turns = [Message("user", QUESTION), Message("assistant", "Light.")]
    once = render_chat(made.model.template, made.model.tokenizer, turns, header=True)
    side = made(pair(QUESTION, "Light.", "No.")).group[0]
    place = once.mask.index(True)
    assert side.ids == (*once.ids[:place], *made.bos, *once.ids[place:])
    assert side.scored.index(True) == place and sum(side.scored) == sum(once.mask) + 1
    assert side.ids.count(made.bos[0]) == 2


def test_a_second_bos_needs_a_first_one(tmp_path):
    with pytest.raises(InputError, match="begins with no BOS"):
        border(tmp_path, score_header=True, second_bos=True)


def test_a_length_beyond_the_models_context_is_refused(tmp_path):
    with pytest.raises(InputError, match="context is 256"):
        border(tmp_path, max_length=257)
    with pytest.raises(InputError, match="leaves none of the model's 256"):
        border(tmp_path, overflow="truncate", max_prompt_length=256)


def test_the_terminators_of_an_answer_are_found(tmp_path):
    made = border(tmp_path)
    side = made(pair(QUESTION, "Light.", "No.")).group[0]
    terminator = made.model.tokenizer("<|im_end|>", add_special_tokens=False)["input_ids"]
    marks = terminator_marks(side, tuple(terminator))
    assert sum(marks) == len(terminator) and all(marks[-len(terminator) :])
