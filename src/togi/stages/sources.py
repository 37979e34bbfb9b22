"""The sources of a stage's records and models: data sets and models, with their licences and terms.

Stages need no code for this. The sources of everything that a stage reads are recorded, and each record that it writes
gets the sources of its parents. A new record also gets those of the models that generate text in this stage.
"""

from array import array
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, replace
from importlib import metadata
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from togi.core.errors import DamagedFile
from togi.core.files import read_object
from togi.core.records import Pair, Provenance, Record, Sample, joined
from togi.core.sources import CARD, ModelSource

Sources = tuple[Provenance, ...]
ROOM = 1 << 16


class Descent:
    """The sources of the records that a stage has read, and those of the records that it writes, which follow from
    them.

    `writers` are the sources of the models that generate text here, by name; `graders` those of the reward models whose
    scores samples and pairs have. `unread` gives the sources of records that the stage reads by other means.

    The sources of a record are stored by its id only if needed: with writers, or when there is a second set of sources
    (some 130 bytes per record). Until then an id takes at most 16 bytes, however often the record is read, so that a
    streaming stage needs little memory.
    """

    def __init__(
        self,
        writers: Mapping[str, Sources] | None = None,
        graders: Sources = (),
        unread: Callable[[], Sequence[Sources]] = tuple,
    ) -> None:
        self.writers = {name: found for name, found in (writers or {}).items() if found}
        self.graders = graders
        self.unread = unread
        self.sets: dict[Sources, Sources] = {}  # each distinct set of sources, in order, mapped to itself
        self.of: dict[int, Sources] = {}  # by the hash of a record's id
        self._alike = array("q")  # such hashes, while all records have the same set
        self._room = ROOM  # number of hashes at which duplicates are removed
        self._by_id = True  # whether the records read are known individually
        self._made: dict[Any, Sources] = {}

    def note(self, records: Sequence[Record]) -> None:
        """Records the sources of records that the stage reads."""
        for record in records:
            self._note(record.id, record.sources)
            if isinstance(record, Sample):
                self._note(record.prompt.id, record.sources)

    def _note(self, name: str, found: Sources) -> None:
        found = self.sets.setdefault(found, found)
        if len(self.sets) == 1 and not self.writers:
            self._alike.append(hash(name))
            if len(self._alike) > self._room:
                self._alike = array("q", np.unique(self._alike).tobytes())
                self._room = max(ROOM, 2 * len(self._alike))
            return
        if self._alike:
            self.of |= dict.fromkeys(self._alike, next(iter(self.sets)))
            self._alike = array("q")
        self.of[hash(name)] = found

    def given(self, records: Sequence[Record]) -> list[Record]:
        """The records that the stage writes, each with the sources of what it was made from."""
        if not self.sets:
            self.sets, self._by_id = {each: each for each in self.unread()}, False
        if not (any(self.sets) or self.writers or self.graders):
            return list(records)
        return [self._given(record) for record in records]

    def _given(self, record: Record) -> Record:
        own, before = record.sources, self.of.get(hash(record.id))
        parents = () if before is not None else self._parents(record)
        writer = record.model if isinstance(record, Sample) and record.model in self.writers else None
        graded = isinstance(record, Sample | Pair)
        key = (own, before, parents, writer, graded)
        if key not in self._made:
            groups: list[Sources] = [own, before or (), *map(passed_on, parents)]
            if before is None and self.writers:
                groups += [self.writers[writer]] if writer else self.writers.values()
            self._made[key] = joined(chain(*groups, self.graders if graded else ()))
        found = tuple(each for each in self._made[key] if each != record.source)
        return record if found == record.inherited else replace(record, inherited=found)

    def _parents(self, record: Record) -> Sequence[Sources]:
        """The sources of a new record's parents; those of all records read if its parents are unknown."""
        listed = [self.of[hash(parent)] for parent in record.parents if hash(parent) in self.of]
        known = tuple(dict.fromkeys(listed))
        as_it_was = record.sources and not self._by_id and not self.writers
        return known or (() if as_it_was else tuple(self.sets))


def passed_on(sources: Sources) -> Sources:
    """The part of a record's sources that a record made from it keeps."""
    return tuple(each.passed_on for each in sources)


# --- models -----------------------------------------------------------------------------------------------------------


def model_sources(source: ModelSource) -> Sources:
    """The sources of a model from outside, or of one that togi trained: itself, if the recipe names its licence or
    terms, and what it was trained from. Raises DamagedFile as `trained_from` does."""
    own = Provenance(
        dataset=Path(source.name).name if source.kind == "path" else source.name,
        revision=_revision(source),
        licence=source.licence,
        terms=source.terms,
        inherit=source.inherit,
        kind="model",
    )
    trained = trained_from(Path(source.name)) if source.kind == "path" else ()
    return (*([own] if source.licence or source.terms else []), *trained)


def wrote(model: Sources) -> Sources:
    """The part of a model's sources that its answers have: the models that it comes from, and all sources that
    bind."""
    return tuple(each for each in model if each.kind == "model" or each.inherit)


def _revision(source: ModelSource) -> str:
    if source.kind == "package":
        return metadata.version(source.name)
    return "" if source.kind == "path" else source.revision


NAMES = tuple(each.name for each in fields(Provenance))


def trained_from(folder: Path) -> Sources:
    """The sources of a model that togi trained, from its folder; empty for other models. Raises DamagedFile if the file
    that names them is damaged."""
    card = folder / CARD
    found = read_object(card).get("sources") if card.exists() else None
    try:
        return tuple(Provenance(**{name: row[name] for name in NAMES}) for row in found or ())
    except (KeyError, TypeError):
        raise DamagedFile(f"{card}: damaged: its `sources` cannot be read") from None
