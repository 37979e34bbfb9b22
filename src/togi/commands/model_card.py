"""Writes the cards of a trained model, in every language, into the folder of its export."""

import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCardData

from togi.core.files import write_text
from togi.core.outside import read_object
from togi.core.sources import CARD, HUB_ID
from togi.model.load import LoadedModel
from togi.model.sizes import Shape
from togi.report.card_parts import front_matter, licence_keys
from togi.report.card_words import LANGUAGES
from togi.report.collect import collect
from togi.report.curves import panels
from togi.report.model_card import ModelFacts, measured, model_card, readme_name
from togi.report.view import RunView, StageView
from togi.text.render import check_template

PLOTS = 6
LOCK = "recipe.lock.yaml"
STYLE = (
    "<style>text{font:10.5px sans-serif;fill:#5d6672}.grid{stroke:#e2ded5;fill:none}.line{fill:none;stroke-width:1.9;"
    "stroke:var(--s)}.faint{opacity:.3}.dashed{stroke-dasharray:4 4}.band{fill:var(--s);opacity:.17}.stack,.dot{"
    "fill:var(--s)}.alarm-mark{stroke:#b33951;fill:none}.c0{--s:#23507f}.c1{--s:#c8661b}.c2{--s:#2f8f6b}"
    ".c3{--s:#8a4f9e}.c4{--s:#b33951}.c5{--s:#6f7d1e}</style>"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Trained:
    """The origin of a model: the folder of a run, the stage in it, the recipe's file, and the texts of its `card:`,
    with its `languages` (codes) and `licence`."""

    run: Path
    stage: str
    recipe: Path
    texts: Mapping[str, str]
    languages: Sequence[str] = ()
    licence: str = ""


def write_cards(trained: Trained, model: LoadedModel, source: Path, form: str, out: Path) -> None:
    """Writes README.md, the cards in the other languages, plots, the recipe and its lock into `out`. `source` is the
    folder of the model in the store, `form` the exported form. Raises InputError if the run cannot be read."""
    run = collect(trained.run)
    stage = next(each for each in run.stages if each.name == trained.stage)
    facts = _facts(trained, stage, model, source, form, tuple(_plots(stage, out)))
    front = front_matter(_front(trained, run, stage, model, facts))
    for language in LANGUAGES:
        write_text(out / readme_name(language), f"{front}\n{model_card(run, trained.stage, facts, language)}")
    shutil.copyfile(trained.recipe, out / "recipe.yaml")
    if (trained.run / LOCK).is_file():
        shutil.copyfile(trained.run / LOCK, out / LOCK)


def _facts(
    trained: Trained, stage: StageView, model: LoadedModel, source: Path, form: str, plots: tuple[tuple[str, str], ...]
) -> ModelFacts:
    said = read_object(source / CARD)
    template = model.template.bind(model.tokenizer)
    ends = check_template(template, model.tokenizer).terminator
    base = said.get("base") or {}
    return ModelFacts(
        title=trained.texts.get("title") or f"{trained.run.name}: {trained.stage}",
        form=form,
        reward=model.kind == "scorer",
        base=" ".join(str(base[key]) for key in ("name", "revision") if base.get(key)),
        terminator=template.terminator,
        terminator_tokens=len(ends),
        system=said.get("system"),
        shape=[*_shape(model), ("chat template", template.name), ("end of an answer", f"{template.terminator} {ends}")],
        texts=trained.texts,
        plots=plots,
    )


def _shape(model: LoadedModel) -> Iterator[tuple[str, str]]:
    """Rows about the network and its tokenizer."""
    config = model.net.config.to_dict()
    shape = Shape.of(config)
    yield "architecture", f"{type(model.net).__name__} ({shape.family})"
    yield "parameters", f"{sum(weight.numel() for weight in model.net.parameters()):,}"
    yield "layers", f"{shape.layers}"
    yield "hidden size", f"{shape.width:,}"
    yield "attention heads", f"{shape.heads}, {shape.key_heads} of keys and values, {shape.head_width} wide"
    yield "feed-forward size", f"{shape.ffn:,}"
    if shape.experts:
        yield "experts", f"{shape.experts}, {shape.active} at work"
    yield "context", f"{config.get('max_position_embeddings', '')}"
    yield "tokenizer", f"{type(model.tokenizer).__name__}, {len(model.tokenizer):,} tokens"
    names = {"bos": model.tokenizer.bos_token, "eos": model.tokenizer.eos_token, "pad": model.tokenizer.pad_token}
    yield "special tokens", ", ".join(f"{name} {token}" for name, token in names.items() if token)


def _front(trained: Trained, run: RunView, stage: StageView, model: LoadedModel, facts: ModelFacts) -> dict[str, Any]:
    """Front matter with the hub's keys; the measurements are its model-index."""
    libraries = {"merged": "transformers", "adapter": "peft"}
    base, name = facts.base.partition(" ")[0], facts.title
    results = list(_results(run, trained.stage))
    data = ModelCardData(model_name=name, eval_results=results) if results else ModelCardData()
    unsaid = any(not source.licence for source in stage.sources)
    licences = [trained.licence] if trained.licence else [] if unsaid else [each.licence for each in stage.sources]
    return {
        "language": [*trained.languages],
        **licence_keys(licences),
        "library_name": libraries.get(facts.form),
        "pipeline_tag": "text-classification" if facts.reward else "text-generation",
        "base_model": base if HUB_ID.fullmatch(base) else None,
        "datasets": [source.dataset for source in stage.sources if HUB_ID.fullmatch(source.dataset)],
        "tags": ["togi", *(["reward-model"] if facts.reward else [])],
        "model-index": data.to_dict().get("model-index"),
    }


def _results(run: RunView, stage: str) -> Iterator[EvalResult]:
    task = "text-generation"
    for found in measured(run, stage):
        row, policy = found.row, found.row.policy
        args = {"low": policy.low, "high": policy.high, "level": policy.level, "n": policy.n}
        kind = re.sub(r"[^a-z0-9]+", "_", row.metric.lower()).strip("_")
        yield EvalResult(
            task_type=task,
            dataset_type="togi",
            dataset_name=f"{run.name}: {found.stage}",
            metric_type=kind,
            metric_name=row.metric,
            metric_value=policy.mean,
            metric_args=args,
        )


def _plots(stage: StageView, out: Path) -> Iterator[tuple[str, str]]:
    """Writes the stage's curves as separate plots; yields titles and paths."""
    for place, panel in enumerate([each for each in panels(stage) if each.svg][:PLOTS]):
        path = f"plots/{place + 1}-{re.sub(r'[^a-z0-9]+', '-', panel.title.lower()).strip('-')}.svg"
        (out / "plots").mkdir(exist_ok=True)
        head, _, rest = str(panel.svg).partition(">")
        write_text(out / path, f'{head} xmlns="http://www.w3.org/2000/svg" width="680">{STYLE}{rest}')
        yield panel.title, path
