"""The card of an exported data set: README.md in the hub's format."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from togi.report.card_parts import cell, front_matter, licence_keys, source_cells, step_cells, table, ways_to
from togi.report.card_words import WORDS
from togi.report.formatting import whole
from togi.report.view import RunView, SourceView

NONE = "not stated"
STEP = ("stage", "type", "in", "out", "dropped")
SOURCES = ("source", "revision", "records", "licence", "terms")
COLUMNS = {
    "id": "16 hex digits, derived from the record's origin",
    "parents": "ids of the records that it was made from",
    "source": "the data set that it was read from: name, revision, licence, terms",
    "inherited": "the data sets and models that it was made from",
    "extra": "other columns of the data, as JSON",
    "messages": "turns; `train` is false for a turn that is not trained on, `extra` holds template values, as JSON",
    "prompt": "the turns before the answer; in verdicts, the id of the prompt",
    "chosen": "the better answer, as turns",
    "rejected": "the worse answer, as turns",
    "margin": "how much better the chosen answer is",
    "answer": "the reference answer",
    "text": "the text",
    "completion": "the answer: its text, why it stopped, its tokens",
    "scores": "scores by name",
    "model": "the model that wrote it",
    "index": "number of the answer among several to one prompt",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class HubSplit:
    """One file: its configuration and split, its kind of records, its path in the folder, its number of rows, and its
    columns with their types."""

    config: str
    name: str
    kind: str
    path: str
    rows: int
    columns: Mapping[str, str]


def data_card(
    run: RunView, stage: str, splits: Sequence[HubSplit], sources: Sequence[SourceView], empty: Sequence[str] = ()
) -> str:
    """The card of the records made by `stage` of a run; `empty` are the outputs without records. Raises KeyError for an
    unknown stage."""
    made, words = ways_to(run, stage), WORDS["en"]
    parts = [
        _front(splits, sources),
        f"# {run.name}: {stage}\n",
        f"{sum(split.rows for split in splits):,} records, made with togi.\n",
        "## Splits\n",
        table(("configuration", "split", "records", "kind", "file"), [_split(split) for split in splits]),
        *[f"The output `{name}` has no records, so it is not a split.\n" for name in empty],
        "## Columns\n",
        *[_columns(config, splits) for config in dict.fromkeys(split.config for split in splits)],
        "## Sources, licences and terms\n",
        table(SOURCES, [source_cells(source, NONE, whole) for source in sources]) or "No source is recorded.\n",
        *_binding(sources),
        "## How it was made\n",
        table([words[key] for key in STEP], [step_cells(each, words, whole) for each in made]),
        f"The recipe, with every setting and revision, is in `recipe.lock.yaml`: stage `{stage}`.\n",
    ]
    return "\n".join(parts)


def _front(splits: Sequence[HubSplit], sources: Sequence[SourceView]) -> str:
    configs = [
        {
            "config_name": config,
            "data_files": [{"split": split.name, "path": split.path} for split in splits if split.config == config],
        }
        for config in dict.fromkeys(split.config for split in splits)
    ]
    unsaid = any(not source.licence for source in sources)
    licence = {} if unsaid else licence_keys([source.licence for source in sources])
    return front_matter({**licence, "tags": ["togi"], "configs": configs})


def _split(split: HubSplit) -> list[object]:
    return [split.config, split.name, f"{split.rows:,}", split.kind, f"`{split.path}`"]


def _columns(config: str, splits: Sequence[HubSplit]) -> str:
    columns = next(split.columns for split in splits if split.config == config)
    rows = [[f"`{name}`", f"`{cell(kind)}`", COLUMNS.get(name, "")] for name, kind in columns.items()]
    return f"Configuration `{config}`:\n\n" + table(("column", "type", "meaning"), rows)


def _binding(sources: Sequence[SourceView]) -> list[str]:
    bound = [source.dataset for source in sources if source.inherit]
    if not bound:
        return []
    return [f"The licence and terms of {', '.join(bound)} also apply to everything made from this data.\n"]
