"""Shared by the cards of models and data sets: front matter, Markdown tables, origins."""

import io
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ruamel.yaml import YAML

from togi.report.view import RunView, SourceView, StageView
from togi.report.waterfall import lost

HUB_LICENCES = (
    "apache-2.0", "mit", "openrail", "bigscience-openrail-m", "creativeml-openrail-m", "bigscience-bloom-rail-1.0",
    "afl-3.0", "artistic-2.0", "bsl-1.0", "bsd", "bsd-2-clause", "bsd-3-clause", "c-uda", "cc", "cc0-1.0", "cc-by-2.0",
    "cc-by-2.5", "cc-by-3.0", "cc-by-4.0", "cc-by-sa-3.0", "cc-by-sa-4.0", "cc-by-nc-2.0", "cc-by-nc-3.0",
    "cc-by-nc-4.0", "cc-by-nd-4.0", "cc-by-nc-nd-3.0", "cc-by-nc-nd-4.0", "cc-by-nc-sa-2.0", "cc-by-nc-sa-3.0",
    "cc-by-nc-sa-4.0", "cdla-sharing-1.0", "cdla-permissive-1.0", "cdla-permissive-2.0", "epl-2.0", "eupl-1.1",
    "agpl-3.0", "gfdl", "gpl", "gpl-2.0", "gpl-3.0", "lgpl", "lgpl-3.0", "isc", "llama2", "llama3", "llama3.1",
    "llama3.2", "llama3.3", "gemma", "mpl-2.0", "ms-pl", "ncsa", "odc-by", "odbl", "ofl-1.1", "osl-3.0", "postgresql",
    "unlicense", "wtfpl", "zlib", "other",
)  # fmt: skip
"""Licences that the hub knows by name; it rejects front matter with others."""


HEADER = "%YAML 1.1\n---\n"


def front_matter(values: Mapping[str, Any]) -> str:
    """The YAML front matter of a card, with its delimiter lines; keys without a value are left out.

    Readers follow YAML 1.1 (PyYAML: the hub's library) or 1.2. What 1.1 writes is the same in both: there `no` is in
    quotes, because it means false, and 1.0e-05 has a point, because 1e-05 is text.
    """
    written = io.StringIO()
    yaml = YAML(typ="safe", pure=True)
    yaml.version = (1, 1)
    yaml.default_flow_style = False
    yaml.allow_unicode = True
    yaml.sort_base_mapping_type_on_output = False  # type: ignore[assignment]
    yaml.dump({key: value for key, value in values.items() if value not in (None, [], {}, "")}, written)
    return f"---\n{written.getvalue().removeprefix(HEADER)}---\n"


def licence_keys(licences: Sequence[str]) -> dict[str, str]:
    """`license` for front matter, and `license_name` if the hub does not know it; empty without licences."""
    said = [*dict.fromkeys(licence.strip() for licence in licences if licence.strip())]
    if not said:
        return {}
    if len(said) == 1 and said[0].lower() in HUB_LICENCES:
        return {"license": said[0].lower()}
    return {"license": "other", "license_name": re.sub(r"[^a-z0-9.]+", "-", "-and-".join(said).lower()).strip("-")}


def table(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A Markdown table; empty without rows."""
    if not rows:
        return ""
    lines = [columns, ["---"] * len(columns), *rows]
    return "".join(f"| {' | '.join(cell(each) for each in line)} |\n" for line in lines)


def cell(value: object) -> str:
    """A value for a table cell: on one line, with bars escaped."""
    return re.sub(r"\s*\n\s*", "<br>", str(value).strip()).replace("|", "\\|")


def fenced(text: str, language: str = "") -> str:
    """A code block whose fence is longer than any fence inside it."""
    longest = max((len(run) for run in re.findall(r"`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}{language}\n{text.rstrip()}\n{fence}\n"


def ways_to(run: RunView, stage: str) -> list[StageView]:
    """A stage and all stages that it depends on, in the order of the run. Raises KeyError for an unknown stage."""
    known = {each.name: each for each in run.stages}
    wanted, waiting = {stage: None}, [stage]
    while waiting:
        for name in known[waiting.pop()].inputs:
            if name in known and name not in wanted:
                wanted[name] = None
                waiting.append(name)
    return [each for each in run.stages if each.name in wanted]


def source_cells(source: SourceView, none: str, count: Callable[[int], str]) -> list[object]:
    """A source as table cells: name, revision, records, licence, terms; `none` stands for a missing value."""
    records = "" if source.records is None else count(source.records)
    return [source.dataset, source.revision or none, records, source.licence or none, source.terms or none]


def step_cells(stage: StageView, words: Mapping[str, str], count: Callable[[int], str]) -> list[object]:
    """A stage as table cells: name, type, records in and out, and why the others did not go out."""
    came, went = ("" if each is None else count(each) for each in (stage.counts_in, stage.counts_out))
    return [stage.name, f"`{stage.type}`", came, went, fallen(stage, words, count)]


def fallen(stage: StageView, words: Mapping[str, str], count: Callable[[int], str]) -> str:
    """The records that came into a stage and did not go out: dropped ones by reason, held-out ones, and lost ones."""
    kept = {words["held_out"]: stage.held_out, words["lost"]: max(0, lost(stage))}
    found = [*stage.drops.items(), *((name, number) for name, number in kept.items() if number)]
    return ", ".join(f"{name} {count(number)}" for name, number in found)
