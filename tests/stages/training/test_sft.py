"""How `train.sft` treats chats: what carries loss, what is dropped or cut and counted, blocks, shared prefixes."""

import copy
from dataclasses import replace

import pytest
import torch
from chat_forms import FORMS
from tiny import TrueFloat64
from tiny import tiny_model as library_model
from tiny_texts import bare_context, chat, chats

from togi.core.errors import InputError
from togi.core.records import Chat, Message
from togi.core.settings import ChatsRef, ModelRef
from togi.model.adapter import LoraSettings
from togi.model.forest import Sequence, move, plant
from togi.model.load import LoadedModel, load
from togi.model.lora import add_lora
from togi.model.policy import Policy, plain_logprobs
from togi.objectives.base import Batch, Output
from togi.objectives.sft import SFT
from togi.stages.training.examples_work import Data, Example
from togi.stages.training.fit_work import micro_batches
from togi.stages.training.sft import TrainSft
from togi.stages.training.sft_work import ChatToExample, SftTask, blocks, grouped, read_chats, rewritten
from togi.text.render import render_chat, render_prompt
from togi.text.template import own_template
from togi.text.turns import Unrendered

LONG = "word " * 40


@pytest.fixture
def border(tmp_path):
    """Returns a function that makes a converter of chats from settings."""

    def make(template: str = "chatml", **settings) -> ChatToExample:
        context = bare_context(tmp_path, template)
        model = load(context.model(ModelRef("$base")), context.cache)
        return ChatToExample(TrainSft(init=ModelRef("$base"), chats=ChatsRef("$chats"), **settings), context, model)

    return make


def scored_text(border: ChatToExample, found: Example | str) -> str:
    assert isinstance(found, Example), found
    (sequence,) = found.group
    ids = [i for i, scored in zip(sequence.ids, sequence.scored, strict=True) if scored]
    return border.model.tokenizer.decode(ids)


# --- what carries loss ------------------------------------------------------------------------------------------------


def test_every_answer_and_its_terminator_carry_loss(border):
    made = border()
    found = made(chat(("user", "Hi"), ("assistant", "Yes."), ("user", "Why?"), ("assistant", "So.")))
    assert scored_text(made, found) == "Yes.<|im_end|>So.<|im_end|>"


def test_a_message_kept_out_of_the_loss_is_context_alone(border):
    made = border()
    found = made(chat(("user", "Hi"), ("assistant", "No.", False), ("user", "Why?"), ("assistant", "So.")))
    assert scored_text(made, found) == "So.<|im_end|>"
    assert "No." in made.model.tokenizer.decode(found.group[0].ids)


def test_the_header_carries_loss_where_it_is_asked_for_and_changes_no_id(border):
    plain, headed = border(), border(score_header=True)
    said = chat(("user", "Hi"), ("assistant", "No.", False), ("user", "Why?"), ("assistant", "So."))
    assert scored_text(headed, headed(said)) == "<|im_start|>assistant\nSo.<|im_end|>"
    assert headed(said).group[0].ids == plain(said).group[0].ids


def test_any_role_is_context_where_the_template_has_free_roles(border):
    made = border("llama3-text")
    found = made(chat(("documents", "[1]"), ("user", "Hi"), ("assistant", "Ids."), ("assistant", "Yes.")))
    assert scored_text(made, found) == "Ids.<|eot_id|>Yes.<|eot_id|>"
    assert "documents" in made.model.tokenizer.decode(found.group[0].ids)


def test_a_role_that_the_template_does_not_know_names_the_chat(border):
    with pytest.raises(InputError, match=r"chat c0.*no role 'documents'.*free roles"):
        border()(chat(("documents", "[1]"), ("user", "Hi"), ("assistant", "Yes.")))


@pytest.mark.parametrize(
    ("when", "first", "expected"),
    [("absent", ("user", "Hi"), 1), ("absent", ("system", "Be rude."), 0), ("always", ("system", "Be rude."), 1)],
)
def test_a_system_prompt_is_added(border, when, first, expected):
    made = border(system="Be kind.", system_when=when)
    found = made(chat(first, ("user", "Who?"), ("assistant", "Me.")))
    assert made.model.tokenizer.decode(found.group[0].ids).count("Be kind.") == expected


def test_the_terminator_is_scored_where_the_pad_token_is_the_terminator(border):
    made = border("sarashina")
    made.model.tokenizer.pad_token = made.model.tokenizer.eos_token
    found = made(chat(("user", "Hi"), ("assistant", "Yes.")))
    assert found.group[0].ids[-1] == made.model.tokenizer.pad_token_id and found.group[0].scored[-1]


