"""From messages to token ids and a loss mask, so that training, sampling and serving see the same ids.

A conversation is cut at the borders of its answers (`Template.segments`). Each stretch is tokenised behind the one
before it, and its ids are those that the joined text gives it; where a token straddles the border, the stretch is
tokenised apart without the dummy prefix that some tokenizers put in front of a text. So the ids of a prompt never
depend on what is answered, and each stretch costs its own length, however long the conversation is. Special tokens come
from the template alone: the tokenizer is never asked to add its own, which is how a second BOS is ruled out.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from togi.core.errors import InputError, RecipeError
from togi.core.protocols import Tokenizer
from togi.core.records import Message
from togi.text.template import TOKENIZER_BOS, Segment, Template, leading_text

ANCHORS = ("\n", ".", "a", "0", "。", "あ", "<")  # something to stand behind: a text that merges with all is not known


@dataclass(frozen=True, slots=True)
class Rendered:
    """A conversation as ids; `mask` is True on the tokens that carry loss. `straddles` counts the borders between an
    answer and what is around it that the joined text would have covered with one token. `ends` are the places right
    behind the terminators of the answers that carry loss."""

    ids: tuple[int, ...]
    mask: tuple[bool, ...]
    straddles: int = 0
    ends: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class TemplateCheck:
    """What a template looks like to a tokenizer: ids of the BOS ("" gives none) and of the terminator."""

    bos: tuple[int, ...]
    terminator: tuple[int, ...]


def render_prompt(template: Template, tokenizer: Tokenizer, messages: Sequence[Message]) -> list[int]:
    """Ids of a conversation that waits for an answer, generation prompt included.

    Raises InputError on an empty conversation or a role that the template does not know.
    """
    return list(_render(tokenizer, _bound(template, tokenizer).segments(messages, generation=True)).ids)


def render_chat(
    template: Template, tokenizer: Tokenizer, messages: Sequence[Message], *, header: bool = False
) -> Rendered:
    """Ids and loss mask of a whole conversation: True on content and terminator of the assistant's turns with `train`,
    with `header` also on the generation prompt in front of them. The very first token never carries loss.

    The ids before an answer are those of `render_prompt` for the messages before it, whatever the mask. Raises
    InputError as that does.
    """
    bound = _bound(template, tokenizer)
    return _render(tokenizer, bound.segments(messages), bound.generation if header else "")


def render_turns(
    template: Template, tokenizer: Tokenizer, messages: Sequence[Message], *, header: bool = False
) -> list[Rendered]:
    """`render_chat`, as one sequence or as several, where the template writes an answer differently once the
    conversation goes on. Each answer with `train` carries loss in one of them, behind the very prompt that is served
    for it; the longest comes first. Raises InputError, Unrendered among them, as `Template.texts` does.
    """
    bound = _bound(template, tokenizer)
    generation = bound.generation if header else ""
    return [_render(tokenizer, segments, generation) for segments in bound.texts(messages)]


def render_text(template: Template, tokenizer: Tokenizer, messages: Sequence[Message]) -> list[int]:
    """Ids of a whole conversation of which nothing carries loss, as the model library gives them: what a scorer reads.

    Raises InputError as `render_prompt` does.
    """
    unscored = [replace(message, train=False) for message in messages]
    text = _bound(template, tokenizer).chat_text(unscored)
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def render_answer(template: Template, tokenizer: Tokenizer, messages: Sequence[Message], answer: str) -> list[int]:
    """Ids of `answer` (with its terminator) that follow `render_prompt(messages)`."""
    left = _bound(template, tokenizer).segments(messages, generation=True)[-1].text
    return ids_after(tokenizer, left, answer)[0]


def answer_straddles(template: Template, tokenizer: Tokenizer, messages: Sequence[Message], answer: str) -> bool:
    """Whether the joined text has a token that covers the end of the prompt and the start of the answer."""
    left = _bound(template, tokenizer).segments(messages, generation=True)[-1].text
    return ids_after(tokenizer, left, answer)[1]


def ids_after(tokenizer: Tokenizer, left: str, text: str) -> tuple[list[int], bool]:
    """Ids of `text` where it follows `left`, and whether it had to be tokenised apart."""
    if not text:
        return [], False
    joined = _tail(tokenizer, left, text)
    if joined is not None:
        return joined, False
    for anchor in ANCHORS:
        apart = _tail(tokenizer, anchor, text)
        if apart is not None:
            return apart, True
    raise InputError(f"the tokenizer merges the start of {text[:40]!r} with whatever stands before it")


def _tail(tokenizer: Tokenizer, left: str, text: str) -> list[int] | None:
    """Ids of `text` inside `left + text`; None where a token straddles the border.

    Offsets may leave out spaces that a token begins with (byte-level tokenizers trim them), so the tokens of the left
    side must reach the border exactly: a gap means that the next token holds what stands in the gap.
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
    """Whether the last token of `left` takes the white space behind it along, as added tokens with `rstrip` do."""
    return space.isspace() and list(tokenizer(left, add_special_tokens=False)["input_ids"])[-1:] == [token]


def _render(tokenizer: Tokenizer, segments: Sequence[Segment], header: str = "") -> Rendered:
    """The segments one behind the other; a `header` that a trained answer follows carries loss."""
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
    """How many of the last tokens of `text` lie wholly in `end`; 0 if it does not end so."""
    if not text.endswith(end):
        return 0
    offsets = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
    return sum(start >= len(text) - len(end) for start, _ in offsets)


def _bound(template: Template, tokenizer: Tokenizer) -> Template:
    return template.bind(tokenizer) if template.bos == TOKENIZER_BOS else template


def check_template(template: Template, tokenizer: Tokenizer) -> TemplateCheck:
    """Makes sure that a template and a tokenizer fit, before anything is trained or sampled.

    The BOS must be one token and stand once, the terminator must survive encoding and decoding, and a conversation must
    have supervised tokens. Raises RecipeError with what was found.
    """
    template = _bound(template, tokenizer)
    ask, reply = Message("user", "Hello"), Message("assistant", "Hi there")
    rendered = render_chat(template, tokenizer, (ask, reply))
    answer = [i for i, m in zip(rendered.ids, rendered.mask, strict=True) if m]
    if not answer:
        raise RecipeError(f"template {template.name!r}: no token of the answer carries loss")
    written = tokenizer.decode(answer, skip_special_tokens=False, clean_up_tokenization_spaces=False)
    if not written.endswith(template.terminator):
        raise RecipeError(
            f"template {template.name!r}: the tokenizer does not keep the terminator {template.terminator!r}; "
            f"an answer comes back as {written!r}. Choose a template whose strings the tokenizer can write"
        )
    bos = _check_bos(template, tokenizer, rendered.ids)
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
        raise RecipeError(f"template {template.name!r}: the text begins with {text!r} twice; take one away")
    return bos if tuple(ids[: len(bos)]) == bos else ()
