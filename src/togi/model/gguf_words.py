"""Writes a tokenizer as GGUF: pieces, token types, merges or scores, and the token that ends an answer."""

import json
from collections.abc import Container
from dataclasses import dataclass
from typing import Any

import gguf
from gguf import TokenType

from togi.core.errors import InputError
from togi.model.gguf_splits import split_name

UNREACHED = -1e6
"""The score of a piece that no merge produces."""


@dataclass(frozen=True, slots=True)
class Words:
    """The description of a tokenizer in a GGUF. `model` and `cuts` are llama.cpp's names; byte-level tokenizers have
    `merges`, SentencePiece-style ones `scores`. `lost` are tokens without embeddings, which no GGUF can hold."""

    model: str
    cuts: str
    pieces: list[str]
    kinds: list[int]
    merges: list[str]
    scores: list[float]
    adds: tuple[bool, bool]
    space_first: bool
    lost: list[str]


def words_of(tokenizer: Any, rows: int, name: str) -> Words:
    """Describes the fast tokenizer of the model `name`, for a network with `rows` embeddings; rows without a token get
    a placeholder.

    Raises InputError for a tokenizer without a name in llama.cpp, which would split texts differently.
    """
    state = state_of(tokenizer)
    model = state["model"]
    if model["type"] != "BPE":
        raise InputError(
            f"{name}: its tokenizer is of type {model['type']}, which llama.cpp would split into other tokens; "
            "only BPE can be written as GGUF, so use --format merged"
        )
    bytewise = not model.get("byte_fallback")
    cuts = split_name(state) if bytewise else "default"
    if cuts is None:
        raise InputError(
            f"{name}: llama.cpp has no name for the way in which its tokenizer splits texts before merges, so it "
            "cannot be written as GGUF; use --format merged"
        )
    lost = _cut(state, rows)
    pieces, kinds = _pieces(state, rows)
    merges = [pair if isinstance(pair, str) else " ".join(pair) for pair in model["merges"]]
    return Words(
        model="gpt2" if bytewise else "llama",
        cuts=cuts,
        pieces=pieces,
        kinds=kinds,
        merges=merges if bytewise else [],
        scores=[] if bytewise else _scores(pieces, merges),
        adds=_adds(tokenizer),
        space_first=_space_first(state),
        lost=lost,
    )


def state_of(tokenizer: Any) -> dict[str, Any]:
    """The state of a fast tokenizer: the value of its tokenizer.json."""
    return json.loads(tokenizer.backend_tokenizer.to_str())


def _cut(state: dict[str, Any], rows: int) -> list[str]:
    """Removes the tokens whose ids are `rows` or more from the state of a tokenizer (Gemma 3 1B has one for images);
    returns them."""
    added = {token["content"]: token["id"] for token in state["added_tokens"]}
    lost = [text for text, place in {**state["model"]["vocab"], **added}.items() if place >= rows]
    state["model"]["vocab"] = {text: place for text, place in state["model"]["vocab"].items() if place < rows}
    state["added_tokens"] = [token for token in state["added_tokens"] if token["id"] < rows]
    return lost


def _placeholder(place: int, known: Container[str]) -> str:
    """The text of an embedding without a token: llama.cpp refuses files in which two tokens have one text."""
    text = f"[PAD{place}]"
    while text in known:
        text = f"[{text}]"
    return text


def _pieces(state: dict[str, Any], rows: int) -> tuple[list[str], list[int]]:
    known = {*state["model"]["vocab"], *(token["content"] for token in state["added_tokens"])}
    pieces = [_placeholder(place, known) for place in range(rows)]
    kinds = [int(TokenType.UNUSED)] * rows
    unknown = state["model"].get("unk_token")
    for text, place in state["model"]["vocab"].items():
        pieces[place] = text
        is_byte = state["model"].get("byte_fallback") and len(text) == 6 and text.startswith("<0x") and text[-1] == ">"
        kinds[place] = int(TokenType.UNKNOWN if text == unknown else TokenType.BYTE if is_byte else TokenType.NORMAL)
    for token in state["added_tokens"]:
        pieces[token["id"]] = token["content"]
        if token["content"] != unknown:
            kinds[token["id"]] = int(TokenType.CONTROL if token["special"] else TokenType.USER_DEFINED)
    return pieces, kinds


def _scores(pieces: list[str], merges: list[str]) -> list[float]:
    """The scores of pieces: minus the rank of the first merge that produces a piece, since SentencePiece merges the
    highest score first."""
    order: dict[str, int] = {}
    for place, pair in enumerate(merges):
        order.setdefault(pair.replace(" ", "", 1), place)
    return [float(-order[piece]) if piece in order else 0.0 if len(piece) == 1 else UNREACHED for piece in pieces]


def _adds(tokenizer: Any) -> tuple[bool, bool]:
    """Whether the tokenizer adds its BOS token before a text, and its EOS token after it."""
    bare, whole = (tokenizer("a", add_special_tokens=special)["input_ids"] for special in (False, True))
    return whole[: len(bare)] != bare and whole[0] == tokenizer.bos_token_id, whole[-1] != bare[-1]


def _space_first(state: dict[str, Any]) -> bool:
    """Whether a text gets a space before its first word."""
    parts = [state.get("normalizer") or {}, state.get("pre_tokenizer") or {}]
    parts += [each for part in parts for key in ("normalizers", "pretokenizers") for each in part.get(key, ())]
    return any(
        part.get("type") == "Prepend"
        or part.get("add_prefix_space", False)
        or (part.get("type") == "Metaspace" and part.get("prepend_scheme") != "never")
        for part in parts
    )


def write_words(writer: gguf.GGUFWriter, words: Words, tokenizer: Any, end: int | None, template: str) -> None:
    """Writes the tokenizer, the id that ends an answer (None: the tokenizer's own) and the chat template as Jinja."""
    writer.add_tokenizer_model(words.model)
    writer.add_tokenizer_pre(words.cuts)
    writer.add_token_list(words.pieces)
    if words.scores:
        writer.add_token_scores(words.scores)
    writer.add_token_types(words.kinds)
    if words.merges:
        writer.add_token_merges(words.merges)
    own = tokenizer.eos_token_id
    ids = {"bos": tokenizer.bos_token_id, "eos": own if end is None else end, "unk": tokenizer.unk_token_id}
    for name, value in {**ids, "pad": tokenizer.pad_token_id}.items():
        if value is not None and value < len(words.pieces):
            getattr(writer, f"add_{name}_token_id")(value)
    if end is not None and end != own:
        writer.add_eot_token_id(end)
    writer.add_add_bos_token(words.adds[0])
    writer.add_add_eos_token(words.adds[1])
    writer.add_add_space_prefix(words.space_first)
    writer.add_chat_template(template)
