"""Encoders as reward models: prompt and answer as a pair, read as the library reads them."""

from typing import Any

import pytest
from tiny_encoders import write_encoder
from tokenizers.pre_tokenizers import ByteLevel
from transformers import AutoModelForSequenceClassification, AutoTokenizer, BertConfig, RobertaConfig

from togi.core.errors import GraderError, InputError
from togi.core.records import Message
from togi.model.encoder_scorer import EncoderScorer, check_encoder, load_scorer_of
from togi.model.reward_model import load_reward_model

TALK = (Message("user", "Why is the sky blue?"),)


def test_a_pair_is_scored_as_the_library_scores_it_in_every_batch(tmp_path):
    source = write_encoder(tmp_path / "rm")
    judge = load_scorer_of(source, tmp_path)
    assert isinstance(judge, EncoderScorer) and check_encoder(source, tmp_path)
    items = [(TALK, text) for text in ("So.", "Because of the light.", "No", "I will not say it here, not now.")]
    found = judge.score(items)
    net: Any = AutoModelForSequenceClassification.from_pretrained(tmp_path / "rm").eval()
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "rm")
    for (talk, text), score in zip(items, found, strict=True):
        given = tokenizer(talk[0].content, text, return_tensors="pt")
        assert score == pytest.approx(net(**given).logits[0, 0].item(), abs=1e-5)
    assert len(set(found)) == 4
    judge.tokens = 60  # one or two pairs per batch
    assert judge.score(items[::-1])[::-1] == pytest.approx(found, abs=1e-5)


def test_a_pair_that_does_not_fit_is_a_failure_of_its_own(tmp_path):
    judge = load_scorer_of(write_encoder(tmp_path / "rm"), tmp_path)
    good, bad = judge.score([(TALK, "So."), (TALK, "x" * 80)])
    assert isinstance(good, float) and isinstance(bad, GraderError)
    assert "it reads at most 64" in str(bad)


def test_a_very_long_text_is_not_read_to_its_end(tmp_path, monkeypatch):
    judge = load_scorer_of(write_encoder(tmp_path / "rm"), tmp_path)
    assert isinstance(judge, EncoderScorer)
    judge.tokenizer.backend_tokenizer.pre_tokenizer = ByteLevel(add_prefix_space=False)
    whole, read = judge.tokenizer, []

    class Watched:
        backend_tokenizer, truncation_side, pad = whole.backend_tokenizer, whole.truncation_side, whole.pad

        def __call__(self, *texts: Any, **more: Any) -> Any:
            read.append(sum(map(len, texts)))
            return whole(*texts, **more)

    monkeypatch.setattr(judge, "tokenizer", Watched())
    long = (TALK, "very " * 100_000)
    assert judge.lengths([long, (TALK, "So.")]) == [65, len(whole(TALK[0].content, "So.")["input_ids"])]
    good, bad = judge.score([(TALK, "So."), long])
    assert isinstance(good, float) and "it reads at most 64 tokens" in str(bad)
    assert max(read) < 10_000


@pytest.mark.parametrize("kind", [BertConfig, RobertaConfig])
def test_the_longest_pair_that_fits_is_read(tmp_path, kind):
    judge = load_scorer_of(write_encoder(tmp_path / "rm", kind), tmp_path)
    assert isinstance(judge, EncoderScorer)
    pad = judge.tokenizer.pad_token_id
    assert judge.limit == (64 if kind is BertConfig else 64 - pad - 1)
    ask = (Message("user", ""),)
    texts = ["x" * count for count in range(40, 70)]
    scores = judge.score([(ask, text) for text in texts])
    lengths = [len(judge.tokenizer("", text)["input_ids"]) for text in texts]
    assert [isinstance(score, float) for score in scores] == [length <= judge.limit for length in lengths]
    assert {True, False} == {length <= judge.limit for length in lengths}


def test_a_head_of_several_numbers_is_refused_and_a_decoder_is_no_pair_reader(tmp_path):
    source = write_encoder(tmp_path / "three", num_labels=3)
    for read in (load_scorer_of, check_encoder):
        with pytest.raises(InputError, match="its head gives 3 numbers; a scorer gives one"):
            read(source, tmp_path)
    with pytest.raises(InputError, match="bert models are not supported"):  # where a decoder is needed
        load_reward_model(write_encoder(tmp_path / "one"), tmp_path)
