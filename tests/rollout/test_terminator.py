"""Ends of answers in decoded text, by byte-level and sentencepiece-like tokenizers, against decoding all every time."""

import random

import pytest
from rollout_tiny import byte_level, sentencepiece_like
from transformers import PreTrainedTokenizerFast

from togi.rollout.terminator import HOLE, Decoder, Ending, StopMatcher, TextStream

TOKENIZERS = {"byte-level": byte_level(), "sentencepiece-like": sentencepiece_like()}


@pytest.fixture(params=TOKENIZERS)
def tokenizer(request) -> PreTrainedTokenizerFast:
    return TOKENIZERS[request.param]


def encode(tokenizer, text: str) -> list[int]:
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def walk(watch: StopMatcher, context: list[int], ids: list[int]) -> tuple[int, Ending | None]:
    """The number of tokens up to the end of the answer, and that end."""
    for count in range(1, len(ids) + 1):
        ending = watch.ending(context, ids[:count])
        if ending is not None:
            return count, ending
    return len(ids), None


def naive(watch: StopMatcher, context: list[int], ids: list[int]) -> tuple[int, str | None]:
    """The same by decoding everything at every token; gives the text instead of the end."""
    for count in range(1, len(ids) + 1):
        text = watch.decoder.after(context, ids[:count])
        if any(pattern in text for pattern in watch.patterns):
            return count, text
    return len(ids), None


@pytest.mark.parametrize("terminator", ["<|eot|>", "です。", "|>\n", "end ", "。\n"])
def test_a_terminator_of_several_tokens_ends_the_answer(tokenizer, terminator):
    context = encode(tokenizer, "how are you?\n")
    ids = encode(tokenizer, f"the day 日本語 is{terminator} and more")
    count, ending = walk(StopMatcher(Decoder(tokenizer), terminator), context, ids)
    assert ending is not None
    assert ending.stop == "terminator"
    assert ending.text.strip(" ") == f"the day 日本語 is{terminator}".strip(" ")
    assert ending.text.endswith(terminator)
    before = tokenizer.decode(ids[: count - 1], skip_special_tokens=False, clean_up_tokenization_spaces=False)
    assert terminator not in before


def test_a_special_token_ends_the_answer_and_is_kept_in_the_text(tokenizer):
    ids = [*encode(tokenizer, "yes"), tokenizer.convert_tokens_to_ids("<|im_end|>"), *encode(tokenizer, "no")]
    count, ending = walk(StopMatcher(Decoder(tokenizer), "<|im_end|>"), [], ids)
    assert count == len(ids) - len(encode(tokenizer, "no"))
    assert ending == Ending("terminator", "yes<|im_end|>")


def test_a_token_that_runs_past_the_terminator_is_cut_in_the_text_only():
    tokenizer = TOKENIZERS["sentencepiece-like"]
    ids = tokenizer.convert_tokens_to_ids(["a", "<", "|>\n"])
    assert walk(StopMatcher(Decoder(tokenizer), "|"), [], ids) == (3, Ending("terminator", "a<|"))


@pytest.mark.parametrize("terminator", ["|>", "。", "語", "e", " a", "<|im_end|>", "d "])
def test_the_tail_finds_what_decoding_everything_finds(tokenizer, terminator):
    """Random ids: broken UTF-8, special tokens, spaces anywhere."""
    numbers = random.Random(7)
    likely = encode(tokenizer, "the end 日本語。|> <|im_end|> a b")
    watch = StopMatcher(Decoder(tokenizer), terminator, stop=("zz", "本。"))
    found = 0
    for _ in range(150):
        ids = [numbers.choice(likely) if numbers.random() < 0.6 else numbers.randrange(250) for _ in range(40)]
        context = list(watch.decoder.context(ids[:4])) if numbers.random() < 0.5 else encode(tokenizer, "the\n")
        count, ending = walk(watch, context, ids[4:])
        expected, text = naive(watch, context, ids[4:])
        assert (count, ending is None) == (expected, text is None)
        found += ending is not None
        if ending is not None and text is not None:
            assert text.startswith(ending.text)
    assert found > 5


