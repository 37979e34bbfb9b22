"""Long texts: they hold up no other request, and those that cannot fit are refused unread."""

import threading
from typing import Any

import pytest
from served import ask, serving
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers
from tokenizers.pre_tokenizers import ByteLevel
from transformers import PreTrainedTokenizerFast

from togi.rollout.local import Sampler
from togi.serve.app import Served
from togi.serve.chat import Speaker, chat_app
from togi.serve.texts import LONG, longest_text

FALLBACK = [f"<0x{i:02X}>" for i in range(256)]


class Slow:
    """A tokenizer that reads a long text only when it may."""

    def __init__(self, tokenizer: Any) -> None:
        self.may = threading.Event()
        self.began = threading.Event()
        self.tokenizer = tokenizer

    def __call__(self, text: str, **options: Any) -> Any:
        if len(text) > LONG:
            self.began.set()
            assert self.may.wait(60)
            text = text[:10]
        return self.tokenizer(text, **options)

    def decode(self, ids: Any, **options: Any) -> str:
        return self.tokenizer.decode(ids, **options)


def test_a_long_text_holds_up_no_other_request(model):
    slow = Slow(model.tokenizer)
    engine = Sampler(model.net, model.tokenizer, model.template.terminator)
    served = Served(name="m", kind="causal", limit=model.context, vocabulary=300)
    speaker = Speaker(engine=engine, tokenizer=slow, template=model.template)
    short = {"model": "m", "prompt": "a", "max_tokens": 1}
    talk = {"model": "m", "messages": [{"role": "user", "content": "a" * (LONG + 1)}], "max_tokens": 1}
    found: list[int] = []
    with serving(chat_app(served, speaker)) as url:
        asked = [("v1/completions", {**short, "prompt": "a" * (LONG + 1)}), ("v1/chat/completions", talk)]
        asked.append(("tokenize", {"model": "m", "prompt": "a" * (LONG + 1)}))
        threads = [threading.Thread(target=lambda e=e: found.append(ask(f"{url}/{e[0]}", e[1])[0])) for e in asked]
        for thread in threads:
            thread.start()
        assert slow.began.wait(20)
        assert ask(f"{url}/health")[0] == 200 and ask(f"{url}/v1/completions", short)[0] == 200
        assert not found
        slow.may.set()
        for thread in threads:
            thread.join(60)
    assert found == [200] * 3


@pytest.mark.parametrize("path", ["v1/completions", "v1/chat/completions"])
def test_a_text_that_cannot_fit_is_refused_unread(model, path):
    read: list[int] = []

    class Watched(type(model.tokenizer)):
        def __call__(self, text: str, **options: Any) -> Any:
            read.append(len(text))
            return super().__call__(text, **options)

    tokenizer = Watched(tokenizer_object=model.tokenizer.backend_tokenizer, eos_token=model.tokenizer.eos_token)
    most = longest_text(tokenizer, model.context)
    assert most is not None
    engine = Sampler(model.net, model.tokenizer, model.template.terminator)
    served = Served(name="m", kind="causal", limit=model.context, vocabulary=300)
    text = "a" * (most + 1)
    body = {"prompt": text} if path == "v1/completions" else {"messages": [{"role": "user", "content": text}]}
    with serving(chat_app(served, Speaker(engine=engine, tokenizer=tokenizer, template=model.template))) as url:
        status, found = ask(f"{url}/{path}", {"model": "m", "max_tokens": 1, **body})
    assert status == 400 and "characters, but the model's context of 512 tokens" in found["error"]["message"]
    assert max(read, default=0) <= most


def bpe(vocabulary: list[str], **options: Any) -> Tokenizer:
    merges = [("a", "a")] if "aa" in vocabulary else []
    return Tokenizer(models.BPE({each: i for i, each in enumerate(vocabulary)}, merges, **options))


def most_of(made: Tokenizer, tokens: int = 3) -> int | None:
    return longest_text(PreTrainedTokenizerFast(tokenizer_object=made), tokens)


def test_the_longest_text_is_known_where_each_character_has_a_token():
    level = bpe([*ByteLevel.alphabet(), "aa"])
    level.pre_tokenizer = ByteLevel(add_prefix_space=False)
    level.decoder = decoders.ByteLevel()
    assert most_of(level) == 6
    assert len(PreTrainedTokenizerFast(tokenizer_object=level)("a" * 6)["input_ids"]) == 3
    level.normalizer = normalizers.NFC()
    assert most_of(level) == 24
    fallback = bpe([*FALLBACK, "▁", "a"], byte_fallback=True)
    fallback.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    assert most_of(fallback) == 3 * len("<0x00>")


def test_the_longest_text_is_unknown_where_characters_may_be_dropped():
    words = Tokenizer(models.WordPiece({"[UNK]": 0, "a": 1}, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    assert most_of(words) is None
    lacking = bpe([*ByteLevel.alphabet()][:-1])
    lacking.pre_tokenizer = ByteLevel()
    assert most_of(lacking) is None
    cutting = bpe([*ByteLevel.alphabet()])
    removed = pre_tokenizers.Split(" ", "removed")
    cutting.pre_tokenizer = pre_tokenizers.Sequence([removed, ByteLevel()])
    assert most_of(cutting) is None
    stripping = bpe([*ByteLevel.alphabet()])
    stripping.pre_tokenizer = ByteLevel()
    assert most_of(stripping) == 3
    stripping.add_special_tokens([AddedToken("<m>", lstrip=True)])
    assert most_of(stripping) is None
    stripped = bpe([*ByteLevel.alphabet()])
    stripped.pre_tokenizer, stripped.normalizer = ByteLevel(), normalizers.Strip()
    assert most_of(stripped) is None
    shortened = bpe([*ByteLevel.alphabet()])
    shortened.pre_tokenizer, shortened.normalizer = ByteLevel(), normalizers.Replace("aa", "a")
    assert most_of(shortened) is None
