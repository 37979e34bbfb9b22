"""The descriptions saved with a model's weights: togi.json for togi, and README.md for people and hubs.

Both depend only on the settings and inputs of the stage: the same work gives the same bytes, regardless of the recipe's
name, the place and the time.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from togi.core.errors import TogiError
from togi.core.files import write_json, write_text
from togi.core.outside import read_object
from togi.core.records import Provenance
from togi.core.sources import CARD, ModelSource, hash_folder
from togi.model.inspect import Facts
from togi.model.network import STORED
from togi.text.template import Template

README = "README.md"
FORMAT = 2  # format 1 lacked base, data, licence, and the system prompt and sampling of training


@dataclass(frozen=True, slots=True, kw_only=True)
class Origin:
    """The base that a model was trained from: its name, the type of its stored weights, and its licence if known.
    `revision` is a commit, a version, or the hash of a folder's files; `place` is a hub id, or a folder."""

    name: str
    revision: str
    place: str
    on_hub: bool
    stored: torch.dtype
    licence: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class About:
    """What a stage knows about the model that it trained. `sources` are the data sets and models that it was made from;
    `spoken` holds the `system` and `sampling` of the training."""

    stage: str = ""
    origin: Origin | None = None
    sources: Sequence[Provenance] = ()
    spoken: Mapping[str, Any] = field(default_factory=dict)


def origin_of(source: ModelSource, facts: Facts) -> Origin:
    """The origin of a model. Raises InputError if its folder cannot be read."""
    return Origin(
        name=_name(source),
        revision=_revision(source),
        place=source.name if source.kind == "hub" else str(facts.folder),
        on_hub=source.kind == "hub",
        stored=stored_dtype(facts),
        licence=source.licence or _licence(facts.folder),
    )


def _name(source: ModelSource) -> str:
    """The name of a model; for a stage's model, that of the stage's folder, which is its fingerprint."""
    folder = Path(source.name)
    if source.kind != "path":
        return source.name
    return folder.parent.parent.name if folder.parent.name == "output" else folder.name


def _revision(source: ModelSource) -> str:
    if source.kind == "package":
        return metadata.version(source.name)
    return source.revision if source.kind == "hub" else hash_folder(Path(source.name), source.beside)


def _licence(folder: Path) -> str | None:
    if not (folder / CARD).exists():
        return None
    try:
        return read_object(folder / CARD).get("licence")
    except TogiError:
        return None


def stored_dtype(facts: Facts) -> torch.dtype:
    """The type in which most of a model's weights are stored, not counting weights in 4 bits."""
    sizes: dict[str, int] = {}
    for name, stored in (facts.weights or {}).items():
        if stored.dtype in STORED and ".weight." not in name:  # NAME.weight.* are the scales of 4-bit weights
            sizes[stored.dtype] = sizes.get(stored.dtype, 0) + torch.Size(stored.shape).numel()
    return STORED[max(sizes, key=lambda kind: sizes[kind])] if sizes else torch.float32


def write_card(folder: Path, name: str, kind: str, template: Template, about: About, *, adapter: bool = False) -> None:
    """Writes togi.json and README.md into a model's folder."""
    origin = about.origin
    base = None if origin is None else {"name": origin.name, "revision": origin.revision}
    card = {
        "format": FORMAT,
        "kind": kind,
        "name": name,
        "template": template.to_json(),
        "base": base,
        "data": [asdict(source) for source in about.sources if source.kind == "data"] or None,
        "sources": [asdict(source) for source in about.sources],
        "licence": None if origin is None else origin.licence,
        "system": None,
        "sampling": None,
    }
    write_json(folder / CARD, card | dict(about.spoken))
    write_text(folder / README, _readme(kind, template, about, adapter))


def _readme(kind: str, template: Template, about: About, adapter: bool) -> str:
    origin = about.origin
    front = ["library_name: peft" if adapter else "library_name: transformers", "tags: [togi]"]
    if origin is not None and origin.on_hub:
        front.append(f"base_model: {origin.name}")
    lines = ["---", *front, "---", "", "# Model card", "", f"Trained with togi{_by(about.stage)}.", ""]
    if origin is not None:
        lines += [f"- Base: {origin.name}, revision {origin.revision}"]
    lines += [f"- Data: {_named(source)}" for source in about.sources if source.kind == "data"]
    lines += [f"- Model: {_named(source)}" for source in about.sources if source.kind == "model"]
    licence = None if origin is None else origin.licence
    lines += [f"- Licence: {licence or 'that of the base; the terms of the data apply too'}"]
    if any(source.inherit for source in about.sources):
        lines += ["- Binding terms above also apply to this model, to its outputs, and to models trained from it."]
    if about.spoken.get("system"):
        lines += ["- It was trained with a system prompt, which is in togi.json: use the same one."]
    return "\n".join([*lines, "", "## How to load it", "", *_loading(kind, template, adapter), ""])


def _by(stage: str) -> str:
    return f" (stage `{stage}`)" if stage else ""


def _named(source: Provenance) -> str:
    revision = f", revision {source.revision}" if source.revision else ""
    binding = "binding" if source.inherit else ""
    terms = ", ".join(part for part in (source.licence, source.terms, binding) if part)
    return f"{source.dataset}{revision}" + (f" ({terms})" if terms else "")


def _loading(kind: str, template: Template, adapter: bool) -> list[str]:
    if adapter:
        return [
            "This folder contains a LoRA adapter; adapter_config.json names its base.",
            "",
            *_python("from peft import AutoPeftModelForCausalLM", "AutoPeftModelForCausalLM"),
        ]
    if kind == "scorer":
        name = "AutoModelForSequenceClassification"
        return [
            "A reward model: it gives one logit for a conversation rendered with its chat template; higher is better.",
            "",
            *_python(f"from transformers import {name}", name),
        ]
    return [
        f"An answer ends with `{template.terminator}`. If generation_config.json contains `stop_strings`, pass "
        "`tokenizer=tokenizer` to `generate`.",
        "",
        *_python("from transformers import AutoModelForCausalLM", "AutoModelForCausalLM"),
    ]


def _python(imports: str, name: str) -> list[str]:
    return [
        "```python",
        imports,
        "from transformers import AutoTokenizer",
        "",
        f'model = {name}.from_pretrained("FOLDER")',
        'tokenizer = AutoTokenizer.from_pretrained("FOLDER")',
        "```",
    ]
