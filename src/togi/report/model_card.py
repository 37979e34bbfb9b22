"""The card of a model trained by a run: README.md in one of its languages, in the hub's format."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from togi.report.card_parts import fallen, fenced, source_cells, table, ways_to
from togi.report.card_words import LANGUAGES, NAMES, WORDS
from togi.report.formatting import bounds, flat, number, percent
from togi.report.view import RowView, RunView, StageView

SAMPLES = 3
INDENT = "    "
ENVIRONMENT = ("device", "cpu", "processes", "compute_dtype", "togi", "torch", "transformers", "peft", "numpy")


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelFacts:
    """Facts about the model itself. `form` is merged, adapter or gguf; `shape` holds rows of its architecture and
    tokenizer; `texts` are the texts of the recipe's `card:`, by key; `plots` are titles with paths in the folder."""

    title: str
    form: str
    reward: bool
    base: str
    terminator: str
    terminator_tokens: int
    system: str | None
    shape: Sequence[tuple[str, str]]
    texts: Mapping[str, str] = field(default_factory=dict)
    plots: Sequence[tuple[str, str]] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """A row of a stage that measured the model, or of the stage that trained it."""

    stage: str
    row: RowView


def readme_name(language: str) -> str:
    """The file name of the card in a language."""
    return "README.md" if language == LANGUAGES[0] else f"README.{language}.md"


def measured(run: RunView, stage: str) -> list[Measured]:
    """All rows that measure the model of `stage`: its own, and those of evaluations with it as the policy."""
    found = [each for each in run.stages if each.name == stage or _is_policy(stage, each)]
    return [Measured(stage=each.name, row=row) for each in found for row in each.rows]


def _is_policy(stage: str, other: StageView) -> bool:
    """Whether another stage evaluated the model of `stage` as its policy; it may read a model in other roles."""
    return other.type == "evaluate" and other.settings.get("policy") == f"${stage}"


def model_card(run: RunView, stage: str, facts: ModelFacts, language: str) -> str:
    """The card's body, without front matter. Raises KeyError for an unknown stage."""
    words = WORDS[language]
    own = next(each for each in run.stages if each.name == stage)
    return "\n".join(_parts(run, own, facts, words, language))


def _parts(run: RunView, stage: StageView, facts: ModelFacts, words: Mapping[str, str], language: str) -> Iterator[str]:
    made = ways_to(run, stage.name)
    yield f"# {facts.title}\n"
    yield " · ".join(f"[{NAMES[each]}]({readme_name(each)})" for each in LANGUAGES if each != language) + "\n"
    trainings = ", ".join(f"`{each.type}`" for each in made if each.type.startswith("train."))
    lead = words["lead_reward" if facts.reward else "lead"]
    yield lead.format(base=facts.base, stages=trainings) + "\n"
    yield from _texts(facts, words, "intended", "background")
    yield f"## {words['code']}\n"
    yield from _code(facts, words)
    yield f"## {words['results']}\n"
    yield from _results(run, stage, made, words)
    yield from _plots(facts, words)
    yield from _samples(run, stage, words)
    yield f"## {words['training']}\n\n### {words['data']}\n"
    yield from _data(stage, words)
    yield f"### {words['stages']}\n"
    columns = [words[key] for key in ("stage", "type", "in", "out", "dropped")]
    yield table(columns, [_step(each) for each in made])
    yield f"### {words['settings'].format(stage=stage.name)}\n"
    yield table((words["setting"], words["value"]), [(f"`{key}`", value) for key, value in flat(stage.settings)])
    yield f"## {words['architecture']}\n"
    yield table((words["setting"], words["value"]), facts.shape)
    yield from _rest(run, stage, facts, words)


def _texts(facts: ModelFacts, words: Mapping[str, str], *keys: str) -> Iterator[str]:
    """Sections with texts from the recipe."""
    for key in keys:
        if facts.texts.get(key):
            yield f"## {words[key]}\n\n{facts.texts[key].strip()}\n"


# --- code -------------------------------------------------------------------------------------------------------------


def _code(facts: ModelFacts, words: Mapping[str, str]) -> Iterator[str]:
    several = facts.terminator_tokens > 1 and not facts.reward
    if facts.form == "gguf":
        yield words["gguf"] + "\n"
    if facts.form == "adapter":
        yield words["adapter"] + "\n"
    if several:
        yield words["ends"].format(end=facts.terminator, count=facts.terminator_tokens) + "\n"
    if facts.system:
        yield words["system"] + "\n\n" + fenced(facts.system)
    if facts.form == "gguf":
        stop = f" --reverse-prompt '{facts.terminator}'" if several else ""
        yield fenced(f"llama-cli -m FILE.gguf --jinja{stop}", "sh")
        return
    if facts.reward:
        yield words["scores"] + "\n"
    yield fenced(_scoring(words) if facts.reward else _answering(facts, words, several), "python")


