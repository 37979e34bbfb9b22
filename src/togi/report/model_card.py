"""The card of a model trained by a run: README.md in one of its languages, in the hub's format."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from togi.core.sampling import Recommended
from togi.report.card_benchmarks import benched, tables
from togi.report.card_language import Language
from togi.report.card_parts import cell, fenced, source_cells, step_cells, table, ways_to
from togi.report.card_words import LANGUAGES, NAMES
from togi.report.formatting import flat
from togi.report.view import AlarmView, RowView, RunView, StageView

SAMPLES = 3
OVERLAP = "evaluated_on_learnt"
"""The alarm of an evaluation on prompts that a model was trained on."""
SCORERS = {"reward": "reward", "held-out reward": "held_out"}
"""How the rows of an evaluation name its reward models, with the settings that refer to them."""
INDENT = "    "
ENVIRONMENT = ("device", "cpu", "processes", "compute_dtype", "togi", "torch", "transformers", "peft", "numpy")


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelFacts:
    """Facts about the model itself. `form` is merged, adapter or gguf; `shape` holds rows of its architecture and
    tokenizer; `trainings` are the types of the stages that trained it from `base`, in order; `texts` are the texts of
    the recipe's `card:`, by key; `plots` are titles with paths in the folder; `file` is the name of a GGUF file.
    `special_end`: the terminator is one special token, so that decoding can leave it out; `options` are arguments that
    `generate` needs beside the stop string to write what togi writes; `sampling` is recommended for answers."""

    title: str
    form: str
    reward: bool
    base: str
    terminator: str
    terminator_tokens: int
    system: str | None
    shape: Sequence[tuple[str, str]]
    trainings: Sequence[str]
    texts: Mapping[str, str] = field(default_factory=dict)
    plots: Sequence[tuple[str, str]] = ()
    file: str = ""
    special_end: bool = False
    options: Mapping[str, Any] = field(default_factory=dict)
    sampling: Recommended | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """A row of a stage that measured the model, or of the stage that trained it. `overlap` says which prompts of the
    stage were trained on, if it found any."""

    stage: str
    row: RowView
    overlap: str = ""


def readme_name(language: str) -> str:
    """The file name of the card in a language."""
    return "README.md" if language == LANGUAGES[0] else f"README.{language}.md"


def measured(run: RunView, stage: str) -> list[Measured]:
    """All rows that measure the model of `stage`: its own, and the comparisons of evaluations with it as the policy."""
    return [
        Measured(
            stage=each.name, row=row, overlap="; ".join(alarm.message.partition(";")[0] for alarm in _overlaps(each))
        )
        for each in _measuring(run, stage)
        for row in (each.rows if each.name == stage else each.compared)
    ]


def _measuring(run: RunView, stage: str) -> list[StageView]:
    """A stage, and the evaluations with its model as the policy."""
    return [each for each in run.stages if each.name == stage or _is_policy(stage, each)]


def _overlapping(run: RunView, stage: str) -> list[StageView]:
    """The evaluations that found prompts which the model, or one that it needed, was trained on."""
    found = [each for each in _measuring(run, stage) if _overlaps(each)]
    return [*found, *(each.stage for each in benched(run, stage) if each.leaks)]


def _overlaps(stage: StageView) -> list[AlarmView]:
    return [alarm for alarm in stage.alarms if alarm.name == OVERLAP]


def _is_policy(stage: str, other: StageView) -> bool:
    """Whether another stage evaluated the model of `stage` as its policy; it may read a model in other roles."""
    return other.settings.get("policy") == f"${stage}"


def model_card(run: RunView, stage: str, facts: ModelFacts, language: str) -> str:
    """The card's body, without front matter. Raises KeyError for an unknown stage."""
    own = next(each for each in run.stages if each.name == stage)
    return "\n".join(_parts(run, own, facts, Language(language)))


