"""Reward models: read at the last token, whatever surrounds it; saved so that the library loads the same model."""

from itertools import combinations

import pytest
import torch
from stored import load as load_vectors
from tiny import BYTES, CONFIGS, TrueFloat64, tiny_model, tiny_tokenizer
from transformers import AutoModelForSequenceClassification

from togi.core.errors import GraderError, InputError
from togi.core.records import Message
from togi.core.sources import ModelSource
from togi.model.adapter import LoraSettings
from togi.model.forest import Sequence, num_tokens, plant
from togi.model.load import LoadedModel, load
from togi.model.lora import add_lora
from togi.model.reward_model import (
    ModelScorer,
    RewardModel,
    add_scalar_head,
    batches_by_length,
    keep_layers,
    load_reward_model,
    read_head,
)
from togi.model.save import save_model
from togi.text.template import get_template

POOLING = load_vectors("rm_pooling.json")["cases"]


def loaded(kind: str = "llama", dtype=torch.float64, template: str = "chatml-nobos") -> LoadedModel:
    net = tiny_model(kind, dtype, vocab_size=BYTES)
    return LoadedModel(net=net, tokenizer=tiny_tokenizer(), template=get_template(template), name="tiny")


def scorer(kind: str = "llama", dtype=torch.float64, template: str = "chatml-nobos") -> LoadedModel:
    return add_scalar_head(loaded(kind, dtype, template), seed=4)


def unscored(*ids: int) -> Sequence:
    return Sequence(ids, (False,) * len(ids))


@pytest.mark.parametrize("case", POOLING)
def test_the_last_token_is_read_where_the_library_looks_for_a_pad_id(case):
    stored = POOLING[case]
    net = scorer().net
    net.config.pad_token_id = pad = stored.get("pad_id", 0)
    ids = stored["ids"]
    with torch.no_grad(), TrueFloat64():
        hidden = net.model(torch.tensor([ids])).last_hidden_state[0]
        library = net(torch.tensor([ids])).logits[0, 0]
        torch.testing.assert_close(library, net.score(hidden[stored["pooled_index"]])[0], rtol=0, atol=1e-10)
        ours = RewardModel(net)(plant([[unscored(*ids)]]))[0]
        torch.testing.assert_close(ours, net.score(hidden[-1])[0], rtol=0, atol=1e-10)
    assert (stored["pooled_index"] == len(ids) - 1) == (ids[-1] != pad)


def padded_score(case: dict, *, explicit: bool) -> float:
    """The library's score of a padded row, at positions that count the padding, or (`explicit`) the tokens alone."""
    net, ids = scorer().net, torch.tensor([case["ids"]])
    net.config.pad_token_id = case.get("pad_id", 0)
    mask = (ids != net.config.pad_token_id).long()
    where = {"position_ids": (mask.cumsum(1) - 1).clamp(min=0)} if explicit else {}
    with torch.no_grad(), TrueFloat64():
        return net(ids, attention_mask=mask, **where).logits[0, 0].item()


@pytest.mark.parametrize("name", ["score_default_positions", "score_explicit_positions"])
def test_padded_rows_have_equal_scores_where_the_stored_ones_are_equal(name):
    """The stored scores are of other weights, so they only tell which rows score the same."""
    stored = {case: row.get(name, row.get("score")) for case, row in POOLING.items()}
    scores = {
        case: padded_score(POOLING[case], explicit="explicit" in name)
        for case, score in stored.items()
        if score is not None
    }
    assert len(scores) == 7
    for one, other in combinations(scores, 2):
        near = abs(scores[one] - scores[other]) < 1e-7  # the library rotates positions in float32
        assert near == (stored[one] == stored[other]), (one, other)


@pytest.mark.parametrize("case", [case for case in POOLING if case != "all_pad"])
def test_togi_scores_a_row_without_its_padding_as_the_library_scores_it_with(case):
    stored = POOLING[case]
    kept = [token for token in stored["ids"] if token != stored.get("pad_id", 0)]
    with torch.no_grad(), TrueFloat64():
        ours = RewardModel(scorer().net)(plant([[unscored(*kept)]]))[0].item()
    assert ours == pytest.approx(padded_score(stored, explicit=True), abs=1e-7)


