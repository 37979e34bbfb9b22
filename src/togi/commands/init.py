"""Inspects data for `togi init`, and writes a commented recipe for it."""

import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any

from togi.commands.init_model import place_of
from togi.commands.new_folder import writable
from togi.core.errors import InputError
from togi.core.files import write_text
from togi.core.records import CALLS, TOOLS
from togi.core.sources import missing_path
from togi.data.hub import download
from togi.data.presets import PRESETS
from togi.data.rows import Row, find_files, read_rows
from togi.data.shapes import NEEDS, Shape, fitting, parse_row
from togi.data.values import BadRow
from togi.text.jinja import THOUGHTS

COUNTED = 4096  # rows to count at most: with more of them, the schedule is the same
READ = 64  # rows that are searched for tools and thoughts
SPECIAL = (TOOLS, *CALLS, *THOUGHTS)
BATCH = 16  # examples of one step
TESTS = 32  # most prompts to test a policy on
SHORT = 80  # characters of the longest reference answer that an answer can be expected to contain
GSM8K = "####"  # what precedes the final number in an answer of GSM8K
HELD_OUT = 0.1  # share of the rows for validation
GATHERED = {"OpenAssistant/oasst1": ("message_id", "parent_id", "role", "text", "rank")}
"""The columns in the files of presets that join several rows to one."""
NAMED = {"chats": ("prompt", "completion"), "pairs": ("prompt", "chosen", "rejected"), "prompts": ("prompt",)}
"""The columns of each kind that a file may have under other names."""
RENAMING, OPTION = re.compile(r"`columns: \{([^:}]+): ([^}]+)\}`"), r"`--column \1=\2`"
"""How messages write a setting of a recipe that renames a column, and how the command line does."""
SIDES = ("chosen", "rejected")
"""The columns of a pair; prompts are read from them only if the row has no other column for them."""
GOALS = {"sft": "chats", "dpo": "pairs", "smpo": "pairs", "reward": "pairs", "grpo": "prompts"}
"""The kind of records that each goal needs."""


@dataclass(frozen=True, slots=True)
class Found:
    """The format of a data set by its first row. Each column has the kind of records that it is used for ("" if it is
    unused) and an example. `reference` is the reference answer; the number of rows is counted up to COUNTED. `special`
    are the parts of turns (tools, calls, thoughts) that the first rows have and that a template must write. `unfit`
    says which of the counted rows do not fit; "" if all do."""

    files: tuple[Path, ...]
    columns: tuple[tuple[str, str, str], ...]
    reference: str | None
    rows: int
    special: tuple[str, ...] = ()
    unfit: str = ""


def data_entry(data: str, beside: Path, names: Mapping[str, str] | None = None) -> dict[str, Any]:
    """The `data:` entry for a recipe in the folder `beside`: a path or a hub id, and the file's names of columns.
    Raises InputError for anything else."""
    entry = place_of(data, beside, "data", "a file or folder of rows, or a data set's id on the hub (owner/name)")
    return {**entry, "columns": dict(names)} if names else {**entry}


def look(data: str, goal: str, names: Mapping[str, str] | None = None) -> Found:
    """Reads the first row of a data set for a goal, and counts its rows. `names` are the file's names of columns, by
    togi's. Raises InputError, with the goals that fit, if the row does not fit."""
    if not Path(data).exists() and (missing := missing_path(data)):
        raise InputError(f"--data: {missing}")
    folder = Path(data) if Path(data).exists() else download(data, "main")[0]
    files = find_files(folder, "train", texts=False)
    rows = islice((row for file in files for row in read_rows(file)), COUNTED)
    head = list(islice(rows, READ))
    top = head[0] if head else None
    if top is None:
        raise InputError(f"{data}: the data set is empty")
    first = top.values
    if isinstance(first, BadRow):
        raise InputError(f"{top.where}: {first}")
    shape = _parsed(top.where, first, goal, names or {})
    used = _used(_ours(first, names or {}), shape, GOALS[goal], list(names or {}))
    theirs = {(names or {}).get(name, name) for name in used}
    columns = tuple((name, GOALS[goal] if name in theirs else "", _example(value)) for name, value in first.items())
    special = tuple(key for key in SPECIAL if any(_has(row.values, goal, names or {}, key) for row in head))
    count, unfit = _counted(chain(head, rows), goal, names or {})
    return Found(tuple(files), columns, shape.reference, count, special, unfit)


