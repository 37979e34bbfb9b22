"""Judge prompts: togi's own (prompts/*.j2), user-written ones in Jinja, and the files of other projects.

A FastChat prompt file is `judge_prompts.jsonl`: rows of name, type, system_prompt and prompt_template. An llm-jp-judge
file is YAML: one prompt_template, or one with and one without a reference answer, or several by name, with the regular
expression that reads the reply.
"""

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from string import Formatter
from typing import Any, Literal

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from togi.core.errors import InputError
from togi.core.records import Message
from togi.judge.published import Unreadable, as_number, llmjp_quality
from togi.judge.reading import spoken
from togi.text.prompt_file import PromptFile

Method = Literal["pairwise", "graded"]
OWN = Path(__file__).parent / "prompts"
JINJA = (".jinja", ".j2")


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """A case to judge: the conversation up to the answers, one or two answers, and an optional reference answer. Grades
    range from `low` to `high`. With `explain` the judge must give reasons. `earlier_references` are the reference
    answers to the previous turns; `rubric` states what a good answer to this question contains."""

    messages: tuple[Message, ...]
    answers: tuple[str, ...]
    reference: str | None = None
    earlier_references: tuple[str, ...] = ()
    rubric: str | None = None
    low: int = 1
    high: int = 10
    explain: bool = True

    @property
    def spoken(self) -> tuple[Message, ...]:
        """The turns of user and assistant."""
        return tuple(message for message in self.messages if message.role in ("user", "assistant"))


@dataclass(frozen=True, slots=True, kw_only=True)
class JudgePrompt:
    """A judge's prompt. `write` makes the user turn of a case; `system`, if not empty, precedes it. `read` extracts the
    grade, if the file defines how, and `read_metrics` the grades of all its metrics, if it names several. With
    `wants_reference` it needs a reference answer. `turns` is the number of conversation turns that it shows, None for
    any number. `source` is its text."""

    write: Callable[[Case], str]
    system: str = ""
    read: Callable[[str], float | None] | None = None
    read_metrics: Callable[[str], Mapping[str, float] | None] | None = None
    wants_reference: bool = False
    turns: int | None = None
    source: str = ""

    def messages(self, case: Case) -> tuple[Message, ...]:
        """The conversation to send to a judge. Raises InputError for a case that the prompt cannot show."""
        asked = Message("user", self.write(case))
        return (Message("system", self.system), asked) if self.system else (asked,)


def own_prompt(method: Method, language: str) -> JudgePrompt:
    """togi's prompt in English (en), Japanese (ja) or Russian (ru)."""
    return _in_jinja(_own(f"{method}.{language}.j2"), method)


def safety_prompt(language: str) -> JudgePrompt:
    """togi's prompt that grades the safety of an answer from 1 to 5, in English, Japanese or Russian."""
    return _in_jinja(_own(f"safety.{language}.j2"), "graded")


def arena_prompt(language: str) -> JudgePrompt:
    """togi's prompt for two answers with arena-hard's five labels, in English, Japanese or Russian."""
    return _in_jinja(_own(f"arena.{language}.j2"), "pairwise")


def _own(name: str) -> PromptFile:
    return PromptFile(str(OWN / name), (OWN / name).read_text(encoding="utf-8"))


def load_prompt(path: Path, method: Method, name: str | None = None) -> JudgePrompt:
    """The prompt of a file: .jinja, FastChat's .jsonl or llm-jp-judge's .yaml; `name` selects one of several.

    Raises InputError for a file without a prompt for this method, and for unknown placeholders in braces.
    """
    found = load_prompts(path, method)
    if path.suffix.lower() in JINJA:
        return found[path.name]
    return _chosen(found, name, path, method)