@pytest.mark.parametrize("kind", CONFIGS)
def test_scores_and_gradients_equal_one_sequence_at_a_time(kind):
    groups = [
        [unscored(5, 6, 7, 8, 9, 10, 11, 12), unscored(5, 6, 7, 1)],
        [unscored(9)],
        [unscored(3, 4), unscored(3, 4)],
    ]
    results = []
    with TrueFloat64():
        for apart in (False, True):
            net = scorer(kind).net
            if apart:
                score_S = torch.cat([net(torch.tensor([s.ids])).logits[0] for g in groups for s in g])
            else:
                score_S = RewardModel(net)(plant(groups))
            (score_S * torch.arange(1, 6)).sum().backward()
            results.append([score_S, *(p.grad for p in net.parameters() if p.grad is not None)])
    for ours, plain in zip(*results, strict=True):
        torch.testing.assert_close(ours, plain, rtol=0, atol=1e-10)


def items() -> list[tuple[tuple[Message, ...], str]]:
    ask, other = (Message("user", "Why?"),), (Message("system", "Be brief."), Message("user", "How?"))
    return [
        (ask, "Because."),
        (other, "So."),
        (ask, "It is so because it is so."),
        (ask, ""),
        (other, "Thus, and thus."),
    ]


def test_a_score_does_not_depend_on_batch_order_or_neighbours():
    judge = ModelScorer(scorer(), tokens=200)
    together = judge.score(items())
    alone = [judge.score([item])[0] for item in items()]
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-10)
    torch.testing.assert_close(judge.score(items()[::-1])[::-1], together, rtol=0, atol=1e-10)
    assert len(set(together)) == 5


def test_scores_are_not_rounded_to_the_type_of_products():
    """Scores between 1 and 2 are 1/128 apart in bfloat16: close answers would tie."""
    model = scorer(dtype=torch.float32)
    judge = RewardModel(model.net)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        hidden_SH = torch.randn(20, model.net.score.in_features, generator=torch.Generator().manual_seed(1))
        score_S = read_head(model.net.score, hidden_SH)
        assert judge(plant([[unscored(5, 6, 7)]])).dtype == torch.float32
    torch.testing.assert_close(score_S, model.net.score(hidden_SH)[:, 0], rtol=0, atol=1e-6)
    assert (score_S.to(torch.bfloat16).float() - score_S).abs().max() > 1e-4


def test_a_scorer_renders_with_its_own_template():
    one, two = (ModelScorer(scorer(template=name)).score(items()) for name in ("chatml-nobos", "sarashina"))
    assert all(a != b for a, b in zip(one, two, strict=True))


def test_one_long_answer_among_many_short_ones_costs_what_it_costs_apart():
    prompt = tuple(range(10, 26))
    answers = [unscored(*prompt, *([30 + i] * 32)) for i in range(63)] + [unscored(*prompt, *([99] * 1024))]

    def rows(sequences):
        batches = batches_by_length(sequences, ["q"] * len(sequences), 4096)
        return sum(num_tokens(g) for b in batches for g in b.groups)

    assert rows(answers) <= 1.15 * (rows(answers[:63]) + rows(answers[63:]))


def test_prompts_are_computed_once():
    prompt = tuple(range(100))
    batches = list(batches_by_length([unscored(*prompt, i) for i in range(8)], ["q"] * 8, 4096))
    assert sum(num_tokens(g) for b in batches for g in b.groups) == 108