def _counted(rows: Iterable[Row], goal: str, names: Mapping[str, str]) -> tuple[int, str]:
    """The number of rows, and which of them do not fit the goal; "" if all do."""
    count, wrong = 0, []
    for row in rows:
        count += 1
        if why := _misfit_of(row, goal, names):
            wrong.append(f"{row.where}: {why}")
    more = "; correct them, or write `on_bad_row: drop` in the data's entry to drop and count them"
    return count, f"rows that do not fit: {len(wrong)} of {count}. The first is {wrong[0]}{more}" if wrong else ""


def _misfit_of(row: Row, goal: str, names: Mapping[str, str]) -> str:
    """Why a row does not fit the goal; "" if it does."""
    if isinstance(row.values, BadRow):
        return str(row.values)
    ours = _ours(row.values, names)
    try:
        shape = parse_row(ours, GOALS[goal], list(names))
    except BadRow as wrong:
        return RENAMING.sub(OPTION, str(wrong))
    return "" if shape is not None else f"the columns {', '.join(ours)} do not make {GOALS[goal]}"


def _used(row: Mapping[str, Any], shape: Shape, kind: str, named: Sequence[str]) -> list[str]:
    """The columns of a row that become part of the record: without the sides of a pair that only confirm a prompt."""
    if kind == "prompts" and any(side in shape.columns for side in SIDES):
        rest = {name: value for name, value in row.items() if name not in SIDES}
        alone = parse_row(rest, kind, [name for name in named if name not in SIDES])
        if alone is not None and alone.prompt == shape.prompt:
            return [name for name in shape.columns if name not in SIDES]
    return list(shape.columns)


def _has(row: Mapping[str, Any] | BadRow, goal: str, names: Mapping[str, str], key: str) -> bool:
    """Whether a turn of the row has `key`. A thought counts only if it is trained on; a bad row has nothing."""
    if isinstance(row, BadRow) or (goal == "grpo" and key in THOUGHTS):
        return False
    try:
        shape = parse_row(_ours(row, names), GOALS[goal], list(names))
    except BadRow:
        return False
    sides = () if shape is None else (shape.prompt, shape.answer, shape.chosen, shape.rejected)
    return any(turn.extra.get(key) for side in sides for turn in side or ())