def _answering(facts: ModelFacts, words: Mapping[str, str], several: bool) -> str:
    name = "AutoPeftModelForCausalLM" if facts.form == "adapter" else "AutoModelForCausalLM"
    stop = f", stop_strings=[{facts.terminator!r}], tokenizer=tokenizer" if several else ""
    cut = f".split({facts.terminator!r})[0]" if several else ""
    system = [f'    {{"role": "system", "content": {facts.system!r}}},'] if facts.system else []
    return "\n".join(
        [
            f"from {'peft' if facts.form == 'adapter' else 'transformers'} import {name}",
            "from transformers import AutoTokenizer",
            "",
            'name = "FOLDER"',
            "tokenizer = AutoTokenizer.from_pretrained(name)",
            f'model = {name}.from_pretrained(name, dtype="auto").eval()',
            "messages = [",
            *system,
            f'    {{"role": "user", "content": {words["hello"]!r}}},',
            "]",
            "text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)",
            'inputs = tokenizer(text, add_special_tokens=False, return_tensors="pt").to(model.device)',
            f"ids = model.generate(**inputs, max_new_tokens=256, do_sample=False{stop})",
            f'answer = tokenizer.decode(ids[0, inputs["input_ids"].shape[1]:], skip_special_tokens={not several}){cut}',
            "print(answer)",
        ]
    )


def _scoring(words: Mapping[str, str]) -> str:
    return "\n".join(
        [
            "import torch",
            "from transformers import AutoModelForSequenceClassification, AutoTokenizer",
            "",
            'name = "FOLDER"',
            "tokenizer = AutoTokenizer.from_pretrained(name)",
            'model = AutoModelForSequenceClassification.from_pretrained(name, dtype="auto").eval()',
            "messages = [",
            f'    {{"role": "user", "content": {words["hello"]!r}}},',
            f'    {{"role": "assistant", "content": {words["reply"]!r}}},',
            "]",
            "text = tokenizer.apply_chat_template(messages, tokenize=False)",
            'inputs = tokenizer(text, add_special_tokens=False, return_tensors="pt").to(model.device)',
            "with torch.no_grad():",
            f"{INDENT}print(float(model(**inputs).logits[0, 0]))",
        ]
    )


# --- what was measured ------------------------------------------------------------------------------------------------


def _results(run: RunView, stage: StageView, made: Sequence[StageView], words: Mapping[str, str]) -> Iterator[str]:
    found = measured(run, stage.name)
    columns = [words[key] for key in ("metric", "before", "after", "interval", "change", "count", "where")]
    yield table(columns, [_row(each) for each in found]) or words["none_measured"] + "\n"
    cleaned = [each for each in made if each.type == "decontaminate"]
    leaks = sum(sum(each.drops.values()) for each in cleaned)
    yield (words["leaks"].format(count=f"{leaks:,}") if cleaned else words["no_leaks"]) + "\n"


def _row(found: Measured) -> list[object]:
    row, policy, difference = found.row, found.row.policy, found.row.difference
    name = f"{row.metric} ({row.note})" if row.note else row.metric
    interval = f"{bounds(policy)} ({percent(policy.level)})"
    change = "" if difference is None else f"{number(difference.mean, signed=True)} ({bounds(difference, signed=True)})"
    before = "" if row.base is None else number(row.base.mean)
    return [name, before, number(policy.mean), interval, change, f"{policy.n:,}", found.stage]


def _plots(facts: ModelFacts, words: Mapping[str, str]) -> Iterator[str]:
    if facts.plots:
        yield f"## {words['plots']}\n"
        yield "\n".join(f"![{title}]({path})" for title, path in facts.plots) + "\n"


def _samples(run: RunView, stage: StageView, words: Mapping[str, str]) -> Iterator[str]:
    answers = [answer for each in run.stages if _is_policy(stage.name, each) for answer in each.answers][:SAMPLES]
    if answers:
        yield f"## {words['samples']}\n\n{words['samples_note']}\n"
        rows = [(answer.question, answer.base, answer.policy) for answer in answers]
        yield table([words[key] for key in ("question", "base", "trained")], rows)


# --- what it was made from --------------------------------------------------------------------------------------------


def _data(stage: StageView, words: Mapping[str, str]) -> Iterator[str]:
    columns = [words[key] for key in ("source", "revision", "records", "licence", "terms")]
    rows = [source_cells(source, words["unsaid"]) for source in stage.sources]
    yield table(columns, rows) or words["unsaid"] + "\n"
    bound = ", ".join(source.dataset for source in stage.sources if source.inherit)
    if bound:
        yield words["binding"].format(names=bound) + "\n"


def _step(stage: StageView) -> list[object]:
    counts = ["" if count is None else f"{count:,}" for count in (stage.counts_in, stage.counts_out)]
    return [stage.name, f"`{stage.type}`", *counts, fallen(stage)]


def _rest(run: RunView, stage: StageView, facts: ModelFacts, words: Mapping[str, str]) -> Iterator[str]:
    yield f"## {words['limits']}\n\n{words['limit_data']}\n"
    if facts.texts.get("limits"):
        yield facts.texts["limits"].strip() + "\n"
    if stage.alarms:
        yield words["limit_alarms"].format(alarms="; ".join(alarm.message for alarm in stage.alarms)) + "\n"
    yield f"## {words['hardware']}\n"
    known: dict[str, Any] = {key: stage.numerics[key] for key in ENVIRONMENT if stage.numerics.get(key)}
    texts = {"hardware": facts.texts["hardware"]} if facts.texts.get("hardware") else {}
    yield table((words["setting"], words["value"]), [*{**texts, **known}.items()])
    yield f"## {words['reproduce']}\n\n{words['reproduce_text']}\n"
    yield fenced("togi run recipe.yaml", "sh")
    yield from _texts(facts, words, "citation", "acknowledgements", "authors", "contact", "release")
