from typing import Any

import pytest
from tokenizers_made import byte_bpe, tokenizers, unigram

from togi.core.errors import RecipeError
from togi.core.records import Message
from togi.text.render import check_template, ids_after, render_answer, render_chat, render_prompt
from togi.text.template import TEMPLATES, Template, get_template

ASK, MORE = Message("user", "Hello there"), Message("user", "日本語?")
ANSWERS = ["the cat sat.", " the cat", "\n\nはい、日本", "はい", "12", "🙂 ok", "  ", "\n", "。", "<"]
TOKENIZERS = tokenizers()
NAMES = [name for name in TEMPLATES if name != "llama3"]  # needs a BOS that these tokenizers do not have
each_tokenizer = pytest.mark.parametrize("tokenizer", TOKENIZERS.values(), ids=TOKENIZERS)
each_template = pytest.mark.parametrize("name", NAMES)


def text_of(tokenizer: Any, ids: list[int]) -> str:
    return tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)


@each_tokenizer
@each_template
def test_the_ids_of_a_prompt_do_not_depend_on_the_answer(name: str, tokenizer: Any) -> None:
    template = get_template(name, tokenizer)
    for answer in ANSWERS:
        check_dialog(template, tokenizer, answer)


def check_dialog(template: Template, tokenizer: Any, answer: str) -> None:
    dialog = [ASK, Message("assistant", answer), MORE, Message("assistant", answer)]
    ids = list(render_chat(template, tokenizer, dialog).ids)
    for turns in (1, 3):
        prompt = render_prompt(template, tokenizer, dialog[:turns])
        assert ids[: len(prompt)] == prompt
        said = (answer.strip() if template.strip else answer) + template.terminator
        reply = render_answer(template, tokenizer, dialog[:turns], said)
        assert ids[len(prompt) : len(prompt) + len(reply)] == reply


@each_tokenizer
@each_template
def test_the_mask_covers_content_and_terminator(name: str, tokenizer: Any) -> None:
    template = get_template(name, tokenizer)
    first, unscored = Message("assistant", "はい"), Message("assistant", "12 mats", train=False)
    rendered = render_chat(template, tokenizer, [ASK, first, MORE, unscored, MORE, Message("assistant", "Hi")])
    scored = [i for i, m in zip(rendered.ids, rendered.mask, strict=True) if m]
    end = template.terminator
    assert text_of(tokenizer, scored).lstrip() == f"はい{end}Hi{end}"
    assert len(rendered.ids) == len(rendered.mask)


@each_tokenizer
@each_template
def test_prompts_are_what_the_model_library_would_serve(name: str, tokenizer: Any) -> None:
    template = get_template(name, tokenizer)
    served = tokenizer.apply_chat_template(
        [{"role": "user", "content": ASK.content}],
        chat_template=template.to_jinja(),
        add_generation_prompt=True,
        return_dict=False,
    )
    assert render_prompt(template, tokenizer, [ASK]) == served


@each_tokenizer
@each_template
def test_never_two_bos(name: str, tokenizer: Any) -> None:
    ids = render_prompt(TEMPLATES[name], tokenizer, [ASK])
    assert ids.count(tokenizer.bos_token_id) == (1 if get_template(name, tokenizer).bos else 0)
    check_template(TEMPLATES[name], tokenizer)


@pytest.mark.parametrize("trim", [True, False])
def test_a_token_across_the_border_is_counted_and_not_used(trim: bool) -> None:
    """The prompt ends with a space, which a byte-level tokenizer would join to the answer's first word."""
    tokenizer = byte_bpe(trim=trim)
    spaced = Template(
        name="spaced", roles={"user": ("U: ", "\n"), "assistant": ("A: ", "</s>")}, generation="A: ", terminator="</s>"
    )
    prompt = render_prompt(spaced, tokenizer, [ASK])
    reply = render_answer(spaced, tokenizer, [ASK], "there</s>")
    assert text_of(tokenizer, prompt + reply) == "U: Hello there\nA: there</s>"
    assert text_of(tokenizer, reply) == "there</s>"
    rendered = render_chat(spaced, tokenizer, [ASK, Message("assistant", "there")])
    assert (list(rendered.ids), rendered.straddles) == (prompt + reply, 1)
    assert render_chat(spaced, tokenizer, [ASK, Message("assistant", "\nthere")]).straddles == 0


def test_line_ends_that_split_before_a_word() -> None:
    """GPT-2's rule makes two line ends one token at the end of a prompt and two within a text: the prompt wins."""
    tokenizer = byte_bpe()
    alone = tokenizer("cat\n\n", add_special_tokens=False)["input_ids"]
    joined = tokenizer("cat\n\nsat", add_special_tokens=False)["input_ids"]
    assert joined[: len(alone)] != alone
    tail, straddled = ids_after(tokenizer, "cat\n\n", "sat")
    assert not straddled and text_of(tokenizer, alone + tail) == "cat\n\nsat"


@pytest.mark.parametrize("scheme", ["always", "first"])
def test_apart_without_dummy_prefix(scheme: str) -> None:
    tokenizer = unigram(scheme=scheme, split=False)
    tail, straddled = ids_after(tokenizer, "Hello t", "here")
    assert straddled
    pieces = tokenizer.convert_ids_to_tokens(tail)
    assert "".join(pieces) == "here" and tokenizer.tokenize("here")[0].startswith("▁")


def test_unknown_characters_written_as_bytes_on_both_sides() -> None:
    """Such bytes share their offsets, which hides the border; it is counted, and the ids are right."""
    tokenizer = unigram(scheme="first", split=False)
    left = tokenizer("a🙂", add_special_tokens=False)["input_ids"]
    tail, straddled = ids_after(tokenizer, "a🙂", "🙃b")
    assert straddled
    assert text_of(tokenizer, left + tail) == "a🙂🙃b"


def test_a_bos_that_the_tokenizer_does_not_know() -> None:
    with pytest.raises(
        RecipeError, match=r"begins with '<\|begin_of_text\|>', which this tokenizer writes as \d+ tokens"
    ):
        check_template(TEMPLATES["llama3"], byte_bpe())


def test_a_bos_that_comes_twice() -> None:
    doubled = Template(
        name="doubled",
        bos="<s>",
        roles={"user": ("<s>U", ""), "assistant": ("A", "</s>")},
        generation="A",
        terminator="</s>",
    )
    with pytest.raises(RecipeError, match="begins with '<s>' twice"):
        check_template(doubled, unigram())


class Forgetful:
    """A tokenizer that writes every character as the same unknown token."""

    def __call__(self, text: str, **kwargs: Any) -> dict[str, Any]:
        return {"input_ids": [0] * len(text), "offset_mapping": [(i, i + 1) for i in range(len(text))]}

    def decode(self, ids: list[int], **kwargs: Any) -> str:
        return "?" * len(ids)


def test_a_terminator_that_does_not_come_back() -> None:
    with pytest.raises(RecipeError, match="does not keep the terminator '<\\|im_end\\|>'"):
        check_template(TEMPLATES["chatml-nobos"], Forgetful())


def test_what_the_check_reports() -> None:
    special = unigram(special=("<|im_start|>", "<|im_end|>"))
    assert check_template(TEMPLATES["chatml"], special).bos == (special.bos_token_id,)
    assert len(check_template(TEMPLATES["chatml"], special).terminator) == 1
    assert len(check_template(TEMPLATES["chatml"], byte_bpe()).terminator) > 1