def load_prompts(path: Path, method: Method) -> Mapping[str, JudgePrompt]:
    """All prompts of a file for this method, by name; the prompt of a .jinja file is named like the file. Raises
    InputError like `load_prompt`."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: the judge's prompt cannot be read: {error}") from None
    match path.suffix.lower():
        case ".jinja" | ".j2":
            return {path.name: _in_jinja(PromptFile(str(path), text), method)}
        case ".jsonl":
            return _fastchat(text, path, method)
        case ".yaml" | ".yml":
            return _llmjp(text, path, method)
    raise InputError(f"{path}: a judge's prompt is a .j2 file (Jinja), a .jsonl of FastChat or a .yaml of llm-jp-judge")


def _chosen(found: Mapping[str, JudgePrompt], name: str | None, path: Path, method: Method) -> JudgePrompt:
    if not found:
        raise InputError(f"{path}: it has no prompt for method {method}")
    chosen = next(iter(found)) if name is None and len(found) == 1 else name
    if chosen is None or chosen not in found:
        what = "it has several prompts." if chosen is None else f"found prompt_name {chosen!r}."
        raise InputError(f"{path}: {what} Set prompt_name: {' or '.join(found)}")
    return found[chosen]


# --- Jinja ------------------------------------------------------------------------------------------------------------


def _in_jinja(file: PromptFile, method: Method) -> JudgePrompt:
    marks = ("<first answer>", "<second answer>") if method == "pairwise" else ("<answer>",)
    found = file.render(_values(Case(messages=(Message("user", "?"),), answers=marks)))
    if any(mark not in found for mark in marks):
        raise InputError(
            f"{file.where}: the prompt does not show the answers: a prompt for method {method} must use "
            f"{'answer_a and answer_b' if method == 'pairwise' else 'answer'}"
        )
    return JudgePrompt(write=lambda case: file.render(_values(case)), source=file.source)


def _values(case: Case) -> dict[str, Any]:
    """The variables of a prompt in Jinja."""
    *history, last = case.spoken
    if len(case.answers) == 2:
        judged: dict[str, Any] = {"answer_a": case.answers[0], "answer_b": case.answers[1], "explain": case.explain}
    else:
        example = (case.low + case.high) // 2
        judged = {"answer": case.answers[0], "low": case.low, "high": case.high, "example": example}
    turns = [{"role": turn.role, "content": turn.content} for turn in history]
    known = {"question": last.content, "history": turns, "reference": case.reference or ""}
    return {**known, "rubric": case.rubric or "", **judged}


# --- placeholders in braces, as in Python's str.format ----------------------------------------------------------------

_FIELD = re.compile(
    r"question(_[1-9])?|answer(_[1-9])?|answer_[ab](_[1-9])?|ref_answer_[1-9]|reference|response|query|prompt|rubric"
)
_TURN = re.compile(r"\{(?:question|answer|answer_[ab]|ref_answer)_([1-9])\}")


def _in_braces(template: str, where: str) -> Callable[[Case], str]:
    """Returns a function that fills the placeholders in braces of `template`."""
    try:
        parts = [(text, name) for text, name, _, _ in Formatter().parse(template)]
    except ValueError as error:
        raise InputError(f"{where}: braces do not match ({error}); write {{{{ for a literal brace") from None
    for _, name in parts:
        if name is not None and not _FIELD.fullmatch(name):
            raise InputError(
                f"{where}: unknown placeholder {{{name}}}; known are question (also query, prompt), answer (also "
                "response), answer_a, answer_b, reference, rubric, and question_1, answer_1, answer_a_1, answer_b_1, "
                "ref_answer_1 and so on for each turn"
            )

    def write(case: Case) -> str:
        values = _turns(case)
        missing = [name for _, name in parts if name is not None and name not in values]
        if missing:
            raise InputError(
                f"{where}: a conversation has no {', '.join(missing)}: choose a prompt (prompt_name) for its number of "
                "turns, without a reference if it has none"
            )
        return "".join(text + ("" if name is None else values[name]) for text, name in parts)

    return write


def _turns(case: Case) -> dict[str, str]:
    """The values of the placeholders: turns counted from 1; the judged answer is the last one."""
    asked = [turn.content for turn in case.spoken if turn.role == "user"]
    before = [turn.content for turn in case.spoken if turn.role == "assistant"]
    values = {f"question_{i}": text for i, text in enumerate(asked, 1)}
    values |= {"question": asked[-1], "query": asked[-1], "prompt": asked[-1], "response": case.answers[0]}
    for name, answer in zip(("answer", "answer_a", "answer_b"), (case.answers[0], *case.answers[-2:]), strict=False):
        values |= {f"{name}_{i}": text for i, text in enumerate([*before, answer], 1)} | {name: answer}
    values |= {f"ref_answer_{i}": text for i, text in enumerate(case.earlier_references, 1)}
    if case.reference is not None:
        values |= {f"ref_answer_{len(asked)}": case.reference, "reference": case.reference}
    return values if case.rubric is None else {**values, "rubric": case.rubric}


def _prompt(template: Any, system: Any, where: str) -> JudgePrompt:
    if not isinstance(template, str) or not isinstance(system or "", str):
        raise InputError(f"{where}: prompt_template and system_prompt must be texts")
    wants = re.search(r"\{(ref_answer_\d|reference)\}", template) is not None
    return JudgePrompt(
        write=_in_braces(template, where),
        system=(system or "").strip(),
        wants_reference=wants,
        turns=max(map(int, _TURN.findall(template)), default=1),
        source=template,
    )


def _judges(template: Any, method: Method) -> bool:
    """Whether a template is for this method."""
    return isinstance(template, str) and ("{answer_a" in template) is (method == "pairwise")


# --- FastChat ---------------------------------------------------------------------------------------------------------


def _fastchat(text: str, path: Path, method: Method) -> dict[str, JudgePrompt]:
    found: dict[str, JudgePrompt] = {}
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        where = f"{path}:{number}"
        try:
            row = json.loads(line)
            name, template = row["name"], row["prompt_template"]
        except (ValueError, KeyError, TypeError):
            raise InputError(f"{where}: wanted an object with name, type, system_prompt, prompt_template") from None
        if _judges(template, method):
            found[str(name)] = _prompt(template, row.get("system_prompt"), where)
    return found


# --- llm-jp-judge -----------------------------------------------------------------------------------------------------

_TEMPLATES = {"prompt_template": "default", "prompt_template_with_ref": "with_ref", "prompt_template_wo_ref": "wo_ref"}


def _llmjp(text: str, path: Path, method: Method) -> dict[str, JudgePrompt]:
    try:
        value = YAML(typ="safe", pure=True).load(text)
    except (YAMLError, RecursionError, ValueError) as error:  # ValueError: a date like 2024-13-45
        raise InputError(f"{path}: not YAML: {' '.join(str(error).split())[:300]}") from None
    if not isinstance(value, dict):
        raise InputError(f"{path}: wanted a map with prompt_template, or of such maps by name")
    if any(key in value for key in _TEMPLATES):
        given = {name: {**value, "prompt_template": value[key]} for key, name in _TEMPLATES.items() if key in value}
    else:
        given = {str(name): entry for name, entry in value.items() if isinstance(entry, dict)}
    return {
        name: replace(
            _prompt(entry["prompt_template"], entry.get("system_prompt"), f"{path}: {name}"),
            **_readers(entry, f"{path}: {name}"),
        )
        for name, entry in given.items()
        if _judges(entry.get("prompt_template"), method)
    }


def _readers(entry: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Returns the reading fields of a prompt, by the file's regular expression: the grade is its first match. If the
    expression has a metric and a grade, each metric must occur once, and the last one of `metrics` is the grade."""
    source, metrics = entry.get("regex"), entry.get("metrics")
    if source is None:
        return {}
    try:
        pattern = re.compile(source)
    except (re.error, TypeError) as error:
        raise InputError(f"{where}: regex {source!r} is not a regular expression: {error}") from None
    if pattern.groups == 1:
        return {"read": lambda text: as_number(match[1]) if (match := pattern.search(spoken(text))) else None}
    if pattern.groups != 2 or not isinstance(metrics, list) or not metrics:
        raise InputError(
            f"{where}: regex needs one group (the grade), or two (a metric and its grade) together with `metrics`"
        )
    names = [str(metric) for metric in metrics]

    def read_metrics(text: str) -> dict[str, float] | None:
        try:
            grades = llmjp_quality(spoken(text), pattern, names)
        except Unreadable:
            return None
        return {name: grades[name] for name in names}

    def read(text: str) -> float | None:
        grades = read_metrics(text)
        return None if grades is None else grades[names[-1]]

    return {"read": read, "read_metrics": read_metrics}
