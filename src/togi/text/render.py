"""Renders messages as token ids and a loss mask, so that training, sampling and serving see the same ids.

A conversation is cut at its answers (`Template.segments`). Each segment gets its ids from the joined text of itself and
the segment before it. If a token straddles the border, the segment is tokenised separately, without the dummy prefix
that some tokenizers add. So the ids of a prompt never depend on the answer, and each segment costs only its own length.
All special tokens come from the template; the tokenizer never adds its own, so there is no second BOS.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from togi.core.errors import InputError, RecipeError
from togi.core.protocols import Tokenizer
from togi.core.records import Message
from togi.text.template import TOKENIZER_BOS, Segment, Template, leading_text

ANCHORS = ("\n", ".", "a", "0", "。", "あ", "<")  # alternative left contexts; no known text merges with all of them


@dataclass(frozen=True, slots=True)
class Rendered:
    """A conversation as ids; `mask` is True on the tokens that carry loss. `straddles` counts the borders of answers
    that one token of the joined text would cover. `ends` are the positions after the terminators of answers that carry
    loss."""

    ids: tuple[int, ...]
    mask: tuple[bool, ...]
    straddles: int = 0
    ends: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class TemplateCheck:
    """A template's ids under a tokenizer: of the BOS ("" gives none) and of the terminator."""

    bos: tuple[int, ...]
    terminator: tuple[int, ...]


def render_prompt(template: Template, tokenizer: Tokenizer, messages: Sequence[Message]) -> list[int]:
    """Ids of a conversation that waits for an answer, with the generation prompt.

    Raises InputError for an empty conversation or an unknown role.
    """
    return list(_render(tokenizer, _bound(template, tokenizer).segments(messages, generation=True)).ids)


def render_chat(
    template: Template, tokenizer: Tokenizer, messages: Sequence[Message], *, header: bool = False
) -> Rendered:
    """Ids and loss mask of a whole conversation. The mask is True on content and terminator of assistant turns with
    `train`, and with `header` also on their generation prompt. The first token never carries loss.

    The ids before an answer equal those of `render_prompt` for the messages before it. Raises InputError as that does.
    """
    bound = _bound(template, tokenizer)
    return _render(tokenizer, bound.segments(messages), bound.generation if header else "")


def render_turns(
    template: Template, tokenizer: Tokenizer, messages: Sequence[Message], *, header: bool = False
) -> list[Rendered]:
    """`render_chat`, as several sequences if the template writes an answer differently once the conversation goes on.

    Each answer with `train` carries loss in one sequence, after exactly its served prompt; the longest sequence comes
    first. Raises InputError, including Unrendered, as `Template.texts` does.
    """
    bound = _bound(template, tokenizer)
    generation = bound.generation if header else ""
    return [_render(tokenizer, segments, generation) for segments in bound.texts(messages)]


def render_text(template: Template, tokenizer: Tokenizer, messages: Sequence[Message]) -> list[int]:
    """Ids of a whole conversation without loss, equal to the model library's: the input of a scorer.

    Raises InputError as `render_prompt` does.
    """
    return list(tokenizer(chat_text(template, tokenizer, messages), add_special_tokens=False)["input_ids"])


def chat_text(template: Template, tokenizer: Tokenizer, messages: Sequence[Message]) -> str:
    """The text that `render_text` tokenises. Raises InputError as `render_prompt` does."""
    return _bound(template, tokenizer).chat_text([replace(message, train=False) for message in messages])


def render_answer(template: Template, tokenizer: Tokenizer, messages: Sequence[Message], answer: str) -> list[int]:
    """Ids of `answer`, with its terminator, after `render_prompt(messages)`."""
    left = _bound(template, tokenizer).segments(messages, generation=True)[-1].text
    return ids_after(tokenizer, left, answer)[0]


def ids_after(tokenizer: Tokenizer, left: str, text: str) -> tuple[list[int], bool]:
    """Ids of `text` after `left`, and whether it had to be tokenised separately."""
    if not text:
        return [], False
    joined = _tail(tokenizer, left, text)
    if joined is not None:
        return joined, False
    for anchor in ANCHORS:
        apart = _tail(tokenizer, anchor, text)
        if apart is not None:
            return apart, True
    raise InputError(f"the tokenizer merges the start of {text[:40]!r} with any text before it")


