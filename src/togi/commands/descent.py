"""Finds what the model or the records of a finished stage were made from, as far as its run recorded it; for cards."""

from collections import Counter
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from importlib import metadata
from itertools import chain
from pathlib import Path

from togi.commands.published import shown_path
from togi.core.errors import RecipeError
from togi.core.outside import read_object
from togi.core.record_streams import file_sources
from togi.core.records import Provenance
from togi.core.settings import absolute, ingredients
from togi.core.sources import CARD, ModelSource
from togi.recipe.graph import kinds_of, model_source
from togi.recipe.locked import Locked, is_records, read_lock
from togi.recipe.source import read_tree
from togi.recipe.state import read_state
from togi.report.view import SourceView
from togi.stages.base import MODEL_FOLDER, output_path
from togi.stages.sources import trained_from


@dataclass(frozen=True, slots=True, kw_only=True)
class Root:
    """The model from outside that a chain of trainings began with: where it is, its revision at that time (a version,
    a commit, or the hash of a folder's files), and its name for people."""

    source: ModelSource
    revision: str
    shown: str


class Descent:
    """What led to one stage of a run. `root` is the model that its chain of `trainings` began with; None if it began
    with none from outside, or without `recipe`, the file of the run."""

    def __init__(self, run: Path, stage: str, recipe: Path | None = None) -> None:
        """Raises InputError if the run's files cannot be read."""
        self.locked: Locked = read_lock(run)
        self.stage = stage
        state = read_state(run)
        self.overrides: Sequence[str] = state.get("overrides", ())
        self.folders = {each["name"]: Path(each["folder"]) for each in state["stages"]}
        self.trainings = self.locked.trainings(stage)
        self.root = None if recipe is None else self._root(recipe)

    def _root(self, recipe: Path) -> Root | None:
        name = self.locked.root(self.stage)
        if name not in self.locked.models:
            return None
        source = replace(model_source(self.locked.models[name]), beside=str(recipe.resolve().parent))
        card = self.folders[self.trainings[0]] / MODEL_FOLDER / CARD
        said = read_object(card).get("base") if card.is_file() else None
        revision = said["revision"] if said else ""
        shown = self._as_named(name, source, recipe) if source.kind == "path" else f"{source.name} {revision}".strip()
        return Root(source=source, revision=revision, shown=shown)

    def _as_named(self, name: str, source: ModelSource, recipe: Path) -> str:
        """The relative path of a model as the recipe has it; else as `shown_path` gives it."""
        folder = recipe.resolve().parent
        with suppress(RecipeError, KeyError, TypeError, ValueError):  # the recipe may have changed since
            text = read_tree(recipe, tuple(self.overrides)).values["models"][name]["path"]
            if text.folder == folder and not text.startswith(("/", "~")) and str(absolute(text, folder)) == source.name:
                return str(text)
        return shown_path(source.name, folder)

    def of_model(self) -> list[SourceView]:
        """The sources of the stage's model. `records` is how many of the records that it was trained on, in all stages
        of the chain, come from the source."""
        counts: Counter[tuple[str, str, str]] = Counter()
        for path in dict.fromkeys(self._trained_on()):
            counts.update(_counts(path))
        return self._completed(trained_from(self.folders[self.stage] / MODEL_FOLDER), counts)

    def _trained_on(self) -> Iterable[Path]:
        """The files of records that the trainings read, some of them several times."""
        for name in self.trainings:
            for ref in dict.fromkeys(filter(is_records, ingredients(self.locked.stages[name]))):
                target = self.locked.target(ref)
                if target in self.folders:
                    kind = kinds_of(self.locked.stages[target]).get(ref.output, "")
                    path = self.folders[target] / output_path(kind, ref.output)
                    if path.is_file():
                        yield path

    def of_records(self, files: Iterable[Path]) -> list[SourceView]:
        """The sources of records in `files`, outputs of the stage, with their counts."""
        found: dict[Provenance, None] = {}
        counts: Counter[tuple[str, str, str]] = Counter()
        for path in files:
            found |= dict.fromkeys(chain.from_iterable(file_sources(path)))
            counts.update(_counts(path))
        return self._completed(list(found), counts)

    def _completed(self, found: Sequence[Provenance], counts: Counter[tuple[str, str, str]]) -> list[SourceView]:
        """The sources by name, with models whose licence nobody stated: records and models do not name these."""
        models = [self.locked.models[name] for name in self.locked.models_in(self.stage)]
        every = dict.fromkeys([*found, *(_source(model_source(spec)) for spec in models if not any(spec.says))])
        views = [SourceView(**asdict(each), records=counts.get(_key(each))) for each in every]
        return sorted(views, key=lambda view: (view.kind, view.dataset, view.revision))


def _counts(path: Path) -> Counter[tuple[str, str, str]]:
    found: Counter[tuple[str, str, str]] = Counter()
    for sources, count in file_sources(path).items():
        for key in dict.fromkeys(map(_key, sources)):
            found[key] += count
    return found


def _key(source: Provenance) -> tuple[str, str, str]:
    return source.kind, source.dataset, source.revision


def _source(source: ModelSource) -> Provenance:
    """A model from outside as a source without a licence."""
    name = Path(source.name).name if source.kind == "path" else source.name
    revision = "" if source.kind == "path" else source.revision
    if source.kind == "package":
        with suppress(metadata.PackageNotFoundError):
            revision = metadata.version(source.name)
    return Provenance(dataset=name, revision=revision, kind="model")
