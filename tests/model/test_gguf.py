"""The model library reads a written GGUF back as the same network, with the same tokenizer."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from gguf import GGUFReader, TokenType
from tiny_gguf import CHAT, GEMMA, LLAMA_3, NETWORKS, ROPE, ROWS, SIX, cut_by, made, named, sentencepiece
from tiny_models import at
from tokenizers import pre_tokenizers
from tokenizers_made import byte_bpe, unigram

from togi.core.errors import InputError
from togi.model.gguf_splits import SPLITS, digits, scaled_positions, split_of
from togi.model.gguf_words import words_of
from togi.model.gguf_write import write_gguf
from togi.model.likeness import likeness, same_tokens
from togi.model.load import LoadedModel, load
from togi.model.packages import convert_gguf
from togi.model.save import save_model
from togi.model.tokens import add_tokens, give_rows
from togi.text.template import get_template

LOCAL = {"rope_type": "linear", "factor": 4.0, "rope_theta": 1e4}


def there_and_back(model: LoadedModel, folder: Path, kept: str = "f32") -> LoadedModel:
    save_model(model, folder / "saved")
    write_gguf(folder / "saved", model, folder / "tiny.gguf", kept)  # type: ignore[arg-type]
    rope = model.net.config.rope_parameters if scaled_positions(folder / "tiny.gguf") else None
    convert_gguf(folder / "tiny.gguf", folder / "back", rope)
    return load(at(folder / "back"), folder)


@pytest.mark.parametrize("name", NETWORKS)
def test_the_library_reads_the_same_network_and_the_same_tokens(name: str, tmp_path: Path) -> None:
    model = named(name)
    back = there_and_back(model, tmp_path)
    same_tokens(model.tokenizer, back.tokenizer)
    near = likeness(model, back.net, "f32")
    assert near.worst < 1e-4 and near.others == 0 and near.trouble("f32") is None
    assert back.tokenizer.chat_template == model.template.bind(model.tokenizer).to_jinja()
    assert back.tokenizer.eos_token == "<|im_end|>"  # where an answer ends


def test_another_network_is_told(tmp_path: Path) -> None:
    near = likeness(made(), made(seed=1).net, "f32")
    assert near.trouble("f32") is not None and near.others > near.tokens / 2


@pytest.mark.parametrize(("kept", "least"), [("f16", 0.45), ("bf16", 0.45), ("q8_0", 0.25)])
def test_fewer_bits_are_smaller_and_near(kept: str, least: float, tmp_path: Path) -> None:
    model = made(initializer_range=0.05)
    back = there_and_back(model, tmp_path, kept)
    near = likeness(model, back.net, kept)
    assert near.mean > 0 and near.trouble(kept) is None
    kinds = {tensor.tensor_type.name for tensor in GGUFReader(tmp_path / "tiny.gguf").tensors}
    assert kinds == {kept.upper(), "F32"}  # norms stay in float32


@pytest.mark.parametrize(("kept", "others"), [("q8_0", {"F16", "Q8_0"}), ("bf16", {"BF16"})])
def test_rows_that_do_not_divide_into_blocks_are_near_too(kept: str, others: set[str], tmp_path: Path) -> None:
    model = made(hidden_size=40, intermediate_size=96, head_dim=12, initializer_range=0.05)  # 96 is a multiple of 32
    near = likeness(model, there_and_back(model, tmp_path, kept).net, kept)
    assert near.trouble(kept) is None
    assert {tensor.tensor_type.name for tensor in GGUFReader(tmp_path / "tiny.gguf").tensors} == {*others, "F32"}


@pytest.mark.parametrize(("kept", "size", "said"), [("f16", 1e5, "f16"), ("q8_0", 1e7, "q8_0"), ("q8_0", 1e5, None)])
def test_numbers_that_would_be_stored_as_infinity_are_told(kept, size, said, tmp_path: Path) -> None:
    model = made()
    with torch.no_grad():
        model.net.model.layers[1].mlp.down_proj.weight[0, 0] = size
    save_model(model, tmp_path / "saved")
    if said is None:
        write_gguf(tmp_path / "saved", model, tmp_path / "tiny.gguf", kept)
        return
    told = rf"layers\.1\.mlp\.down_proj\.weight has a number of size 1e\+0\d, too large for {said}; use --type bf16"
    with pytest.raises(InputError, match=told):
        write_gguf(tmp_path / "saved", model, tmp_path / "tiny.gguf", kept)
    assert not list(tmp_path.glob("*.gguf*"))


def test_a_window_that_no_layer_uses_is_written(tmp_path: Path) -> None:
    unused = {"use_sliding_window": True, "sliding_window": 5, "max_window_layers": 9}
    model = made("qwen2", cut_by(split_of("qwen2")), **unused)
    assert likeness(model, there_and_back(model, tmp_path).net, "f32").worst < 1e-4


@pytest.mark.parametrize(
    ("kind", "changes", "said"),
    [
        ("mixtral", {}, "model_type 'mixtral' cannot be written as GGUF; these can: llama, mistral"),
        ("mistral", {"sliding_window": 5}, "sliding_window: 5"),
        ("gemma3", {**GEMMA, "layer_types": SIX[::-1]}, "every sixth layer"),
        ("gemma3", {**GEMMA, "query_pre_attn_scalar": 9}, "query_pre_attn_scalar: 9"),
        ("gemma3", {**GEMMA, "final_logit_softcapping": 3.0}, r"final_logit_softcapping: 3\.0"),
        ("llama", {"rope_parameters": {"rope_type": "yarn", "factor": 2.0, **ROPE}}, "rope_type: yarn"),
        ("qwen3", {"rope_parameters": LLAMA_3, "use_sliding_window": False}, "rope_type: llama3"),
        ("qwen2", {"head_dim": 32, "use_sliding_window": False}, "head_dim: 32, not 16"),
        (
            "gemma3",
            {**GEMMA, "rope_parameters": {**GEMMA["rope_parameters"], "sliding_attention": LOCAL}},
            "of windowed",
        ),
        ("gemma3", {**GEMMA, "num_hidden_layers": 62, "layer_types": (SIX * 11)[:62]}, "62 layers"),
        ("gemma3", {**GEMMA, "hidden_activation": "silu"}, "the activation: silu, not gelu_pytorch_tanh"),
        ("gemma3", {**GEMMA, "attention_bias": True}, "attention_bias: true"),
        ("llama", {"hidden_act": "gelu"}, "the activation: gelu, not silu"),
        ("llama", {"mlp_bias": True}, "mlp_bias: true"),
    ],
)
def test_what_llama_cpp_would_compute_otherwise_is_refused(kind, changes, said, tmp_path: Path) -> None:
    model = made(kind, **changes)
    save_model(model, tmp_path / "saved")
    with pytest.raises(InputError, match=said):
        write_gguf(tmp_path / "saved", model, tmp_path / "tiny.gguf", "f32")
    assert not list(tmp_path.glob("*.gguf*"))


# --- tokenizers -------------------------------------------------------------------------------------------------------


def test_tokens_without_embeddings_are_left_out_and_told(tmp_path: Path) -> None:
    """Gemma 3 1B has such a token for images."""
    words = byte_bpe.__wrapped__(special=CHAT)
    words.add_tokens([f"<{number}>" for number in range(ROWS - len(words) + 1)])
    words.add_special_tokens({"pad_token": "<image>"})
    model = made(tokenizer=words)
    save_model(model, tmp_path / "saved")
    (note,) = write_gguf(tmp_path / "saved", model, tmp_path / "tiny.gguf", "f32")
    assert note.startswith("tokens without embeddings are left out of the file: '<") and note.endswith("'<image>'")
    fields = GGUFReader(tmp_path / "tiny.gguf").fields
    assert "<image>" not in fields["tokenizer.ggml.tokens"].contents()
    assert "tokenizer.ggml.padding_token_id" not in fields


def test_a_token_that_is_called_like_a_placeholder_stays_the_only_one() -> None:
    words = byte_bpe.__wrapped__(special=CHAT)
    words.add_tokens([f"[PAD{ROWS - 1}]"])
    pieces = words_of(words, ROWS, "m").pieces  # llama.cpp ends at once where two tokens have one text
    assert len({*pieces}) == len(pieces) == ROWS and pieces[len(words) - 1] == f"[PAD{ROWS - 1}]"


@pytest.mark.parametrize("bos", [True, False])
def test_added_tokens_and_the_ends_of_texts_survive(bos: bool, tmp_path: Path) -> None:
    words = byte_bpe.__wrapped__(special=CHAT, adds_bos=bos)
    new = add_tokens(words, ["<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"])
    model = replace(made(tokenizer=words), template=get_template("llama3-text"))
    give_rows(model.net, words, new)
    back = there_and_back(model, tmp_path)
    text = "<|start_header_id|>user<|end_header_id|>\n\nthe end<|eot_id|>"
    assert back.tokenizer(text)["input_ids"] == words(text)["input_ids"]
    fields = GGUFReader(tmp_path / "tiny.gguf").fields
    found = {
        name: fields[f"tokenizer.ggml.{name}"].contents() for name in ("eos_token_id", "eot_token_id", "add_bos_token")
    }
    ends = words.convert_tokens_to_ids("<|eot_id|>")
    assert found == {"eos_token_id": ends, "eot_token_id": ends, "add_bos_token": bos}
    kinds = fields["tokenizer.ggml.token_type"].contents()
    assert {kinds[words.convert_tokens_to_ids(token)] for token in new} == {int(TokenType.CONTROL)}


@pytest.mark.parametrize("name", [*SPLITS, "smollm"])
def test_the_way_to_cut_survives(name: str, tmp_path: Path) -> None:
    model = made(tokenizer=cut_by(digits() if name == "smollm" else split_of(name)))
    back = there_and_back(model, tmp_path)
    assert str(GGUFReader(tmp_path / "tiny.gguf").fields["tokenizer.ggml.pre"].contents()) == name
    for text in ("the end\n\n12 mats. 3456", "a  b   12\n 3", "it's I'LL 日本語2024年", "Привет,\n\n— 5"):
        ids, found = (each(text, add_special_tokens=False)["input_ids"] for each in (model.tokenizer, back.tokenizer))
        assert ids == found


def test_digits_are_cut_out_as_smollm2_learnt_it() -> None:
    """The library alone splits as GPT-2, which separates the two line ends before a digit."""
    cuts = [text for text, _ in digits().pre_tokenize_str("end.\n\n2.")]
    assert cuts == ["end", ".", "ĊĊ", "2", "."]


def test_a_way_to_cut_without_a_name_is_refused_and_so_is_another_kind() -> None:
    with pytest.raises(InputError, match="no name for the way in which its tokenizer splits"):
        words_of(cut_by(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)), ROWS, "m")
    with pytest.raises(InputError, match=r"m: its tokenizer is of type Unigram, which llama\.cpp would split"):
        words_of(unigram(), ROWS, "m")


def test_a_gguf_that_cuts_in_an_unknown_way_is_not_read_as_if_it_did_not(tmp_path: Path, monkeypatch) -> None:
    model = made()
    save_model(model, tmp_path / "saved")
    monkeypatch.setattr("togi.model.gguf_words.split_name", lambda state: "strange")
    write_gguf(tmp_path / "saved", model, tmp_path / "tiny.gguf", "f32")
    with pytest.raises(InputError, match=r"tiny\.gguf: its tokenizer splits texts by 'strange'"):
        convert_gguf(tmp_path / "tiny.gguf", tmp_path / "back")


def test_sentencepieces_kind_keeps_bytes_and_the_order_of_merges() -> None:
    words = words_of(sentencepiece(), 300, "m")
    assert words.model == "llama" and not words.merges and not words.space_first and words.adds == (False, False)
    score = dict(zip(words.pieces, words.scores, strict=True))
    assert score["th"] > score["the"] > score["▁the"] > score["an"] > score["en"]
    kinds = dict(zip(words.pieces, words.kinds, strict=True))
    assert [kinds[piece] for piece in ("<unk>", "<bos>", "<0x0A>", "the", "[PAD299]")] == [2, 3, 6, 1, 5]


def test_gemmas_tokens_survive(tmp_path: Path) -> None:
    model = made("gemma3", tokenizer=sentencepiece(), **GEMMA)
    back = there_and_back(model, tmp_path)
    same_tokens(model.tokenizer, back.tokenizer)
    text = "the  other and then\n the end, 日本"
    assert (
        model.tokenizer(text, add_special_tokens=False)["input_ids"]
        == back.tokenizer(text, add_special_tokens=False)["input_ids"]
    )
