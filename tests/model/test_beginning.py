"""The first ids of a long text are those of the whole text, though the rest is not read."""

import random
from typing import Any

import pytest
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast

from togi.model.beginning import READ, ends_words_at_spaces, first_ids

TOKENS = 12
READINGS: list[int] = []
"""The characters of each text that a tokenizer read."""
PIECES = ["▁", "a", "b", "ab", "▁a", "▁ab", "é", "\n", "．"]


def unigram() -> Tokenizer:
    made = Tokenizer(models.Unigram([("<unk>", -9.0), *((piece, -2.0 - i / 7) for i, piece in enumerate(PIECES))], 0))
    made.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Replace(Regex(" {2,}"), " ")])
    made.pre_tokenizer = pre_tokenizers.Metaspace()
    return made


def word_piece() -> Tokenizer:
    vocabulary = ["[UNK]", "a", "b", "ab", "##a", "##b", "##ab", "e", "."]
    made = Tokenizer(models.WordPiece({each: i for i, each in enumerate(vocabulary)}, unk_token="[UNK]"))
    made.normalizer, made.pre_tokenizer = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
    return made


def byte_level(**options: Any) -> Tokenizer:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {each: i for i, each in enumerate([*alphabet, "ab", "Ġa", "Ġab"])}
    made = Tokenizer(models.BPE(vocabulary, [("a", "b"), ("Ġ", "a"), ("Ġ", "ab")]))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, **options)
    return made


class Watched(PreTrainedTokenizerFast):
    """Notes the characters of the texts that it reads."""

    def __call__(self, text: str, **options: Any) -> Any:  # type: ignore[override]
        READINGS.append(len(text))
        return super().__call__(text, **options)


def whole(made: Tokenizer, ending: str) -> Watched:
    made.post_processor = TemplateProcessing(single=f"$A {ending}", special_tokens=[(ending, 1)])
    tokenizer = Watched(tokenizer_object=made)
    READINGS.clear()
    return tokenizer


@pytest.mark.parametrize(("made", "ending"), [(unigram, "▁"), (word_piece, "a"), (byte_level, "a")])
def test_the_first_ids_of_a_text_are_those_of_the_whole(made: Any, ending: str):
    tokenizer, dice = whole(made(), ending), random.Random(1)
    assert ends_words_at_spaces(tokenizer)
    for letters in ("ab  é\n.", "ab   ", "a\u0301 b\t. ", "    \n", "ab"):
        for size in (3, 400, 900, 2500):
            text = "".join(dice.choice(letters) for _ in range(size))
            expected = tokenizer.backend_tokenizer.encode(text).ids
            if len(expected) > TOKENS:
                expected = [*expected[: TOKENS - 1], expected[-1]]
            assert first_ids(tokenizer, text, TOKENS) == expected


def test_the_rest_of_a_long_text_is_not_read():
    tokenizer = whole(word_piece(), "a")
    assert len(first_ids(tokenizer, "ab " * 100_000, TOKENS)) == TOKENS
    assert sum(READINGS) <= READ * TOKENS
    first_ids(tokenizer, " " * 1000 + "ab " * 100_000, TOKENS)  # the first part has no words: more is read
    assert max(READINGS) < 10_000


def test_a_tokenizer_that_may_join_words_reads_everything():
    joined = byte_level(use_regex=False)
    marked = byte_level()
    marked.add_special_tokens(["a b"])
    for made in (joined, marked):
        tokenizer = whole(made, "a")
        assert not ends_words_at_spaces(tokenizer)
        first_ids(tokenizer, "ab " * 1000, TOKENS)
        assert READINGS == [3000]
