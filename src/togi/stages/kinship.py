"""Whether two models are related: judges favour answers of their own family.

togi knows a model's family from folders and recipes: the model that it was trained from, and the models whose texts or
verdicts it was trained on. Similar names on a hub prove no relation.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from togi.core.errors import DamagedFile
from togi.core.files import read_object, write_json
from togi.core.settings import Ref
from togi.core.sources import CARD, ModelSource, hash_folder
from togi.core.sources import lineage as bases
from togi.stages.base import MODEL_FOLDER
from togi.stages.context import Context
from togi.stages.held_against import lineage, made_in

FILE = "writers.json"
HASH = 64
"""Digits of the revision of a model that was a folder; other revisions are versions and commits."""


@dataclass(frozen=True, slots=True)
class Kin:
    """The relatives of a model. `line` is the model and those that it was trained from, the latest first, and the first
    `own` of them are the model itself. It maps identities (a stage's folder, the hash of a folder, or a name on a hub)
    to names for people. `taught` are the identities of the stages and models that wrote or judged its training data."""

    line: Mapping[str, str]
    own: int = 1
    taught: Sequence[str] = ()

    @property
    def itself(self) -> list[str]:
        """The identities of the model itself."""
        return list(self.line)[: self.own]

    def to_json(self) -> dict[str, Any]:
        """As a plain mapping; files sort the keys of a mapping, so the line is a list."""
        return {"line": [[mark, name] for mark, name in self.line.items()], "own": self.own, "taught": self.taught}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Self:
        """The inverse of `to_json`."""
        return cls(dict(value["line"]), int(value["own"]), tuple(value["taught"]))


def same_model(one: Kin, other: Kin) -> bool:
    """Whether both are the same model, under whatever names."""
    return any(mark in other.itself for mark in one.itself)


def relation(name: str, one: Kin, judge: Kin) -> str:
    """How the model `name` is related to a judge, as a sentence without its full stop; empty if it is not known to
    be."""
    common = next((mark for mark in one.line if mark in judge.line), None)
    taught = (bool(set(_called(teacher)) & set(learner.taught)) for teacher, learner in ((judge, one), (one, judge)))
    if common in judge.itself:
        return f"{name} was trained from the judge"
    if common in one.itself:
        return f"the judge was trained from {name}"
    if common is not None:
        return f"{name} and the judge were both trained from {one.line[common]}"
    if next(taught):
        return f"{name} was trained on what the judge wrote or judged"
    return f"the judge was trained on what {name} wrote or judged" if next(taught) else ""


def _called(model: Kin) -> list[str]:
    """What the training data of other models call it: a folder from outside by its name, as in licences."""
    return [model.line[mark] if len(mark) == HASH else mark for mark in model.itself]


def kin(context: Context, ref: Ref) -> Kin:
    """The relatives of a model. Raises DamagedFile, and InputError for a folder that does not exist."""
    made, source = made_in(context, ref), context.model(ref)
    own = {made.name: ref.name} if made is not None else _itself(source)
    folder, store = Path(source.name) if source.kind == "path" else None, made.parent if made else context.cache
    line = own | (dict(_trained_from(store, folder, source.beside)) if folder is not None else {})
    stages = [] if made is None else [each.name for each in lineage(made)]
    writers = _sources(folder) if folder is not None else []
    return Kin(line, len(own), tuple(mark for mark in dict.fromkeys([*stages, *writers]) if mark not in line))


def _itself(source: ModelSource) -> dict[str, str]:
    """A model from outside: its identity and its name."""
    folder = Path(source.name)
    if source.kind == "path" and folder.is_dir():
        return {hash_folder(folder, source.beside): folder.name}
    return {f"{source.name}@{source.revision}" if source.stored else source.name: source.name}


def _trained_from(store: Path, folder: Path, beside: str) -> Iterator[tuple[str, str]]:
    """The models that the one in `folder` was trained from, the latest first: identities and names."""
    for base in bases(ModelSource(kind="path", name=str(folder), beside=beside))[1:]:
        yield from _itself(base).items()
    card = folder / CARD
    base = read_object(card).get("base") if card.is_file() else None
    if not isinstance(base, dict):
        return
    name, revision = str(base.get("name")), str(base.get("revision"))
    above = store / name / MODEL_FOLDER
    if len(revision) == HASH:
        yield revision, name
    if len(revision) != HASH or above.is_dir():
        yield name, name
    if above.is_dir() and above != folder:
        yield from _trained_from(store, above, beside)


def _sources(folder: Path) -> list[str]:
    """The models that the training data of the one in `folder` came from, as far as the recipe stated licences."""
    card = folder / CARD
    found = read_object(card).get("sources") if card.is_file() else None
    return [str(row.get("dataset")) for row in found or () if isinstance(row, dict) and row.get("kind") == "model"]


# --- the writers of samples -------------------------------------------------------------------------------------------


def keep_writers(context: Context, refs: Sequence[Ref]) -> None:
    """Writes the relatives of the models that answer in this stage, next to its output, for judges."""
    write_json(context.folder / FILE, {ref.name: kin(context, ref).to_json() for ref in refs})


def writers(context: Context, samples: Ref) -> dict[str, Kin]:
    """The relatives of the models that wrote `samples`, by the names that samples have, as far as they are known.
    Raises DamagedFile."""
    folder = context.inputs[samples].folder
    paths = [] if folder is None else [made / FILE for made in lineage(folder) if (made / FILE).is_file()]
    found: dict[str, Kin] = {}
    for path in reversed(paths):  # the nearest stage decides
        try:
            found |= {name: Kin.from_json(value) for name, value in read_object(path).items()}
        except (KeyError, TypeError, ValueError):
            raise DamagedFile(f"{path}: damaged: it does not describe models") from None
    return found
