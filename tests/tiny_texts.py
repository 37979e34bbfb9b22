"""Documents, chats and pairs for the tiny model of tiny_run, recipes that learn from them, and a bare context."""

import json
from pathlib import Path
from typing import Any

from tiny_pairs import rows
from tiny_run import QUESTIONS, tiny_model

from togi.core.codec import write_records
from togi.core.records import Chat, Document, Message
from togi.core.settings import ChatsRef, DocumentsRef, ModelRef, PairsRef
from togi.core.sources import ModelSource
from togi.stages.base import RECORDS_FILE
from togi.stages.context import Context, Control, Resolved

RECIPE = """\
name: tiny
seed: 3
models:
  base: {path: model, template: chatml}
data:
  raw: {path: raw.jsonl}
  dialogs: {path: chats.jsonl}
  preferences: {path: pairs.jsonl}
stages:
  begun:
    type: train.pretrain
    init: $base
    sources: [{documents: $raw, share: 0.6}, {chats: $dialogs, share: 0.4}]
    tokens: 2400
    batch_tokens: 400
    max_length: 64
    learning_rate: 3e-3
    validation: 0.2
    evaluate_every: 3
    save_every: 2
    micro_batch_tokens: 256
  taught:
    type: train.sft
    init: $begun
    chats: $dialogs
    batch_size: 3
    epochs: 2.5
    learning_rate: 3e-2
    validation: 0.25
    evaluate_every: 1
    choose: best
    save_every: 3
    keep: 1
    micro_batch_tokens: 256
  tuned:
    type: train.sft
    init: $taught
    chats: $dialogs
    batch_size: 3
    epochs: 4
    learning_rate: 3e-2
    lora: {rank: 4, alpha: 8}
    score_header: true
    save_every: 1
    micro_batch_tokens: 256
  judge:
    type: train.reward
    init: $taught
    pairs: $preferences
    batch_size: 3
    sweep: [1.0e-3, 1.0e-5]
    shuffled_control: true
    validation: 0.3
    save_every: 1
    micro_batch_tokens: 256
  head:
    type: train.reward
    init: $taught
    pairs: $preferences
    batch_size: 3
    epochs: 4
    learning_rate: 1e-2
    train_layers: 0
    shuffled_control: true
    validation: 0.3
    save_every: 2
"""
CLOSINGS = ["Because.", "With care.", "Rex!", "Water falls down.", "In the hills.", "29 days", "Yeast", "To rest."]


def chat(*turns: tuple[Any, ...], name: str = "c0") -> Chat:
    """A chat from (role, text) or (role, text, train)."""
    return Chat(id=name, messages=tuple(Message(*turn) for turn in turns))


def chats() -> list[Chat]:
    """Two turns per question; the answers differ in length."""
    return [
        chat(("user", question), ("assistant", answer), ("user", "Why?"), ("assistant", "So it is. " * i), name=f"c{i}")
        for i, (question, answer) in enumerate(zip(QUESTIONS, CLOSINGS, strict=True), 1)
    ]


def documents() -> list[Document]:
    """Texts of very different lengths."""
    return [Document(id=f"d{i}", text=f"{question} " * (i + 1)) for i, question in enumerate(QUESTIONS)]


def write_texts(folder: Path, text: str = RECIPE) -> Path:
    """Writes the recipe with its model and data into `folder`; returns its path."""
    tiny_model(folder / "model")
    lines = {
        "raw": [{"text": document.text} for document in documents()],
        "chats": [{"messages": [{"role": m.role, "content": m.content} for m in each.messages]} for each in chats()],
        "pairs": rows(),
    }
    for name, values in lines.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(value) + "\n" for value in values))
    path = folder / "tiny.yaml"
    path.write_text(text)
    return path


def bare_context(folder: Path, template: str = "chatml", **records: list[Any]) -> Context:
    """A stage's context in `folder` without a run: $base is the tiny model, and each keyword (chats, documents, pairs,
    more_chats ...) gives the records of `$keyword`."""
    if not (folder / "model").exists():
        tiny_model(folder / "model")
    source = ModelSource(kind="path", name=str(folder / "model"), template=template)
    inputs: dict[str, Resolved] = {ModelRef("$base"): Resolved("model", source=source)}
    for name, values in records.items():
        kind = name.rpartition("_")[2]
        write_records(folder / name / RECORDS_FILE, kind, values)
        ref = {"chats": ChatsRef, "documents": DocumentsRef, "pairs": PairsRef}[kind](f"${name}")
        inputs[ref] = Resolved(kind, folder=folder / name)
    (folder / "stage").mkdir(exist_ok=True)
    return Context(
        name="learn",
        folder=folder / "stage",
        cache=folder / "cache",
        seed=5,
        inputs=inputs,
        control=Control(send=lambda event: None),
        compute="float32",
    )