def test_ids_before_an_answer_are_those_that_the_model_is_served(border):
    made = border(score_header=True)
    said = chat(("user", "Hi  "), ("assistant", " Yes."), ("user", "\nWhy?"), ("assistant", "So."))
    prompt = render_prompt(made.model.template, made.model.tokenizer, said.messages[:3])
    assert list(made(said).group[0].ids[: len(prompt)]) == prompt


# --- what is dropped, cut, counted ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("turns", "reason"),
    [
        ([("user", "Hi"), ("assistant", "  ")], "empty_answer"),
        ([("user", "Hi"), ("assistant", "Yes.", False)], "no_answer_to_learn"),
        ([("user", "Hi")], "no_answer_to_learn"),
        ([("user", LONG), ("assistant", "Yes.")], "too_long"),
    ],
)
def test_what_teaches_nothing_is_dropped_under_a_reason(border, turns, reason):
    assert border(max_length=60)(chat(*turns)) == reason


def test_a_second_bos_is_dropped(border):
    made = border("llm-jp")
    assert made.bos == (made.model.tokenizer.bos_token_id,)
    assert isinstance(made(chat(("user", "Hi"), ("assistant", "Yes."))), Example)
    made.model = LoadedModel(
        net=made.model.net,
        tokenizer=made.model.tokenizer,
        template=made.model.template.from_json({**made.model.template.to_json(), "bos": "<s><s>"}),
        name="twice",
    )
    assert made(chat(("user", "Hi"), ("assistant", "Yes."))) == "two_bos"


def test_a_long_chat_can_be_an_error(border):
    with pytest.raises(InputError, match=r"record c0 has .* tokens, max_length is 60"):
        border(max_length=60, overflow="error")(chat(("user", LONG), ("assistant", "Yes.")))


def test_truncation_keeps_a_supervised_token_and_counts_what_it_cuts(border):
    made = border(max_length=60, overflow="truncate")
    found = made(chat(("user", "Hi"), ("assistant", LONG)))
    assert len(found.group[0].ids) == 60 and found.group[0].scored[-1]
    assert "<|im_end|>" not in scored_text(made, found)
    assert made(chat(("user", LONG), ("assistant", "Yes."))) == "no_answer_after_truncation"
    assert {key: value for key, value in made.counts.items() if value} == {"truncated": 1, "terminators_cut": 1}


def test_truncation_to_an_answer_keeps_only_whole_ones(border):
    made = border(max_length=60, overflow="truncate_to_answer")
    found = made(chat(("user", "Hi"), ("assistant", "Yes."), ("user", "Why?"), ("assistant", LONG)))
    assert scored_text(made, found) == "Yes.<|im_end|>"
    assert {key: value for key, value in made.counts.items() if value} == {"truncated": 1, "answers_cut_away": 1}
    assert made(chat(("user", "Hi"), ("assistant", LONG))) == "no_answer_after_truncation"


FIXED = "以下は、タスクを説明する指示です。要求を適切に満たす応答を書きなさい。"


def with_systems() -> list[Chat]:
    """Two chats with system turns of their own, one with the sentence of `llm-jp`, one with an empty one, one with
    none."""
    systems = ("Be a pirate.", "Be brief.", FIXED, " ")
    talk = (("user", "Hi"), ("assistant", "Yes."))
    said = [chat(("system", text), *talk, name=f"s{i}") for i, text in enumerate(systems)]
    return [*said, chat(*talk, name="none")]


@pytest.mark.parametrize(
    ("template", "settings", "count"),
    [
        ("llm-jp", {}, 2),
        ("llm-jp", {"system": FIXED}, 2),
        ("llm-jp", {"system": "Be kind.", "system_when": "always"}, 5),
        ("llm-jp-system", {"system": FIXED}, 0),
        ("chatml", {}, 0),
    ],
)
def test_chats_whose_system_turn_the_template_replaces_are_counted_and_told(tmp_path, template, settings, count):
    context = bare_context(tmp_path, template, chats=with_systems())
    model = load(context.model(ModelRef("$base")), context.cache)
    data = read_chats(TrainSft(init=ModelRef("$base"), chats=ChatsRef("$chats"), **settings), context, model)
    assert context.counts.get("system_replaced", 0) == count and context.counts["chats"] == 5
    told = dict(data.warnings).get("system_replaced", "")
    assert bool(told) == bool(count)
    if count:
        assert f"the system turn of {count} records" in told and "choose template: llm-jp-system" in told


