"""The records that a stage drops: some thousand in memory, the others on disk, the counts in memory."""

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import overload

from togi.core.files import atomic_file
from togi.core.records import Drop

DROPS_FILE = "drops.json"
ASIDE = ".drops.tmp"
"""The file of drops until the stage ends; a stage that continues after a kill drops all of them again."""
HELD = 4096


class DropLog(Sequence[Drop]):
    """The drops of a stage, in order; `counts` is their number by reason.

    With a `folder`, fewer than HELD are in memory: the others are in a file there, as lines of [id, reason].
    """

    def __init__(self, stage: str, folder: Path | None) -> None:
        self.stage = stage
        self.counts: Counter[str] = Counter()
        self._folder = folder
        self._held: list[Drop] = []

    def add(self, name: str, reason: str) -> None:
        """Records the drop of the record with this id. Raises OSError if the disk is full."""
        self.counts[reason] += 1
        self._held.append(Drop(id=name, stage=self.stage, reason=reason))
        if self._folder is not None and len(self._held) >= HELD:
            with (self._folder / ASIDE).open("a" if len(self) > HELD else "w", encoding="utf-8") as file:
                file.writelines(f"{json.dumps([each.id, each.reason])}\n" for each in self._held)
            self._held = []

    def finish(self) -> None:
        """Writes `drops.json`, a list of {id, reason}, if there are drops. Nothing may be dropped afterwards.

        Raises OSError if the disk is full.
        """
        if self._folder is None or not len(self):
            return
        with atomic_file(self._folder / DROPS_FILE) as temporary, temporary.open("w", encoding="utf-8") as file:
            before = "["
            for each in self:
                file.write(f"{before}\n {_row(each)}")
                before = ","
            file.write("\n]\n")
        (self._folder / ASIDE).unlink(missing_ok=True)

    def __len__(self) -> int:
        return self.counts.total()

    def __iter__(self) -> Iterator[Drop]:
        if len(self) > len(self._held):
            assert self._folder is not None
            with (self._folder / ASIDE).open(encoding="utf-8") as file:
                for line in file:
                    name, reason = json.loads(line)
                    yield Drop(id=name, stage=self.stage, reason=reason)
        yield from self._held

    @overload
    def __getitem__(self, index: int) -> Drop: ...
    @overload
    def __getitem__(self, index: slice) -> list[Drop]: ...
    def __getitem__(self, index: int | slice) -> Drop | list[Drop]:
        return list(self)[index]


def _row(drop: Drop) -> str:
    """A drop in the format of an item in a list that `core.files.write_json` writes."""
    name, reason = (json.dumps(each, ensure_ascii=False) for each in (drop.id, drop.reason))
    return f'{{\n  "id": {name},\n  "reason": {reason}\n }}'