def _parts(run: RunView, stage: StageView, facts: ModelFacts, language: Language) -> Iterator[str]:
    made, words = ways_to(run, stage.name), language.words
    yield f"# {facts.title}\n"
    yield " · ".join(f"[{NAMES[each]}]({readme_name(each)})" for each in LANGUAGES if each != language.code) + "\n"
    trainings = ", ".join(f"`{each}`" for each in facts.trainings)
    lead = words["lead_reward" if facts.reward else "lead"]
    yield lead.format(base=facts.base or facts.title, stages=trainings) + "\n"
    yield from _texts(facts, words, "intended", "background")
    yield f"## {words['code']}\n"
    yield from _code(facts, words)
    yield f"## {words['results']}\n"
    yield from _results(run, stage, made, language)
    yield from _plots(facts, language)
    yield from _samples(run, stage, words)
    yield f"## {words['training']}\n\n### {words['data']}\n"
    yield from _data(stage, language)
    yield f"### {words['stages']}\n"
    columns = [words[key] for key in ("stage", "type", "in", "out", "dropped")]
    yield table(columns, [step_cells(each, words, language.count) for each in made])
    yield f"### {words['settings'].format(stage=stage.name)}\n"
    yield table((words["setting"], words["value"]), [(f"`{key}`", value) for key, value in flat(stage.settings)])
    yield f"## {words['architecture']}\n"
    shape = [(language.label(name), language.figures(value)) for name, value in facts.shape]
    yield table((words["setting"], words["value"]), shape)
    yield from _limits(run, stage, made, facts, language)
    yield from _rest(stage, facts, language)


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
    if facts.sampling is not None:
        yield _recommended(facts.sampling, words) + "\n"
    if facts.form == "gguf":
        stop = f" --reverse-prompt '{facts.terminator}'" if several else ""
        drawn = "" if facts.sampling is None else f" {llama_options(facts.sampling)}"
        yield fenced(f"llama-cli -m {facts.file or '*.gguf'} --jinja{stop}{drawn}", "sh")
        return
    if facts.reward:
        yield words["scores"] + "\n"
    yield fenced(_scoring(words) if facts.reward else _answering(facts, words, several), "python")


def _recommended(sampling: Recommended, words: Mapping[str, str]) -> str:
    source = sampling.source
    warning = "" if source is None or source.too_hot is None else " " + words["hot"].format(hot=source.too_hot)
    return words["sampled"].format(values=sampling.shown) + warning


def llama_options(sampling: Recommended) -> str:
    """The options of llama-cli for sampling settings: all of them, since it has defaults of its own."""
    return (
        f"--temp {sampling.temperature:g} --top-p {sampling.top_p:g} --top-k {sampling.top_k} "
        f"--min-p {sampling.min_p:g} --repeat-penalty {sampling.repetition_penalty:g}"
    )


def _answering(facts: ModelFacts, words: Mapping[str, str], several: bool) -> str:
    name = "AutoPeftModelForCausalLM" if facts.form == "adapter" else "AutoModelForCausalLM"
    drawn = {"do_sample": False} if facts.sampling is None else facts.sampling.generating()
    longest = 256 if facts.sampling is None else facts.sampling.max_tokens
    asked = "".join(f", {name}={value!r}" for name, value in drawn.items())
    stop = f", stop_strings=[{facts.terminator!r}], tokenizer=tokenizer" if several else ""
    stop += "".join(f", {name}={value!r}" for name, value in facts.options.items() if name not in drawn)
    cut = f".split({facts.terminator!r})[0]" if several else f".removesuffix({facts.terminator!r})"
    cut = "" if facts.special_end else cut
    system = [f'    {{"role": "system", "content": {facts.system!r}}},'] if facts.system else []
    return "\n".join(
        [
            f"from {'peft' if facts.form == 'adapter' else 'transformers'} import {name}",
            "from transformers import AutoTokenizer",
            "",
            f'name = "."  # {words["place"]}',
            "tokenizer = AutoTokenizer.from_pretrained(name)",
            f'model = {name}.from_pretrained(name, dtype="auto").eval()',
            "messages = [",
            *system,
            f'    {{"role": "user", "content": {words["hello"]!r}}},',
            "]",
            "text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)",
            'inputs = tokenizer(text, add_special_tokens=False, return_tensors="pt").to(model.device)',
            f"ids = model.generate(**inputs, max_new_tokens={longest}{asked}{stop})",
            'written = ids[0, inputs["input_ids"].shape[1]:]',
            f"answer = tokenizer.decode(written, skip_special_tokens={facts.special_end}){cut}",
            "print(answer)",
        ]
    )


