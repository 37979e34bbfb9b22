"""Adapters in every setting: rows of new tokens, tied and untied embeddings, windows, experts."""

from dataclasses import replace

import pytest
import torch
from peft.tuners.lora import LoraLayer
from tiny import TrueFloat64, tiny_model, tiny_tokenizer
from tiny_forests import batches, flat
from tiny_models import at, loaded, logits, shaken, trained_a_little

from togi.core.errors import InputError
from togi.model.adapter import LoraSettings, token_ids, without_adapter
from togi.model.forest import plant
from togi.model.load import load
from togi.model.lora import add_lora
from togi.model.policy import Policy, plain_logprobs
from togi.model.save import save_model

ROWS = tuple(sorted(flat(batches()["many"])[0].ids[:3]))  # ids that are read, so that their rows get a gradient


SURROUNDINGS = [
    ("llama", False, ("all-linear",)),
    ("llama", True, ("all-linear",)),
    ("gemma3", True, ("q_proj", "down_proj")),  # windows, soft cap, scaled embeddings
    ("mistral", False, ("all-linear",)),
    ("mixtral", False, ("q_proj", "o_proj")),
    ("qwen3_moe", True, ("q_proj", "o_proj")),
]


@pytest.mark.parametrize(("kind", "tied", "targets"), SURROUNDINGS)
def test_merged_equals_unmerged_and_a_forest_equals_the_plain_computation(kind, tied, targets):
    groups = batches()["many"]
    with TrueFloat64():
        net = tiny_model(kind, tie_word_embeddings=tied)
        start = plain_logprobs(net, flat(groups)).detach()
        adapted = add_lora(net, LoraSettings(rank=2, targets=targets, token_rows=ROWS), seed=1)
        unchanged = Policy(adapted, check=False)(plant(groups)).logp_N.detach()
        assert (unchanged - start).abs().max() < 1e-10
        trained_a_little(adapted)
        plain = plain_logprobs(adapted, flat(groups)).detach()
        forest = Policy(adapted, check=False)(plant(groups)).logp_N.detach()
        with without_adapter(adapted):
            off = plain_logprobs(adapted, flat(groups)).detach()
        merged = plain_logprobs(adapted.merge_and_unload(), flat(groups)).detach()
    assert (plain - start).abs().max() > 1e-3
    assert (forest - plain).abs().max() < 1e-10
    assert (off - start).abs().max() < 1e-10
    assert (merged - plain).abs().max() < 1e-10


@pytest.mark.parametrize("tied", [False, True])
def test_only_the_rows_of_new_tokens_are_trained(tied, tmp_path):
    model = loaded(tie_word_embeddings=tied)
    embeddings = model.net.get_input_embeddings().weight.detach().clone()
    head = model.net.get_output_embeddings().weight.detach().clone()
    net = trained_a_little(add_lora(model.net, LoraSettings(rank=2, token_rows=ROWS), seed=0))
    rows = [param for name, param in net.named_parameters() if "trainable_tokens" in name]
    assert [tuple(param.shape) for param in rows] == [(3, 32)] * (1 if tied else 2)
    before = logits(net)
    save_model(replace(model, net=net), tmp_path / "m")
    again = load(at(tmp_path / "m"), tmp_path)
    torch.testing.assert_close(logits(again.net), before, rtol=0, atol=1e-4)
    assert (again.net.get_input_embeddings().weight is again.net.get_output_embeddings().weight) == tied
    for old, new in ((embeddings, again.net.get_input_embeddings()), (head, again.net.get_output_embeddings())):
        changed = (old != new.weight.detach()).any(-1).nonzero()[:, 0].tolist()
        assert changed == list(ROWS)


def test_a_second_adapter_starts_from_the_first_one_with_its_rows():
    net = trained_a_little(
        add_lora(loaded(tie_word_embeddings=True).net, LoraSettings(rank=2, token_rows=ROWS), seed=0)
    )
    after_first = logits(net)
    second = trained_a_little(add_lora(net, LoraSettings(rank=2, token_rows=ROWS[:2]), seed=1))
    with without_adapter(second):
        torch.testing.assert_close(logits(second), after_first, rtol=0, atol=1e-4)
    assert (logits(second) - after_first).abs().max() > 1e-3


def test_rank_stabilised_is_scaled_by_the_root_of_the_rank():
    scales = []
    for rslora in (False, True):
        net = shaken(add_lora(tiny_model("llama"), LoraSettings(rank=4, alpha=6.0, rslora=rslora), seed=1))
        scales.append(next(m.scaling["default"] for m in net.modules() if isinstance(m, LoraLayer)))
    assert scales == [6.0 / 4, 6.0 / 2]


def test_tokens_are_named_by_their_text():
    tokenizer = tiny_tokenizer()
    assert token_ids(tokenizer, ["<eos>", "a"]) == (2, tokenizer.convert_tokens_to_ids("a"))
    with pytest.raises(InputError, match=r"'ab' is 2 tokens.*tokens: \{add: \[\.\.\.\]\}"):
        token_ids(tokenizer, ["ab"])


def test_what_a_missing_token_row_says_to_do_can_be_done(tmp_path):
    model = loaded()
    model.tokenizer.add_tokens(["ab"])
    model.net.resize_token_embeddings(len(model.tokenizer))
    model.net.save_pretrained(tmp_path / "m")
    model.tokenizer.save_pretrained(tmp_path / "m")
    again = load(at(tmp_path / "m", template="chatml-nobos"), tmp_path)
    (row,) = token_ids(again.tokenizer, ["ab"])
    assert row < again.net.get_input_embeddings().num_embeddings
    add_lora(again.net, LoraSettings(rank=2, token_rows=(row,)), seed=0)


def test_an_adapter_and_rows_on_one_head_are_refused():
    with pytest.raises(InputError, match="cannot have both an adapter and token_rows"):
        add_lora(tiny_model("llama"), LoraSettings(targets=("lm_head",), token_rows=(3,)), seed=0)