def test_the_variant_of_llm_jp_trains_on_the_chats_own_system_turn(border):
    made = border("llm-jp-system", system=FIXED)
    own, other = (made(each) for each in (with_systems()[0], with_systems()[-1]))
    assert made.model.tokenizer.decode(own.group[0].ids).startswith("<s>Be a pirate.\n\n### 指示:\nHi")
    assert made.model.tokenizer.decode(other.group[0].ids).startswith(f"<s>{FIXED}\n\n### 指示:\nHi")
    assert scored_text(made, own) == "Yes.</s>"


# --- layout -----------------------------------------------------------------------------------------------------------


def examples(border: ChatToExample) -> list[Example]:
    return [made for each in chats() if isinstance(made := border(each), Example)]


def test_blocks_are_full_lose_nothing_but_their_end_and_score_what_carried_loss(border):
    found = examples(border())
    ids = [i for e in found for i in e.group[0].ids]
    scored = [s for e in found for s in e.group[0].scored]
    made = list(blocks(found, 50))
    assert all(len(block.group[0].ids) == 51 for block in made)
    assert [i for block in made for i in block.group[0].ids] == ids[: 51 * len(made)]
    assert len(ids) - 51 * len(made) < 51
    assert made[1].group[0].scored[1:] == tuple(scored[52:102])


def test_blocks_without_a_token_that_carries_loss_are_left_out(border):
    made = border()
    silent = Example(id="s", prompt="s", group=(Sequence((5,) * 204, (False,) * 204),))
    assert len(list(blocks([silent], 50))) == 0
    assert len(list(blocks([silent, *examples(made)], 50))) == len(list(blocks(examples(made), 50)))


def test_equal_beginnings_are_computed_once_and_change_no_result():
    net = library_model("llama")
    start = tuple(range(10, 30))
    rest = [tuple(range(40 + 7 * i, 40 + 7 * i + 3 + i)) for i in range(5)]
    made = [Sequence(start + r, (False,) * 20 + (True,) * len(r)) for r in rest]
    made.insert(2, Sequence((3, 4, 5), (False, True, True)))
    groups = grouped(made, 8)
    assert [len(group) for group in groups] == [5, 1]
    forest = plant(groups)
    assert len(forest.ids_T) == sum(len(s.ids) for s in made) - 4 * 20
    found = Policy(net)(move(forest, "cpu")).logp_N
    expected = plain_logprobs(net, [s for group in groups for s in group])
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
    assert len(grouped(made, 21)) == 6


def test_a_shared_beginning_counts_once_in_the_tokens_of_a_micro_batch(border):
    made = border()
    found = [made(chat(("user", LONG), ("assistant", f"Yes {i}."), name=f"c{i}")) for i in range(3)]
    task = SftTask(made.settings, Data(found), made.model)
    (parts,) = micro_batches(task, found, 4096)
    (whole,) = {len(e.group[0].ids) for e in found}
    assert 3 * whole > parts[1].num_tokens == len(parts[1].inputs.ids_T) > whole