def _scoring(words: Mapping[str, str]) -> str:
    return "\n".join(
        [
            "import torch",
            "from transformers import AutoModelForSequenceClassification, AutoTokenizer",
            "",
            f'name = "."  # {words["place"]}',
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


def _results(run: RunView, stage: StageView, made: Sequence[StageView], language: Language) -> Iterator[str]:
    words, found = language.words, measured(run, stage.name)
    columns = [words[key] for key in ("metric", "before", "after", "interval", "change", "count", "where")]
    benchmarks = benched(run, stage.name)
    if found:
        yield table(columns, [_row(each, language) for each in found])
    elif not benchmarks:
        yield words["none_measured"] + "\n"
    yield from _scorers(run, stage, language)
    cleaned = [each for each in made if each.cleans]
    leaks = sum(sum(each.drops.values()) for each in cleaned)
    overlap = _overlapping(run, stage.name)
    if cleaned:
        yield words["leaks"].format(count=language.count(leaks)) + "\n"
    if overlap:
        yield words["overlap"] + "\n"
    if not cleaned and not overlap and not any(each.leaks == 0 or each.decontaminated for each in benchmarks):
        yield words["no_leaks"] + "\n"
    yield from (part for each in benchmarks for part in tables(each, language))


def _row(found: Measured, language: Language) -> list[object]:
    row, policy, difference = found.row, found.row.policy, found.row.difference
    change = ""
    if difference is not None:
        bounds = language.bounds(difference, signed=True)
        change = language.beside(language.number(difference.mean, signed=True), bounds)
    before = "" if row.base is None else language.number(row.base.mean)
    after, count = language.number(policy.mean), language.count(policy.n)
    return [language.metric(row), before, after, language.interval(policy), change, count, found.stage]


def _scorers(run: RunView, stage: StageView, language: Language) -> Iterator[str]:
    """The figures of the reward models that the evaluations of the model asked."""
    words = language.words
    found = [(each, row) for each in run.stages if _is_policy(stage.name, each) for row in each.alone]
    if found:
        yield words["scorers"] + "\n"
        columns = [words["scorer"], *(words[key] for key in ("metric", "value", "interval", "count", "where"))]
        rows = dict.fromkeys(_scorer_row(each, row, language) for each, row in found)  # one model may have two roles
        yield table(columns, [*rows])


def _scorer_row(stage: StageView, row: RowView, language: Language) -> tuple[str, ...]:
    role, _, metric = row.metric.partition(": ")
    name = str(stage.settings.get(SCORERS.get(role, "")) or role).removeprefix("$")
    value, count = language.number(row.policy.mean), language.count(row.policy.n)
    shown = language.metric(replace(row, metric=metric or row.metric))
    return name, shown, value, language.interval(row.policy), count, stage.name


def _plots(facts: ModelFacts, language: Language) -> Iterator[str]:
    if facts.plots:
        yield f"## {language.words['plots']}\n"
        yield "\n".join(f"![{language.curve(title)}]({path})" for title, path in facts.plots) + "\n"


def _samples(run: RunView, stage: StageView, words: Mapping[str, str]) -> Iterator[str]:
    answers = [answer for each in run.stages if _is_policy(stage.name, each) for answer in each.answers][:SAMPLES]
    if answers:
        yield f"## {words['samples']}\n\n{words['samples_note']}\n"
        rows = [(answer.question, answer.base, answer.policy) for answer in answers]
        yield table([words[key] for key in ("question", "base", "trained")], rows)


# --- what it was made from --------------------------------------------------------------------------------------------


def _data(stage: StageView, language: Language) -> Iterator[str]:
    words = language.words
    columns = [words[key] for key in ("source", "revision", "records", "licence", "terms")]
    rows = [source_cells(source, words["unsaid"], language.count) for source in stage.sources]
    yield table(columns, rows) or words["unsaid"] + "\n"
    bound = ", ".join(source.dataset for source in stage.sources if source.inherit)
    if bound:
        yield words["binding"].format(names=bound) + "\n"


def _limits(
    run: RunView, stage: StageView, made: Sequence[StageView], facts: ModelFacts, language: Language
) -> Iterator[str]:
    words = language.words
    yield f"## {words['limits']}\n"
    benchmarks = benched(run, stage.name)
    known = measured(run, stage.name) or benchmarks
    yield words["limit_data" if known else "limit_unmeasured"] + "\n"
    if facts.texts.get("limits"):
        yield facts.texts["limits"].strip() + "\n"
    stages = (*made, *_measuring(run, stage.name), *(each.stage for each in benchmarks))
    alarms = dict.fromkeys(f"- `{each.name}`: {cell(alarm.message)}" for each in stages for alarm in each.alarms)
    if alarms:
        yield words["limit_alarms"] + "\n\n" + "\n".join(alarms) + "\n"


def _rest(stage: StageView, facts: ModelFacts, language: Language) -> Iterator[str]:
    words = language.words
    yield f"## {words['hardware']}\n"
    known: dict[str, Any] = {key: stage.numerics[key] for key in ENVIRONMENT if stage.numerics.get(key)}
    texts = {"hardware": facts.texts["hardware"]} if facts.texts.get("hardware") else {}
    rows = [(language.label(name), value) for name, value in {**texts, **known}.items()]
    yield table((words["setting"], words["value"]), rows)
    yield f"## {words['reproduce']}\n\n{words['reproduce_text']}\n"
    yield fenced("togi run recipe.yaml", "sh")
    yield from _texts(facts, words, "citation", "acknowledgements", "authors", "contact", "release")