def test_the_first_pattern_that_is_complete_wins(tokenizer):
    watch = StopMatcher(Decoder(tokenizer), "|>", stop=("b", "zz"))
    _, ending = walk(watch, [], encode(tokenizer, "aab|>"))
    assert ending == Ending("stop_string", "aa")


def test_end_ids_end_an_answer_like_stop_strings(tokenizer):
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    ids = [*encode(tokenizer, "yes"), end]
    assert walk(StopMatcher(Decoder(tokenizer), "|eot|", end_ids=[end]), [], ids)[1] == Ending("stop_string", "yes")
    assert walk(StopMatcher(Decoder(tokenizer), "|eot|"), [], ids)[1] is None


def test_an_unfinished_character_is_held_back():
    tokenizer = TOKENIZERS["byte-level"]
    ids = encode(tokenizer, "良い鶴")
    watch = StopMatcher(Decoder(tokenizer), "。")
    assert HOLE in tokenizer.decode(ids[:-1])
    assert watch.text([], ids[:-1]) == "良い"
    assert StopMatcher(Decoder(TOKENIZERS["sentencepiece-like"]), "。").text([], ids_of_bytes("良い鶴")[:-1]) == "良い"


def ids_of_bytes(text: str) -> list[int]:
    return [TOKENIZERS["sentencepiece-like"].convert_tokens_to_ids(f"<0x{byte:02X}>") for byte in text.encode()]


def test_a_terminator_is_found_within_a_long_run_of_bytes():
    """Such decoders show nothing of a run of bytes while a character in it is broken, so a tail must not cut it."""
    watch = StopMatcher(Decoder(TOKENIZERS["sentencepiece-like"]), "鶴")
    for lead in range(4):
        ids = ids_of_bytes("a" * lead + "良い日本語" * 9 + "鶴")
        assert walk(watch, [], ids) == (len(ids), Ending("terminator", "a" * lead + "良い日本語" * 9 + "鶴"))


def test_a_leading_space_is_kept():
    tokenizer = TOKENIZERS["sentencepiece-like"]
    ids = tokenizer.convert_tokens_to_ids(["\u2581the", "|>"])
    assert tokenizer.decode(ids) == "the|>"
    watch = StopMatcher(Decoder(tokenizer), "|>")
    assert watch.ending(encode(tokenizer, "a\n"), ids) == Ending("terminator", " the|>")


def test_the_cost_of_a_token_does_not_grow(tokenizer):
    decoded = []

    class Counting(Decoder):
        def decode(self, ids):
            decoded.append(len(ids))
            return super().decode(ids)

    watch = StopMatcher(Counting(tokenizer), "<|eot|>")
    ids = encode(tokenizer, "a|> " * 200)
    for count in range(1, len(ids) + 1):
        assert watch.ending([], ids[:count]) is None
    assert max(decoded) <= 2 * (len("<|eot|>") + 8)


@pytest.mark.parametrize("text", ["the <|e <|eot|> ", "日本語。<|eot|>", "良い鶴<|eo<|eot|>", "a <|eo", "<|eot|>"])
def test_streamed_pieces_join_to_the_text_without_its_terminator(tokenizer, text):
    context = encode(tokenizer, "how are\n")
    ids = encode(tokenizer, text)
    watch = StopMatcher(Decoder(tokenizer), "<|eot|>")
    stream, pieces, ending = TextStream(watch, context), [], None
    for count in range(1, len(ids) + 1):
        ending = watch.ending(context, ids[:count])
        if ending is not None:
            break
        pieces.append(stream.feed(ids[count - 1]))
        assert "<|eot" not in "".join(pieces)
        assert HOLE not in "".join(pieces)
    ending = ending or Ending("length", watch.text(context, ids))
    pieces.append(stream.finish(ending))
    assert "".join(pieces) == ending.text.removesuffix("<|eot|>")
    assert "".join(pieces).strip() == text.split("<|eot|>")[0].strip()
