"""Checks the reward functions of a stage: that they load, and that the rows have the columns that they need."""

from collections.abc import Callable, Sequence
from pathlib import Path

from togi.core.records import Prompt, Record
from togi.core.settings import PromptsRef, Ref, parts, references
from togi.rewards.apart import check_function
from togi.rewards.columns import Columns, columns_of
from togi.rewards.settings import FunctionTerm
from togi.stages.base import StageSettings


def check_functions(settings: StageSettings, came: Callable[[Ref], Sequence[Record] | None]) -> list[str]:
    """Loads the reward functions of a stage and returns their names. `came` gives the records of a reference, if they
    are known. Raises InputError for a function that is missing, that does not load in time, or that needs a column that
    no row has."""
    terms = [part for part in parts(settings) if isinstance(part, FunctionTerm)]
    columns = _graded(settings, came) if terms else []
    for term in terms:
        check_function(Path(term.file), term.name, term.style, term.deadline, columns=columns)
    return [term.name for term in terms]


def _graded(settings: StageSettings, came: Callable[[Ref], Sequence[Record] | None]) -> list[Columns]:
    """The columns of the prompts that the stage reads, of each set alone, if they are known."""
    prompts = [(str(path[0]), ref) for path, ref in references(settings) if isinstance(ref, PromptsRef)]
    found = []
    for key, ref in sorted(prompts):
        if (records := came(ref)) is not None:
            asked = (record for record in records if isinstance(record, Prompt))
            found.append(columns_of(asked, "rows" if key == "prompts" else f"{key} rows"))
    return found
