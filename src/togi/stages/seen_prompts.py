"""Which prompts a stage learnt from: kept beside its work, so that an evaluation can tell whether a model, or a scorer
that judges it, has met its prompts before."""

from collections.abc import Iterable, Sequence

from togi.core.errors import DamagedFile
from togi.core.files import read_json, write_json
from togi.core.records import Message
from togi.core.seeds import digest
from togi.core.settings import Ref
from togi.stages.context import Context
from togi.text.compare import normalise

FILE = "learnt.json"


def keep_learnt(context: Context, init: Ref, prompts: Iterable[Sequence[Message]]) -> None:
    """Writes marks of `prompts`, and of all that the stage's initial model had learnt from by then."""
    marks = dict.fromkeys([*learnt(context, init), *map(mark, prompts)])
    if context.ranks.first:
        write_json(context.folder / FILE, list(marks))


def learnt(context: Context, ref: Ref) -> list[str]:
    """Marks of the prompts that `ref` learnt from; none are known of models from outside."""
    folder = context.inputs[ref].folder
    if folder is None or not (folder / FILE).exists():
        return []
    found = read_json(folder / FILE)
    if not isinstance(found, list):
        raise DamagedFile(f"{folder / FILE}: damaged: a list is needed, found {str(found)[:40]!r}")
    return found


def mark(messages: Sequence[Message]) -> str:
    """What names a prompt here: what its user says, but for case, spacing and punctuation."""
    return digest([normalise(message.content) for message in messages if message.role == "user"])[:16]
