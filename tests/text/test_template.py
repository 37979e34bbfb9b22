from pathlib import Path

import pytest
from tokenizers_made import byte_bpe, unigram

from togi.core.errors import InputError, RecipeError
from togi.core.records import Message
from togi.text.template import (
    TEMPLATE_NAMES,
    TEMPLATES,
    TOKENIZER_BOS,
    Template,
    file_template,
    get_template,
    own_template,
)

FIXED = "以下は、タスクを説明する指示です。要求を適切に満たす応答を書きなさい。"
SYSTEM = Message("system", "Be brief.")
ASK, REPLY, MORE = Message("user", "Hello there"), Message("assistant", "the cat sat."), Message("user", "日本語?")


@pytest.mark.parametrize(
    ("name", "text"),
    [
        (
            "chatml-nobos",
            "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHello there<|im_end|>\n<|im_start|>assistant\n",
        ),
        (
            "llm-jp",
            f"<s>{FIXED}\n\n### 指示:\nHello there\n\n### 応答:\n",
        ),
        ("llm-jp-system", "<s>Be brief.\n\n### 指示:\nHello there\n\n### 応答:\n"),
        ("sarashina", "<|system|>Be brief.</s><|user|>Hello there</s><|assistant|>"),
        (
            "llama3",
            "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\nBe brief.<|eot_id|>"
            "<|start_header_id|>user<|end_header_id|>\n\nHello there<|eot_id|>"
            "<|start_header_id|>assistant<|end_header_id|>\n\n",
        ),
    ],
)
def test_prompt_text(name: str, text: str) -> None:
    assert TEMPLATES[name].prompt_text([SYSTEM, ASK]) == text


def test_the_prompt_of_llama3_text_shows_its_terminator() -> None:
    template = TEMPLATES["llama3-text"]
    assert template.prompt_text([SYSTEM, ASK]).count(template.terminator) == 2


def test_free_roles() -> None:
    text = TEMPLATES["llama3"].chat_text([Message("documents", "[]")])
    assert text == "<|begin_of_text|><|start_header_id|>documents<|end_header_id|>\n\n[]<|eot_id|>"


@pytest.mark.parametrize("name", TEMPLATES)
def test_json_round_trip(name: str) -> None:
    template = TEMPLATES[name]
    assert Template.from_json(template.to_json()) == template


@pytest.mark.parametrize("adds_bos", [False, True])
@pytest.mark.parametrize("name", TEMPLATES)
@pytest.mark.parametrize(
    "messages", [[ASK], [ASK, REPLY], [SYSTEM, ASK, REPLY, MORE], [ASK, REPLY, REPLY, MORE, REPLY]]
)
def test_jinja_renders_the_same(name: str, adds_bos: bool, messages: list[Message]) -> None:
    tokenizer = byte_bpe(adds_bos=adds_bos)
    template = get_template(name, tokenizer)
    rows = [{"role": m.role, "content": m.content} for m in messages]
    source = template.to_jinja()
    assert tokenizer.apply_chat_template(rows, chat_template=source, tokenize=False) == template.chat_text(messages)
    prompt = tokenizer.apply_chat_template(rows, chat_template=source, tokenize=False, add_generation_prompt=True)
    assert prompt == template.prompt_text(messages)


def test_jinja_keeps_default_system_strip_and_odd_characters() -> None:
    shown = Template(
        name="odd",
        roles={"system": ("[\"'{{", "}}\\]\n"), "user": ("«", "»"), "assistant": ("\t", "<end>\u2028")},
        generation="\t",
        terminator="<end>",
        default_system=" 日本\n ",
        strip=True,
    )
    messages = [Message("user", " a "), Message("assistant", " b\n")]
    rows = [{"role": m.role, "content": m.content} for m in messages]
    text = byte_bpe().apply_chat_template(rows, chat_template=shown.to_jinja(), tokenize=False)
    assert text == shown.chat_text(messages) == "[\"'{{日本}}\\]\n«a»\tb<end>\u2028"


def test_jinja_of_a_saved_model_refuses_unknown_roles() -> None:
    source = TEMPLATES["sarashina"].to_jinja()
    with pytest.raises(Exception, match="unknown role tool"):
        byte_bpe().apply_chat_template([{"role": "tool", "content": "x"}], chat_template=source, tokenize=False)


def test_bos_is_bound_to_what_the_tokenizer_adds() -> None:
    template = TEMPLATES["chatml"]
    assert template.bos == TOKENIZER_BOS
    assert template.bind(byte_bpe()).bos == ""
    assert template.bind(byte_bpe(adds_bos=True)).bos == "<s>"
    assert template.bind(unigram()).bos == "<s>"
    with pytest.raises(ValueError, match="bind"):
        template.to_jinja()


def test_a_template_without_terminator_is_refused() -> None:
    with pytest.raises(RecipeError, match="has no terminator"):
        Template(name="open", roles={"assistant": ("A:", "")}, generation="A:", terminator="")
    with pytest.raises(RecipeError, match="closed by the terminator"):
        Template(name="open", roles={"assistant": ("A:", "\n")}, generation="A:", terminator="<end>")


