"""Makes a recipe of one stage from the words of `togi evaluate MODEL BENCHMARK...` and similar commands.

So the measurements of a command are stored, resumed and reported like those of a recipe.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import Any, get_args

from togi.core.errors import RecipeError
from togi.core.files import read_cache
from togi.core.seeds import digest
from togi.core.settings import Ref
from togi.core.sources import HUB_ID
from togi.data.presets import PRESETS
from togi.recipe.document import compose, flatten
from togi.recipe.graph import Graph, build
from togi.recipe.limit import limited
from togi.recipe.schema import validate
from togi.recipe.source import Tree
from togi.stages.evaluation.benchmarks.base import BenchmarkType
from togi.stages.evaluation.benchmarks.table import BENCHMARKS

WHERE = "command line"
STAGE = "scores"
SCORE = "score"
MODELS = {"model": "causal", "scorer": "reward", "embedder": "embedder"}
"""The kind of a `models:` entry, by the type of a reference to it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Named:
    """A model of the command line: its name, and its entry under `models:`. `kinds` says whether it can be a language
    model, a reward model or both; a model that is not on this machine may be either."""

    name: str
    entry: Mapping[str, Any]
    kinds: Sequence[str] = ("model", "scorer")


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """The models and benchmarks to measure. `judge` and `baseline` are None if the benchmarks need none. Paths of
    benchmarks are relative to `folder`. `on_bad_row` is what to do with a row that does not fit: error or drop."""

    models: Sequence[Named]
    benchmarks: Sequence[str]
    judge: Named | None = None
    baseline: Named | None = None
    limit: int | None = None
    on_bad_row: str = "error"
    folder: Path = field(default_factory=Path)


@dataclass(slots=True)
class _Parts:
    """The sections of the recipe under construction."""

    on_bad_row: str = "error"
    models: dict[str, Any] = field(default_factory=dict)
    data: dict[str, Any] = field(default_factory=dict)

    def model(self, name: str, entry: Mapping[str, Any]) -> str:
        """A reference to a model; equal entries are declared once, and another entry with the same name gets a
        number."""
        return self._declared(self.models, name, entry)

    def records(self, text: str, folder: Path) -> str:
        """A reference to data by its path, its preset or its hub id."""
        entry = _data(text, folder) | ({"on_bad_row": self.on_bad_row} if self.on_bad_row != "error" else {})
        return self._declared(self.data, Path(text).name.partition(".")[0], entry)

    def _declared(self, section: dict[str, Any], text: str, entry: Mapping[str, Any]) -> str:
        for name, known in section.items():
            if known == entry:
                return f"${name}"
        plain = re.sub(r"[^A-Za-z0-9_-]", "_", text)[:60]
        plain = plain if re.match(r"[A-Za-z_]", plain) else f"_{plain}"
        taken = {**self.models, **self.data, STAGE: None}
        names = (plain, *(f"{plain}_{number}" for number in range(2, len(taken) + 3)))
        name = next(each for each in names if each not in taken)
        section[name] = dict(entry)
        return f"${name}"


def refuse_unknown(benchmarks: Sequence[str]) -> None:
    """Raises RecipeError for the first word that names no benchmark or no data; reads no file."""
    for word in benchmarks:
        _settings(_read(word, Path()), Path(), _Parts())


def graph_of(wanted: Measured) -> Graph:
    """The recipe as a graph. Raises RecipeError for a benchmark that is unknown or cannot measure these models."""
    parts = _Parts(wanted.on_bad_row)
    given = [_read(word, wanted.folder) for word in wanted.benchmarks]
    refs = [_subject(model, given, parts) for model in wanted.models]
    stage: dict[str, Any] = {"type": "evaluate", "models": refs}
    if wanted.judge is not None:
        stage["judge"] = parts.model(wanted.judge.name, {**wanted.judge.entry, "kind": "causal"})
    if wanted.baseline is not None:
        stage["baseline"] = _subject(wanted.baseline, given, parts)
        if stage["baseline"] not in refs and not any(BENCHMARKS[values["type"]].against for values in given):
            stage["models"] = [stage["baseline"], *refs]  # the baseline must be measured too
    stage["benchmarks"] = [_settings(values, wanted.folder, parts) for values in given]
    return _graph("-".join(["evaluate", *(ref[1:] for ref in refs)]), parts, stage, wanted.limit)


def score_graph(model: Named, file: Path, on_bad_row: str = "error") -> Graph:
    """A recipe that scores the answers of a file. Raises RecipeError for a missing file."""
    parts = _Parts(on_bad_row)
    scorer = parts.model(model.name, {**model.entry, "kind": "reward"})
    stage = {"type": "score", "samples": parts.records(str(file), Path()), "scorer": scorer, "as": SCORE}
    return _graph(f"score-{scorer[1:]}", parts, stage, None)


def _graph(name: str, parts: _Parts, stage: Mapping[str, Any], limit: int | None) -> Graph:
    """A recipe of one stage, whose name distinguishes it from others with the same models."""
    marked = f"{name[:60]}-{digest([list(parts.models.items()), list(parts.data.items()), stage])[:6]}"
    values = {"name": marked, "models": parts.models, "data": parts.data, "stages": {STAGE: dict(stage)}}
    recipe = validate(Tree(values, {(): WHERE}))
    return build(recipe if limit is None else limited(recipe, limit))