@pytest.mark.parametrize("kind", ["llama", "gemma3"])
def test_a_saved_scorer_is_the_librarys_own(kind, tmp_path):
    model = scorer(kind, torch.float32)
    save_model(model, tmp_path / "rm")
    names = {p.name for p in (tmp_path / "rm").iterdir()}
    assert {"model.safetensors", "config.json", "tokenizer.json", "togi.json"} <= names
    theirs = AutoModelForSequenceClassification.from_pretrained(tmp_path / "rm").eval()
    again = load_reward_model(ModelSource(kind="path", name=str(tmp_path / "rm")), tmp_path)
    assert again.kind == "scorer" and again.template == model.template
    judge = ModelScorer(again)
    scores = judge.score(items())
    assert scores == ModelScorer(model).score(items())
    ids = torch.tensor([judge.sequence(*items()[0]).ids])
    torch.testing.assert_close(theirs(ids).logits[0, 0].item(), scores[0], rtol=1e-5, atol=1e-5)


def test_an_adapter_trains_the_head_and_is_merged_when_saved(tmp_path):
    model = scorer(dtype=torch.float32)
    net = add_lora(model.net, LoraSettings(rank=2, full=("score",)), seed=1)
    optimizer = torch.optim.SGD([p for p in net.parameters() if p.requires_grad], lr=0.1)
    RewardModel(net)(plant([[unscored(5, 6, 7)]])).sum().backward()
    optimizer.step()
    trained = LoadedModel(net=net, tokenizer=model.tokenizer, template=model.template, name="rm")
    before = ModelScorer(trained).score(items())
    save_model(trained, tmp_path / "rm")
    after = ModelScorer(load_reward_model(ModelSource(kind="path", name=str(tmp_path / "rm")), tmp_path)).score(items())
    torch.testing.assert_close(after, before, rtol=1e-4, atol=1e-4)


def test_a_causal_model_is_no_scorer_and_the_other_way_round(tmp_path):
    save_model(loaded(dtype=torch.float32), tmp_path / "causal")
    save_model(scorer(dtype=torch.float32), tmp_path / "scorer")
    with pytest.raises(InputError, match="which is not a scorer"):
        load_reward_model(ModelSource(kind="path", name=str(tmp_path / "causal")), tmp_path)
    with pytest.raises(InputError, match="which is a scorer"):
        load(ModelSource(kind="path", name=str(tmp_path / "scorer")), tmp_path)
    with pytest.raises(InputError, match="needs a scalar head"):
        ModelScorer(loaded())


def test_nothing_is_ever_cut_off():
    """A conversation that is too long gets no score; the others get theirs."""
    model = scorer()
    judge = ModelScorer(model, max_tokens=120)
    long = ((Message("user", "Why?"),), "Because. " * 20)
    found = judge.score([items()[0], long, items()[1]])
    assert isinstance(found[1], GraderError) and "it reads at most 120" in str(found[1])
    assert [found[0], found[2]] == ModelScorer(model).score(items()[:2])
    (alone,) = judge.score([long])
    assert isinstance(alone, GraderError)


@pytest.mark.parametrize("kind", [k for k in CONFIGS if k not in ("mixtral", "qwen3_moe")])  # the library's: no float64
def test_a_scorer_of_the_first_layers_reads_what_stands_after_them_and_loads_again(kind, tmp_path):
    initial = loaded(kind)
    ids = torch.tensor([[5, 6, 7, 8, 9]])
    with torch.no_grad(), TrueFloat64():
        between = initial.net.model(ids, output_hidden_states=True).hidden_states[1]
        wanted = initial.net.model.norm(between)[0, -1]
        keep_layers(initial, 1)
        model = add_scalar_head(initial, seed=4)
        score = RewardModel(model.net)(plant([[unscored(*ids[0].tolist())]]))
        torch.testing.assert_close(score[0], model.net.score(wanted)[0], rtol=0, atol=1e-10)
        save_model(model, tmp_path / "model")
        again = load_reward_model(ModelSource(kind="path", name=str(tmp_path / "model")), tmp_path, dtype=torch.float64)
        assert again.net.config.num_hidden_layers == len(again.net.model.layers) == 1
        torch.testing.assert_close(again.net(ids).logits[0], score, rtol=0, atol=1e-10)


def test_no_more_layers_can_be_kept_than_there_are():
    with pytest.raises(InputError, match="tiny: 99 layers are to be kept, but it has"):
        keep_layers(loaded(), 99)
