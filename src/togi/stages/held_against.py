"""Records which evaluation sets a model's data was compared with: `decontaminate` writes this next to its output, and
an evaluation finds it through the lineage of the model."""

from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from togi.core.errors import DamagedFile
from togi.core.files import read_json, read_object
from togi.core.settings import Ref
from togi.stages.context import Context

FILE = "held_against.json"
MADE_FROM = "made_from.json"


@dataclass(frozen=True, slots=True)
class Held:
    """Stage `stage` compared `records` records with the set `where`, whose content is identified by `mark`; `matched`
    records were removed."""

    stage: str
    where: str
    mark: str
    matched: int
    records: int

    def to_json(self) -> dict[str, Any]:
        """As a plain mapping."""
        return asdict(self)


def held_against(context: Context, ref: Ref, tests: Ref) -> list[Held]:
    """The comparisons with the set `tests` among everything that `ref` was made from; none for models from outside.

    Raises DamagedFile.
    """
    folder, mark = made_in(context, ref), context.output_mark(tests)
    found = [] if folder is None else [held for made in lineage(folder) for held in _read(made / FILE)]
    return [held for held in dict.fromkeys(found) if held.mark == mark]


def told(found: Iterable[Held]) -> str:
    """Comparisons in words."""
    each = (f"{held.stage}: {held.matched} of {held.records} records matched and were left out" for held in found)
    return "; ".join(each)


def made_in(context: Context, ref: Ref) -> Path | None:
    """The folder of the stage that made `ref`, also if the recipe names a path into that folder; None for what comes
    from outside."""
    target = context.inputs[ref]
    if target.folder is not None:
        return target.folder
    return None if target.source is None or target.source.kind != "path" else stage_of(Path(target.source.name))


def stage_of(model: Path) -> Path | None:
    """The folder of the stage that a model's folder is in; None if it is in none."""
    output = model.resolve().parent
    return output.parent if output.name == "output" and (output.parent / MADE_FROM).is_file() else None


def lineage(folder: Path) -> Iterator[Path]:
    """The folder of a stage and those of all stages that it was made from, each once."""
    waiting, seen = [folder], {folder: None}
    while waiting:
        here = waiting.pop(0)
        yield here
        if (here / MADE_FROM).exists():
            for name in read_object(here / MADE_FROM).get("made_from", {}):
                other = folder.parent / name.partition("/")[0]
                if other not in seen:
                    seen[other] = None
                    waiting.append(other)


def _read(path: Path) -> list[Held]:
    if not path.exists():
        return []
    try:
        return [Held(**each) for each in read_json(path)]
    except TypeError:
        raise DamagedFile(f"{path}: damaged: it is not a list of comparisons") from None
