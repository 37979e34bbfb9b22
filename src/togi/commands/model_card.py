"""Writes the cards of a trained model, in every language, into the folder of its export."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCardData

from togi.commands.descent import Descent, Root
from togi.commands.published import publish_lock, publish_recipe, shown_paths
from togi.core.files import write_text
from togi.core.outside import read_object
from togi.core.sampling import Recommended
from togi.core.sources import CARD, HUB_ID
from togi.model.load import LoadedModel
from togi.model.sizes import Shape
from togi.report.card_benchmarks import Benched, benched
from togi.report.card_parts import front_matter, licence_keys
from togi.report.card_words import LANGUAGES
from togi.report.collect import collect
from togi.report.curves import panels
from togi.report.model_card import ModelFacts, measured, model_card, readme_name
from togi.report.view import CellView, RunView, StageView
from togi.stages.table import STAGES
from togi.text.render import check_template

PLOTS = 6
CLEANING = [name for name, stage in STAGES.items() if stage.cleans]
"""The types of stages that drop records found in evaluation sets."""
STYLE = (
    "<style>text{font:10.5px sans-serif;fill:#5d6672}.grid{stroke:#e2ded5;fill:none}.line{fill:none;stroke-width:1.9;"
    "stroke:var(--s)}.faint{opacity:.3}.dashed{stroke-dasharray:4 4}.band{fill:var(--s);opacity:.17}.stack,.dot{"
    "fill:var(--s)}.alarm-mark{stroke:#b33951;fill:none}.c0{--s:#23507f}.c1{--s:#c8661b}.c2{--s:#2f8f6b}"
    ".c3{--s:#8a4f9e}.c4{--s:#b33951}.c5{--s:#6f7d1e}</style>"
)

PLAIN = {
    **dict.fromkeys(("repetition_penalty", "encoder_repetition_penalty"), 1.0),
    **dict.fromkeys(("no_repeat_ngram_size", "encoder_no_repeat_ngram_size", "min_length"), 0),
    "num_beams": 1,
    **dict.fromkeys(
        ("min_new_tokens", "suppress_tokens", "begin_suppress_tokens", "bad_words_ids", "sequence_bias"), None
    ),
    **dict.fromkeys(("forced_bos_token_id", "forced_eos_token_id", "exponential_decay_length_penalty"), None),
}
"""Settings of `generate` that change greedy answers, with the values that do not."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Trained:
    """The origin of a model: the folder of a run, the stage in it, the recipe's file, and the texts of its `card:`,
    with its `languages` (codes) and `licence`; `sampling` is recommended for answers."""

    run: Path
    stage: str
    recipe: Path
    texts: Mapping[str, str]
    languages: Sequence[str] = ()
    licence: str = ""
    sampling: Recommended | None = None


def write_cards(trained: Trained, descent: Descent, model: LoadedModel, source: Path, form: str, out: Path) -> None:
    """Writes README.md, the cards in the other languages, plots, the recipe and its lock into `out`. `source` is the
    folder of the model in the store, `form` the exported form. Raises InputError if the run cannot be read."""
    run = _run(trained, descent)
    stage = next(each for each in run.stages if each.name == trained.stage)
    known = {each.name: each.type for each in run.stages}
    facts = replace(
        _facts(trained, model, source, form),
        base="" if descent.root is None else descent.root.shown,
        trainings=[known[name] for name in descent.trainings],
        plots=tuple(_plots(stage, out)),
        file=next((path.name for path in out.glob("*.gguf")), ""),
    )
    front = front_matter(_front(trained, run, stage, facts, descent.root))
    for language in LANGUAGES:
        write_text(out / readme_name(language), f"{front}\n{model_card(run, trained.stage, facts, language)}")
    publish_recipe(trained.recipe, descent.overrides, out)
    publish_lock(descent.locked, trained.recipe.parent, out)


def _run(trained: Trained, descent: Descent) -> RunView:
    """The run, in which the stage of the model has all its sources, and its settings no folders of this machine."""

    def told(stage: StageView) -> StageView:
        settings = shown_paths(stage.settings, descent.locked.paths(), trained.recipe.parent)
        return replace(stage, sources=descent.of_model(), settings=settings)

    run = collect(trained.run)
    stages = [replace(each, cleans=each.type in CLEANING) for each in run.stages]
    return replace(run, stages=[told(each) if each.name == trained.stage else each for each in stages])


def _facts(trained: Trained, model: LoadedModel, source: Path, form: str) -> ModelFacts:
    """The facts that the model itself shows, without its base, its trainings and its plots."""
    said = read_object(source / CARD)
    template = model.template.bind(model.tokenizer)
    ends = check_template(template, model.tokenizer).terminator
    return ModelFacts(
        title=" ".join(trained.texts.get("title", "").split()) or f"{trained.run.name}: {trained.stage}",
        form=form,
        reward=model.kind == "scorer",
        base="",
        trainings=(),
        terminator=template.terminator,
        terminator_tokens=len(ends),
        special_end=len(ends) == 1 and _is_special(model.tokenizer, ends[0]),
        options=_options(model, ends, form),
        system=said.get("system"),
        sampling=None if model.kind == "scorer" else trained.sampling,
        shape=[
            *_shape(model),
            ("chat template", template.name),
            ("end of an answer", template.terminator),
            ("its token ids", ", ".join(map(str, ends))),
        ],
        texts=trained.texts,
    )


def _is_special(tokenizer: Any, token: int) -> bool:
    found = tokenizer.added_tokens_decoder.get(token)
    return found is not None and found.special