def _ours(row: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
    """The row under togi's names of columns, as far as it has them."""
    taken = set(names.values())
    ours = {name: value for name, value in row.items() if name not in taken}
    return ours | {name: row[theirs] for name, theirs in names.items() if theirs in row}


def _parsed(where: str, row: Mapping[str, Any], goal: str, names: Mapping[str, str]) -> Shape:
    """The row under togi's names of columns. Raises InputError if it does not fit the goal."""
    for ours, theirs in names.items():
        if theirs not in row:
            raise InputError(f"--column {ours}={theirs}: the row has no such column; it has {', '.join(row)}")
    ours = _ours(row, names)
    try:
        shape = parse_row(ours, GOALS[goal], list(names))
    except BadRow as wrong:
        raise InputError(f"{where}: {RENAMING.sub(OPTION, str(wrong))}") from None
    if shape is None:
        raise InputError(f"{where}: {_misfit(ours, goal)}")
    return shape


def _misfit(row: Mapping[str, Any], goal: str) -> str:
    kind, kinds = GOALS[goal], fitting(row)
    fits = [other for other, wanted in GOALS.items() if wanted in kinds]
    hints = [f"these rows fit --goal {' or '.join(fits)}"] if fits else []
    needs = {name: preset.needs for name, preset in PRESETS.items() if len(preset.needs) > 2} | GATHERED
    known = [name for name, columns in needs.items() if set(columns) <= set(row)]
    if known and kind != "chats":
        hints.append(f"the preset {known[0]} reads such columns: data: {{{kind}: {{preset: {known[0]}, path: FILE}}}}")
    elif kinds == ["documents"]:
        hints.append("they are documents, for the stages train.pretrain and synthesize")
    elif told := _inside(row, kind):
        hints.append(told)
    else:
        hints.append(f"or name the columns: {' '.join(f'--column {name}=YOURS' for name in NAMED[kind])}")
    found = f"the columns {', '.join(row)} do not make {kind}, which need {NEEDS[kind]}"
    return f"{found}; {'; '.join(hints).removeprefix('or ')}"


def _inside(row: Mapping[str, Any], kind: str) -> str:
    """What to do if a column holds what the row should: a conversation, or the columns in an object; "" otherwise."""
    for name, value in row.items():
        if isinstance(value, list) and kind in fitting({"messages": value}):
            return f"or name the conversation: --column messages={name}"
        if isinstance(value, dict) and kind in fitting(value):
            return f"the column {name} holds an object with fitting columns: write these at the top of each row"
    return ""


def _example(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    flat = " ".join(text.split())
    return flat if len(flat) <= 60 else f"{flat[:60]}…"


def write_recipe(path: Path, goal: str, entries: Mapping[str, Any], longest: int, found: Found) -> list[Path]:
    """Writes the recipe to `path`, and for GRPO a file with a reward function next to it; returns the written paths.
    `entries` are those of the model and of the data, as `flow` writes them.

    Raises InputError if one of them exists already, RecipeError if they cannot be written there.
    """
    reward = path.with_name(f"{path.stem}_reward.py")
    targets = [path, reward] if goal == "grpo" else [path]
    with writable(path, "file with --output"):
        for target in targets:
            if target.exists():
                raise InputError(f"{target}: exists already; choose another name with --output, or remove it")
    name = "".join(c if (c.isalnum() and c.isascii()) or c in "_-" else "_" for c in path.stem).lstrip("-0123456789")
    top = HEAD.format(name=name or goal, records=GOALS[goal], goal=goal, **entries)
    numbers = _schedule(found.rows, EPOCHS.get(goal, 1)) | {"tests": _tests(found) if goal == "grpo" else 0}
    with writable(path, "file with --output"):
        write_text(path, top + STAGES[goal].format(reward=reward.name, longest=longest, **numbers))
        if goal == "grpo":
            write_text(reward, _reward(found.reference))
    return targets


def _tests(found: Found) -> int:
    """How many prompts are kept for tests: a quarter, at most TESTS. Raises InputError if none would be left."""
    if found.rows < 2:
        raise InputError(
            f"{found.files[0]}: grpo needs at least 2 prompts, one to train on and one to test on; found {found.rows}"
        )
    return max(1, min(TESTS, found.rows // 4))


def _reward(reference: str | None) -> str:
    """A reward function to begin with: for prompts with a short reference answer, a long one, or none."""
    if reference is None:
        return UNANSWERED
    if GSM8K in reference:
        return ANSWERED.format(about=", which follows GSM8K's mark", answer=f'prompt.answer.rpartition("{GSM8K}")[2]')
    return ANSWERED.format(about="", answer="prompt.answer") if len(reference) <= SHORT else LONG_ANSWERED


def _schedule(rows: int, epochs: int) -> dict[str, int]:
    """A warm-up and validations that suit the number of steps."""
    steps = math.ceil(epochs * rows * (1 - HELD_OUT) / BATCH)
    return {"warmup": min(10, steps // 10), "every": min(20, max(1, steps // 4))}


def flow(entry: Mapping[str, Any]) -> str:
    """A map as one line of YAML; JSON strings are valid YAML."""
    return "{" + ", ".join(f"{key}: {json.dumps(value, ensure_ascii=False)}" for key, value in entry.items()) + "}"


HEAD = """\
# {goal}: written by `togi init`. `togi check` shows the training rows, `togi list TYPE` every setting of a stage.
name: {name}
seed: 17 # of all randomness

models:
  # `template` is how a chat becomes text: `tokenizer` is the model's own, and `togi list` names the built-in ones
  base: {model}

data:
  {records}: {data}

stages:
"""

FITTED = """\
    validation: {held_out} # share of held-out rows
    evaluate_every: {{every}} # steps between two validations
    choose: best # save the weights with the best validation; last: those of the last step
    epochs: {epochs}
    batch_size: {batch} # examples of one step, over all processes
    max_length: {{longest}} # tokens of the longest example
    micro_batch_tokens: auto # what fits the memory at hand
    learning_rate: {rate}
    warmup_steps: {{warmup}} # first steps, with a rising rate: a tenth of all steps, at most 10
"""
EPOCHS = {"sft": 2, "dpo": 1, "smpo": 1, "reward": 1}
RATES = {"sft": "2.0e-4", "dpo": "5.0e-5", "smpo": "5.0e-5", "reward": "1.0e-4"}


def _fitted(goal: str) -> str:
    """The settings of training on fixed data."""
    return FITTED.format(epochs=EPOCHS[goal], batch=BATCH, rate=RATES[goal], held_out=HELD_OUT)


STAGES = {
    "sft": """\
  tuned:
    type: train.sft
    init: $base
    chats: $chats
    # system: Answer briefly. # a system turn for chats without one
    lora: {{rank: 16, alpha: 32}} # adapters alone; remove this line to train all weights, at a tenth of the rate
"""
    + _fitted("sft"),
    "dpo": """\
  policy:
    type: train.dpo
    init: $base
    pairs: $pairs
    beta: 0.1 # how strongly the policy is tied to its initial model
    lora: {{rank: 16, alpha: 32}} # adapters alone; remove this line to train all weights, at a tenth of the rate
"""
    + _fitted("dpo"),
    "smpo": """\
  policy:
    type: train.smpo
    init: $base
    pairs: $pairs
    target_margin: 0.35 # of chosen over rejected answers, in nats per token; no reference model
    chosen_sft_ratio: 0.8 # share of the chosen answers in the cross entropy
    lora: {{rank: 16, alpha: 32}} # adapters alone; remove this line to train all weights, at a tenth of the rate
"""
    + _fitted("smpo"),
    "reward": """\
  scorer:
    type: train.reward
    init: $base
    pairs: $pairs
    lora: {{rank: 16, alpha: 32}} # adapters alone; remove this line to train all weights, at a tenth of the rate
"""
    + _fitted("reward"),
    "grpo": """\
  # Test prompts are never trained on: `select` cuts one shuffled list into parts.
  tests: {{type: select, input: $prompts, count: {tests}}}
  lessons: {{type: select, input: $prompts, skip: {tests}}}
  policy:
    type: train.grpo
    init: $base
    prompts: $lessons
    steps: 60
    prompts_per_step: 8
    group_size: 8 # answers to each prompt, which are compared with each other
    lora: {{rank: 16, alpha: 32}} # adapters alone; remove this line to train all weights, at a tenth of the rate
    learning_rate: 1.0e-4
    micro_batch_tokens: auto # what fits the memory at hand
    sampling: {{temperature: 1.0, max_tokens: 128}}
    reward:
      gates: # an answer that fails a gate gets the lowest reward
        - {{type: terminator}} # the answer must end properly
        - {{type: repetition}}
      terms: # weighted sum
        - {{type: function, file: {reward}, name: reward}}
  scores: {{type: evaluate, base: $base, policy: $policy, prompts: $tests, max_tokens: 128}}
""",
}

ANSWERED = '''\
"""The reward: f(prompt, completion) -> number. Change it to what you want more of."""


def reward(prompt, completion):
    """1 for an answer that contains the reference{about}, else 0. `completion.text` has no terminator."""
    return float({answer}.strip().lower() in completion.text.lower())
'''

LONG_ANSWERED = '''\
"""The reward: f(prompt, completion) -> number. Change it to what you want more of."""


def reward(prompt, completion):
    """The F1 of the words that answer and reference share. `completion.text` has no terminator."""
    wanted, found = (set(text.lower().split()) for text in (prompt.answer, completion.text))
    return 2 * len(wanted & found) / (len(wanted) + len(found))
'''

UNANSWERED = '''\
"""The reward: f(prompt, completion) -> number. Change it to what you want more of."""


def reward(prompt, completion):
    """Rewards short answers that end like a sentence. `completion.text` has no terminator."""
    text = completion.text.strip()
    return float(text.endswith((".", "!", "?", "\\u3002"))) / (1 + len(text) / 200)
'''