def gradients(net, groups, normalise) -> tuple[float, dict[str, torch.Tensor]]:
    """Returns loss and gradients, with one micro-batch for each group of sequences."""
    batches = [
        (forest := plant([[s] for s in group]), Batch(num_sequences=len(group), sequence_N=forest.sequence_N))
        for group in groups
    ]
    objective, totals = SFT(normalise=normalise), {}
    for _, batch in batches:
        for name, count in objective.counts(batch).items():
            totals[name] = totals.get(name, 0) + count
    net.zero_grad()
    with TrueFloat64():
        loss = sum(objective.loss(Output(logp_N=Policy(net)(f).logp_N), b, totals)[0] for f, b in batches)
        loss.backward()
    return float(loss.detach()), {name: p.grad.clone() for name, p in net.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("normalise", ["tokens", "sequences"])
@pytest.mark.parametrize("kind", ["llama", "gemma3", "mistral"])
def test_packed_equals_unpacked(kind, normalise):
    net = library_model(kind)
    generator = torch.Generator().manual_seed(1)
    made = []
    for length in (9, 30, 4, 17, 23):
        ids = tuple(torch.randint(3, 96, (length,), generator=generator).tolist())
        made.append(Sequence(ids, tuple(i > 0 and i % 3 != 0 for i in range(length))))
    packed, alone = gradients(net, [made], normalise), gradients(net, [[s] for s in made], normalise)
    assert packed[0] == pytest.approx(alone[0], abs=1e-10)
    for name, grad in alone[1].items():
        torch.testing.assert_close(packed[1][name], grad, rtol=0, atol=1e-10)


def test_a_merged_adapter_scores_chats_as_the_adapted_model_does():
    net = add_lora(library_model("llama"), LoraSettings(rank=4, alpha=8.0), seed=3)
    made = [Sequence(tuple(range(5, 25)), (False,) * 5 + (True,) * 15)]
    optimizer = torch.optim.SGD([p for p in net.parameters() if p.requires_grad], lr=1.0)
    for _ in range(3):
        gradients(net, [made], "tokens")
        optimizer.step()
    adapted = Policy(net)(plant([made])).logp_N.detach()
    with net.disable_adapter():
        before = Policy(net)(plant([made])).logp_N.detach()
    merged = net.merge_and_unload()
    torch.testing.assert_close(plain_logprobs(merged, made).detach(), adapted, rtol=0, atol=1e-10)
    assert (before - adapted).abs().max() > 1e-3


def test_the_mask_of_a_template_is_that_of_the_ids_it_is_trained_on(border):
    """The stage uses the ids and the mask of `render_chat` unchanged."""
    made = border()
    for each in chats():
        rendered = render_chat(made.model.template, made.model.tokenizer, each.messages)
        assert made(each).group[0] == Sequence(rendered.ids, rendered.mask)


# --- templates that rewrite earlier answers ---------------------------------------------------------------------------

TALK = (("user", "Hi"), ("assistant", "Yes."), ("user", "Why?"), ("assistant", "So."))


def thinking_border(border, **settings) -> ChatToExample:
    """Returns a converter whose template removes thoughts from the history."""
    made = border(**settings)
    tokenizer = copy.deepcopy(made.model.tokenizer)
    tokenizer.chat_template = FORMS["thoughts leave the history"].source
    made.model = replace(made.model, tokenizer=tokenizer, template=own_template(tokenizer))
    return made


def test_answers_that_the_template_rewrites_are_learnt_in_sequences_that_end_with_them(border):
    made = thinking_border(border)
    found = made(chat(*TALK))
    assert isinstance(found, Example)
    told = [
        "".join(made.model.tokenizer.decode(i) for i, m in zip(s.ids, s.scored, strict=True) if m) for s in found.group
    ]
    thought = "<think>\n\n</think>\n\n"
    assert told == [f"{thought}So.<|im_end|>", f"{thought}Yes.<|im_end|>"]
    assert made.counts["rewritten_chats"] == made.counts["sequences_split_off"] == 1
    ((name, message),) = rewritten(made.settings, made)
    assert name == "rewritten_answers" and "in 1 chats 1 sequences were split off" in message
    task = SftTask(made.settings, Data([found]), made.model)
    assert task.plant([found]).target_N.numel() == sum(sum(s.scored) for s in found.group)


def test_a_chat_that_is_split_weighs_as_much_as_another_with_normalise_sequences(border):
    """SPEC: first the mean within each chat, then over chats; reference: the library's own log-probabilities."""
    made = thinking_border(border, normalise="sequences")
    other = (("user", "Hi"), ("assistant", "No, not at all."))
    found = [made(chat(*talk, name=name)) for name, talk in (("a", TALK), ("b", other), ("c", TALK))]
    assert [len(example.group) for example in found] == [2, 1, 2]
    task = SftTask(made.settings, Data(found), made.model)
    objective, totals, losses = task.objective(0), {"tokens": 0.0, "sequences": 0.0}, []
    parts = [part for _, part in micro_batches(task, found, 250)]
    assert len(parts) == 2
    for part in parts:
        for name, count in objective.counts(part.batch).items():
            totals[name] += count
    for part in parts:
        losses.append(objective.loss(task.forward(task.module, part.inputs), part.batch, totals)[0].item())
    means = [plain_logprobs(made.model.net, example.group).mean().item() for example in found]
    assert totals["sequences"] == 3
    assert sum(losses) == pytest.approx(-sum(means) / 3, abs=1e-5)


def test_only_the_last_of_them_is_learnt_where_it_is_asked_for(border):
    made = thinking_border(border, rewritten_answers="last")
    assert scored_text(made, made(chat(*TALK))).endswith("So.<|im_end|>")
    assert made.counts["answers_unlearnt"] == 1
    assert "1 answers carry no loss" in rewritten(made.settings, made)[0][1]


def test_a_template_that_rewrites_nothing_is_told_nothing(border):
    made = border()
    made(chat(*TALK))
    assert not rewritten(made.settings, made) and not made.counts["rewritten_chats"]


def test_a_row_with_what_the_template_leaves_out_is_dropped_under_a_reason(border):
    call = Message("assistant", "", extra={"tool_calls": [{"function": {"name": "f", "arguments": {}}}]})
    asked = replace(chat(("user", "Hi")), messages=(Message("user", "Hi"), call))
    with pytest.raises(Unrendered, match="has no place for tool_calls"):
        border()(asked)