def _options(model: LoadedModel, ends: Sequence[int], form: str) -> dict[str, Any]:
    """Arguments of `generate` for the text that togi writes. The library takes over the generation settings of the
    base: they may change greedy answers, and next to an adapter they do not know where its answers end."""
    said = getattr(model.net, "generation_config", None)
    found = {} if said is None else said.to_diff_dict()
    ends_here = {"eos_token_id": ends[0]} if form == "adapter" and len(ends) == 1 else {}
    return ends_here | {name: value for name, value in PLAIN.items() if found.get(name, value) != value}


def _shape(model: LoadedModel) -> Iterator[tuple[str, str]]:
    """Rows about the network and its tokenizer."""
    config = model.net.config.to_dict()
    shape = Shape.of(config)
    yield "architecture", f"{type(model.net).__name__} ({shape.family})"
    yield "parameters", f"{sum(weight.numel() for weight in model.net.parameters()):,}"
    yield "layers", f"{shape.layers}"
    yield "hidden size", f"{shape.width:,}"
    yield "attention heads", f"{shape.heads}"
    yield "key and value heads", f"{shape.key_heads}"
    yield "head size", f"{shape.head_width}"
    yield "feed-forward size", f"{shape.ffn:,}"
    if shape.experts:
        yield "experts", f"{shape.experts}"
        yield "active experts", f"{shape.active}"
    yield "context", f"{config.get('max_position_embeddings', '')}"
    yield "tokenizer", type(model.tokenizer).__name__
    yield "vocabulary", f"{len(model.tokenizer):,}"
    names = {"bos": model.tokenizer.bos_token, "eos": model.tokenizer.eos_token, "pad": model.tokenizer.pad_token}
    yield "special tokens", ", ".join(f"{name} {token}" for name, token in names.items() if token)


def _front(trained: Trained, run: RunView, stage: StageView, facts: ModelFacts, root: Root | None) -> dict[str, Any]:
    """Front matter with the hub's keys; the measurements are its model-index."""
    libraries = {"merged": "transformers", "adapter": "peft"}
    base = root.source.name if root is not None and root.source.kind == "hub" else None
    task = "text-classification" if facts.reward else "text-generation"
    results = list(_results(run, trained.stage, task))
    data = ModelCardData(model_name=facts.title, eval_results=results) if results else ModelCardData()
    unsaid = any(not source.licence for source in stage.sources)
    licences = [trained.licence] if trained.licence else [] if unsaid else [each.licence for each in stage.sources]
    return {
        "language": [*trained.languages],
        **licence_keys(licences),
        "library_name": libraries.get(facts.form),
        "pipeline_tag": task,
        "base_model": base,
        "datasets": [source.dataset for source in stage.sources if HUB_ID.fullmatch(source.dataset)],
        "tags": ["togi", *(["reward-model"] if facts.reward else [])],
        "model-index": data.to_dict().get("model-index"),
    }


def _results(run: RunView, stage: str, task: str) -> Iterator[EvalResult]:
    """The figures of the model: those of comparisons and of its own stage, then those of benchmarks.

    The hub's library groups results by task and data set, whose name it does not read: `dataset_config` keeps
    measurements apart. Nothing in them is None, because the library drops that."""
    for found in measured(run, stage):
        row, policy = found.row, found.row.policy
        args: dict[str, Any] = {"low": policy.low, "high": policy.high, "level": policy.level, "n": policy.n}
        args |= {"overlap": found.overlap} if found.overlap else {}
        yield _result(task, (f"{run.name}: {found.stage}", found.stage), row.metric, policy.mean, args)
    for each in benched(run, stage):
        name = each.stage.name, each.view.benchmark
        for metric, one in each.figures():
            yield _result(task, (f"{run.name}: {', '.join(name)}", ".".join(name)), metric, one.value, _args(each, one))


def _args(found: Benched, one: CellView) -> dict[str, Any]:
    """The interval of a benchmark's figure, its count, and on how many of all its questions the model was trained."""
    bounds = {} if one.low is None or one.high is None else {"low": one.low, "high": one.high}
    level = {"level": found.view.level} if bounds else {}
    removed = {"decontaminated": found.decontaminated} if found.decontaminated else {}
    learnt = {"trained_on": "unknown" if found.leaks is None else found.leaks, "questions": found.view.rows}
    return {**bounds, **level, "n": one.n, **learnt, **removed}


def _result(
    task: str, dataset: tuple[str, str], metric: str, value: float | None, args: Mapping[str, Any]
) -> EvalResult:
    """A result; `dataset` is a name for readers and one that identifies the measurement."""
    return EvalResult(
        task_type=task,
        dataset_type="togi",
        dataset_name=dataset[0],
        dataset_config=dataset[1],
        metric_type=re.sub(r"[^a-z0-9]+", "_", metric.lower()).strip("_") or "figure",
        metric_name=metric,
        metric_value=value,
        metric_args=dict(args),
    )


def _plots(stage: StageView, out: Path) -> Iterator[tuple[str, str]]:
    """Writes the stage's curves as separate plots; yields titles and paths."""
    for place, panel in enumerate([each for each in panels(stage) if each.svg][:PLOTS]):
        path = f"plots/{place + 1}-{re.sub(r'[^a-z0-9]+', '-', panel.title.lower()).strip('-')}.svg"
        (out / "plots").mkdir(exist_ok=True)
        head, _, rest = str(panel.svg).partition(">")
        write_text(out / path, f'{head} xmlns="http://www.w3.org/2000/svg" width="680">{STYLE}{rest}')
        yield panel.title, path
