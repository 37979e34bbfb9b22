"""Which tokens of a chat carry loss, against stored masks of the published rule: from the header of an assistant turn
to the first terminator after it, both included.

togi differs in two things on purpose. The header is the template's, not the model's, so by default it carries no loss;
`header=True` is the published rule. And an answer that is cut off has no end: `truncate_to_answer` removes it, while
the published rule keeps its tokens without loss.
"""

from typing import Any

import pytest
from stored import load
from tokenizers import Regex, Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from togi.core.records import Message
from togi.text.render import render_chat
from togi.text.template import Template

STORED = load("sft_mask.json")
CASES: dict[str, dict[str, list[int]]] = STORED["cases"]
BOS, USER, HEADER, EOS = 1, 40, STORED["template"], STORED["eos"]


def text(*ids: int) -> str:
    """One character per token."""
    return "".join(chr(0x4E00 + i) for i in ids)


def tokenizer() -> Any:
    core = Tokenizer(models.WordLevel({text(i): i for i in range(64)}, unk_token=text(0)))
    core.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    return PreTrainedTokenizerFast(tokenizer_object=core, unk_token=text(0))


def template(closing: tuple[int, ...] = (EOS,)) -> Template:
    """The template of the stored ids; `closing` follows an answer and begins with its terminator."""
    return Template(
        name="stored",
        bos=text(BOS),
        generation=text(*HEADER),
        terminator=text(EOS),
        roles={"user": (text(USER), text(EOS)), "assistant": (text(*HEADER), text(*closing))},
    )


def messages_of(ids: list[int]) -> list[Message]:
    """The conversation of stored ids; repeated terminators belong to the template."""
    turns: list[Message] = []
    rest = ids[1:]
    while rest:
        role, opening = ("user", 1) if rest[0] == USER else ("assistant", len(HEADER))
        end = rest.index(EOS) if EOS in rest else len(rest)
        turns.append(Message(role, text(*rest[opening:end])))
        rest = rest[end:]
        while rest and rest[0] == EOS:
            rest = rest[1:]
    return turns


@pytest.mark.parametrize("name", CASES)
def test_the_published_mask_and_ours(name: str) -> None:
    stored = CASES[name]
    ids, labels = stored["ids"], stored["labels"]
    closing = (EOS,) * 3 if name == "nested_eos" else (EOS,)
    with_header, ours = (
        render_chat(template(closing), tokenizer(), messages_of(ids), header=header) for header in (True, False)
    )
    stop = (
        max((end for end in ours.ends if end <= len(ids)), default=len(ids)) if name == "truncated_last" else len(ids)
    )
    assert with_header.ids[:stop] == ours.ids[:stop] == tuple(ids[:stop])
    assert all(label == -100 for label in labels[stop:])  # of the answer that was cut off
    published = tuple(label != -100 for label in labels[:stop])
    assert with_header.mask[:stop] == published
    header = [i + k for i in range(stop) for k in range(len(HEADER)) if ids[i : i + len(HEADER)] == HEADER]
    assert ours.mask[:stop] == tuple(mark and i not in header for i, mark in enumerate(published))