def _subject(model: Named, given: Sequence[Mapping[str, Any]], parts: _Parts) -> str:
    """A reference to a model of a kind that every benchmark measures. Raises RecipeError if there is no such kind."""
    kinds = list(model.kinds)
    for values in given:
        allowed = BENCHMARKS[values["type"]].subjects
        if not any(kind in allowed for kind in kinds):
            words = {"model": "language models", "scorer": "reward models (--reward)"}
            raise RecipeError(
                f"{WHERE}: {values['type']} measures {' and '.join(words[kind] for kind in allowed)}, which "
                f"{model.name} is not"
            )
        kinds = [kind for kind in kinds if kind in allowed]
    return parts.model(model.name, {**model.entry, "kind": MODELS[kinds[0]]})


def _read(word: str, folder: Path) -> dict[str, Any]:
    """The settings in a word: TYPE, TYPE:DATA, or a map {type: TYPE, ...}."""
    if word.lstrip().startswith("{"):
        found = flatten(compose(word, lambda line: f"{WHERE} ({word})", folder), (), {})
        return {**found, "type": _known(str(found.get("type", "")))}
    kind, _, data = word.partition(":")
    kind = _known(kind)
    column = _first_data(BENCHMARKS[kind])
    if data and column is None:
        raise RecipeError(f"{WHERE}: {word}: {kind} reads no data; write {kind} alone")
    return {"type": kind, **({column: data} if data and column else {})}


def _known(kind: str) -> str:
    if kind not in BENCHMARKS:
        close = get_close_matches(kind, BENCHMARKS, 1)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        raise RecipeError(
            f"{WHERE}: there is no benchmark {kind!r}{hint} (allowed: {', '.join(BENCHMARKS)}); write TYPE:DATA, or "
            "'{type: TYPE, ...}' with its settings"
        )
    return kind


def _first_data(kind: BenchmarkType) -> str | None:
    """The setting that names the data of a benchmark."""
    found = [name for name in kind.settings.model_fields if _kind_of(kind, name) not in (None, *MODELS)]
    return found[0] if found else None


def _kind_of(kind: BenchmarkType, setting: str) -> str | None:
    """The target of a setting: model, scorer, embedder, or a kind of records; None if it is not a reference."""
    types = list(_types(kind.settings.model_fields[setting].annotation))
    refs = [each for each in types if isinstance(each, type) and issubclass(each, Ref)]
    return refs[0].kinds[0] if refs else None


def _types(annotation: Any) -> Iterator[Any]:
    """A type and the types inside it: of a union, a list, an annotation."""
    yield annotation
    for each in get_args(annotation):
        yield from _types(each)


def _settings(values: Mapping[str, Any], folder: Path, parts: _Parts) -> dict[str, Any]:
    """The settings of a benchmark, after declaring the data and models that they name. Raises RecipeError for a
    benchmark without its data."""
    kind = BENCHMARKS[values["type"]]
    column = _first_data(kind)
    if column is not None and kind.settings.model_fields[column].is_required() and column not in values:
        raise RecipeError(
            f"{WHERE}: {kind.name} needs {column}: write {kind.name}:DATA, a file, a folder, a preset or a hub id"
        )
    return {name: _declared(kind, name, value, folder, parts) for name, value in values.items()}


def _declared(kind: BenchmarkType, name: str, value: Any, folder: Path, parts: _Parts) -> Any:
    what = _kind_of(kind, name) if name in kind.settings.model_fields else None
    if what is None:
        return value
    if isinstance(value, list):
        return [_declared(kind, name, each, folder, parts) for each in value]
    if what in MODELS:
        text = str(value)
        if text[:1] == "$" and text[1:] in parts.models:  # a measured model, by its name in tables
            return text
        entry = {"path": str((folder / text).resolve())} if (folder / text).is_dir() else {"hub": text}
        return parts.model(Path(text).name, {**entry, "kind": MODELS[what]})
    return parts.records(str(value), folder)


def _data(text: str, folder: Path) -> dict[str, Any]:
    """The entry under `data:` for a path, a preset or a hub id. Raises RecipeError for anything else."""
    if (folder / text).exists():
        return {"path": str((folder / text).resolve())}
    if text in PRESETS:
        return {"preset": text}
    if HUB_ID.fullmatch(text) and not Path(text).suffix:
        return {"hub": text}
    raise RecipeError(f"{WHERE}: {text!r} is not a file, folder, preset or hub id (owner/name)")


def bad_rows(graph: Graph, store: Path) -> dict[str, dict[str, int]]:
    """The counts of rows that were left out when the data of a finished run were read, by name and reason."""
    read = {name: node for name, node in graph.nodes.items() if name not in graph.recipe.stages}
    files = {name: store / node.folder_name / "summary.json" for name, node in read.items()}
    counts = {name: (read_cache(file) or {}).get("drops", {}) for name, file in files.items()}
    return {name: found for name, found in counts.items() if found}