def test_unknown_names_and_keys() -> None:
    with pytest.raises(RecipeError, match="did you mean 'chatml'"):
        get_template("chatlm")
    with pytest.raises(RecipeError, match="unknown key 'colour'"):
        Template.from_json({"name": "x", "colour": 1})
    assert tuple(TEMPLATES) == TEMPLATE_NAMES[:-1]


@pytest.mark.parametrize("name", list(TEMPLATES))
def test_only_llm_jp_replaces_system_turns(name: str) -> None:
    given = [TEMPLATES[name].writes_system(text) for text in ("Be brief.", "  Be brief.\n")]
    assert given == [name != "llm-jp"] * 2
    assert TEMPLATES[name].writes_system(FIXED)


@pytest.mark.parametrize(
    ("system", "written"),
    [("", False), ("Be kind.", False), ("{{ m.content | upper }}", True), ("{{ m.oops }}", False)],
)
def test_own_template_that_leaves_out_system_turns(system: str, written: bool) -> None:
    source = (
        f"{{% for m in messages %}}{{% if m.role == 'system' %}}{system}{{% else %}}"
        "{{ m.role + ': ' + m.content + '</s>' }}{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
    )
    template = own_template(with_template(source))
    assert template.writes_system("Be brief.") is written
    assert own_template(with_template(GEMMA)).writes_system("Be brief."), "it refuses system turns by itself"


def test_unknown_role_and_empty_conversation() -> None:
    with pytest.raises(InputError, match="no role 'documents'; it knows system, user, assistant"):
        TEMPLATES["sarashina"].chat_text([Message("documents", "x")])
    with pytest.raises(InputError, match="without messages"):
        TEMPLATES["chatml"].prompt_text([])


GEMMA = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}"
    "{% endif %}"
    "{% for message in messages %}{% set role = 'model' if message['role'] == 'assistant' else message['role'] %}"
    "{{ '<start_of_turn>' + role + '\\n' + message['content'] | trim + '<end_of_turn>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\\n' }}{% endif %}"
)


def with_template(source: str | None) -> object:
    tokenizer = unigram(scheme="first", special=("<start_of_turn>", "<end_of_turn>"))
    tokenizer.chat_template = source
    return tokenizer


def test_own_template() -> None:
    tokenizer = with_template(GEMMA)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<start_of_turn>", "<end_of_turn>"]})
    template = get_template("tokenizer", tokenizer)
    assert (template.terminator, template.turn_starts) == ("<end_of_turn>", ("<start_of_turn>",))
    assert template.generation == "<start_of_turn>model\n"
    assert template.prompt_text([ASK]) == "<s><start_of_turn>user\nHello there<end_of_turn>\n<start_of_turn>model\n"
    assert [s.text for s in template.segments([ASK, REPLY]) if s.answer] == ["the cat sat.<end_of_turn>"]
    assert template.to_jinja() == GEMMA
    assert Template.from_json(template.to_json()) == template
    with pytest.raises(InputError, match="refuses a conversation of system, user: System role not supported"):
        template.prompt_text([SYSTEM, ASK])


@pytest.mark.parametrize("source", [None, ""])
def test_own_template_missing(source: str | None) -> None:
    with pytest.raises(RecipeError, match="no chat template; choose one of chatml"):
        own_template(with_template(source))


def test_own_template_without_terminator() -> None:
    source = "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + '\\n' }}{% endfor %}"
    with pytest.raises(RecipeError, match="no terminator"):
        own_template(with_template(source))


LATE = (
    "{% for m in messages %}<|{{ m.role }}|>{% if 'BOOM' in m.content %}{{ 1 // 0 }}{% endif %}{{ m.content }}"
    "{% if m.role == 'assistant' %}</s>{% endif %}{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def test_a_template_that_fails_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = with_template("{{ 1 // 0 }}")
    monkeypatch.setattr(own, "name_or_path", "/models/mine")
    with pytest.raises(InputError, match=r"^/models/mine: the chat template fails on a conversation of user: ZeroDiv"):
        own_template(own)
    (tmp_path / "late.jinja").write_text(LATE)
    late = file_template(tmp_path / "late.jinja", with_template(None))
    with pytest.raises(InputError, match=r"^late\.jinja: the chat template fails on a conversation of user: ZeroDiv"):
        late.prompt_text([Message("user", "BOOM")])


def test_a_template_that_puts_nothing_between_turns() -> None:
    with pytest.raises(RecipeError, match="no terminator"):
        own_template(with_template("{% for m in messages %}{{ m.content }}{% endfor %}"))


def test_own_template_that_rewrites_what_was_said() -> None:
    source = (
        "{% for m in messages %}{{ m['role'] + ': ' + (m['content'] if loop.last else m['content'] | upper) + '</s>' }}"
        "{% endfor %}{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
    )
    with pytest.raises(InputError, match=r"message 2 \(assistant\): the chat template does not begin it with"):
        own_template(with_template(source)).segments([ASK, REPLY, MORE, REPLY])