def _tail(tokenizer: Tokenizer, left: str, text: str) -> list[int] | None:
    """Ids of `text` within `left + text`; None if a token straddles the border.

    Offsets may omit leading spaces of a token (byte-level tokenizers trim them). So the tokens of the left side must
    reach the border exactly: a gap belongs to the next token.
    """
    encoded = tokenizer(left + text, add_special_tokens=False, return_offsets_mapping=True)
    border, reached = len(left), 0
    for index, (start, end) in enumerate(encoded["offset_mapping"]):
        if start >= border and reached >= border:
            return list(encoded["input_ids"][index:])
        if end > border and not _swallows(tokenizer, left, text[: end - border], encoded["input_ids"][index]):
            return None
        reached = max(reached, end)
    return [] if reached >= border else None


def _swallows(tokenizer: Tokenizer, left: str, space: str, token: int) -> bool:
    """Whether the last token of `left` includes the white space after it, as added tokens with `rstrip` do."""
    return space.isspace() and list(tokenizer(left, add_special_tokens=False)["input_ids"])[-1:] == [token]


def _render(tokenizer: Tokenizer, segments: Sequence[Segment], header: str = "") -> Rendered:
    """Tokenises the segments in order; a `header` in front of a trained answer carries loss."""
    ids: list[int] = []
    mask: list[bool] = []
    ends: list[int] = []
    straddles = 0
    left = ""
    for segment in segments:
        if left:
            new, straddled = ids_after(tokenizer, left, segment.text)
            straddles += straddled
        else:
            new = list(tokenizer(segment.text, add_special_tokens=False)["input_ids"])
        if header and segment.answer and segment.train and ids:
            scored = _tokens_of_end(tokenizer, left, header)
            mask[len(mask) - scored :] = [True] * scored
        ids += new
        mask += [segment.answer and segment.train] * len(new)
        left = segment.text
        ends += [len(ids)] * (segment.answer and segment.train)
    if mask:
        mask[0] = False
    return Rendered(tuple(ids), tuple(mask), straddles, tuple(ends))


def _tokens_of_end(tokenizer: Tokenizer, text: str, end: str) -> int:
    """The number of last tokens of `text` that lie entirely within `end`; 0 if the text does not end with `end`."""
    if not text.endswith(end):
        return 0
    offsets = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
    return sum(start >= len(text) - len(end) for start, _ in offsets)


def _bound(template: Template, tokenizer: Tokenizer) -> Template:
    return template.bind(tokenizer) if template.bos == TOKENIZER_BOS else template


def check_template(template: Template, tokenizer: Tokenizer) -> TemplateCheck:
    """Checks that a template and a tokenizer fit, before any training or sampling.

    The BOS must be one token and appear once, and the terminator must survive encoding and decoding after an answer.
    Raises RecipeError otherwise, and InputError if the template rejects a question.
    """
    template = _bound(template, tokenizer)
    ask = (Message("user", "Hello"),)
    ids = render_prompt(template, tokenizer, ask)
    answer = render_answer(template, tokenizer, ask, "Hi there" + template.terminator)
    written = tokenizer.decode(answer, skip_special_tokens=False, clean_up_tokenization_spaces=False)
    if not written.endswith(template.terminator):
        raise RecipeError(
            f"template {template.name!r}: the tokenizer does not keep the terminator {template.terminator!r}; "
            f"it decodes an answer as {written!r}. Choose a template whose strings the tokenizer can write"
        )
    bos = _check_bos(template, tokenizer, ids)
    return TemplateCheck(bos, tuple(ids_after(tokenizer, "Hi there", template.terminator)[0]))


def _check_bos(template: Template, tokenizer: Tokenizer, ids: Sequence[int]) -> tuple[int, ...]:
    text = template.bos or leading_text(tokenizer)
    bos = tuple(tokenizer(text, add_special_tokens=False)["input_ids"]) if text else ()
    if template.bos and len(bos) != 1:
        raise RecipeError(
            f"template {template.name!r} begins with {template.bos!r}, which this tokenizer writes as {len(bos)} "
            "tokens: choose a template for this model (one ending in -text, or chatml)"
        )
    if len(bos) == 1 and tuple(ids[:2]) == bos * 2:
        raise RecipeError(f"template {template.name!r}: the text begins with {text!r} twice; remove one")
    return bos if tuple(ids[: len(bos)]) == bos else ()
