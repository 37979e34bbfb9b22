"""The model library reads a written GGUF back as the same network, with the same tokenizer."""

from pathlib import Path

import pytest
from gguf import GGUFReader
from tiny_gguf import GEMMA, NETWORKS, ROPE, ROWS, SIX, cut_by, made, named, sentencepiece
from tiny_models import at
from tokenizers import pre_tokenizers
from tokenizers_made import unigram

from togi.core.errors import InputError
from togi.model.gguf_splits import SPLITS, digits, scaled_positions, split_of
from togi.model.gguf_words import words_of
from togi.model.gguf_write import write_gguf
from togi.model.likeness import likeness, same_tokens
from togi.model.load import LoadedModel, load
from togi.model.packages import convert_gguf
from togi.model.save import save_model


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


@pytest.mark.parametrize(
    ("kind", "changes", "said"),
    [
        ("mixtral", {}, "model_type 'mixtral' cannot be written as GGUF; these can: llama, mistral"),
        ("mistral", {"sliding_window": 5}, "sliding_window: 5"),
        ("gemma3", {**GEMMA, "layer_types": SIX[::-1]}, "every sixth layer"),
        ("gemma3", {**GEMMA, "query_pre_attn_scalar": 9}, "query_pre_attn_scalar: 9"),
        ("gemma3", {**GEMMA, "final_logit_softcapping": 3.0}, r"final_logit_softcapping: 3\.0"),
        ("llama", {"rope_parameters": {"rope_type": "yarn", "factor": 2.0, **ROPE}}, "rope_type: yarn"),
    ],
)
def test_what_llama_cpp_would_compute_otherwise_is_refused(kind, changes, said, tmp_path: Path) -> None:
    model = made(kind, **changes)
    save_model(model, tmp_path / "saved")
    with pytest.raises(InputError, match=said):
        write_gguf(tmp_path / "saved", model, tmp_path / "tiny.gguf", "f32")
    assert not list(tmp_path.glob("*.gguf*"))


# --- tokenizers -------------------------------------------------------------------------------------------------------


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
