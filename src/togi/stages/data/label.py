"""Declares the stage `label`: a judge decides which answers are better (docs/judges.md)."""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Literal, Self

from pydantic import Field, model_validator

from togi.core.judging import JudgeSettings
from togi.core.records import Prompt, Record, Sample
from togi.core.settings import MAIN, NamedModelRef, SamplesRef
from togi.stages.base import StageSettings, StageType
from togi.stages.bounds import REQUEST, TURN, prompt_size, shown, text_size, whole
from togi.stages.cost import Cost, Inputs, Known, passing_on
from togi.stages.known_answers import Answers, AnswersOf

REASONS = ("alone", "same_text", "empty_answer", "tie", "inconsistent", "unreadable", "failed")
"""Drop reasons. A comparison that yields no pair is dropped under the id of its first answer."""

PAIRWISE = ("compare", "orders", "keep", "by")
GRADED = ("scale", "rounds")


class Label(JudgeSettings, StageSettings):
    """A judge compares the answers to each prompt, two at a time, and the stage outputs pairs; or it grades each
    answer, and the stage outputs the samples with their grade as `scores.judge`. All its judgements are kept as
    verdicts."""

    type: Literal["label"] = "label"
    judge: NamedModelRef = Field(description="the judge model; verdicts record its name")
    samples: SamplesRef = Field(description="the answers; pairwise needs several to each prompt")
    method: Literal["pairwise", "graded"] = Field(default="pairwise", description="compare two answers, or grade one")
    compare: Literal["all", "first"] = Field(
        default="all",
        description="pairwise: compare every two answers to a prompt, or each answer only with the first one",
    )
    orders: Literal["both", "random"] = Field(
        default="both",
        description="pairwise: ask twice, with each answer first, or once in an order drawn from the seed",
    )
    keep: Literal["consistent", "averaged"] = Field(
        default="consistent",
        description="pairwise: keep pairs on which both orders agree, or decide by the average over both orders",
    )
    by: Literal["text", "logprobs"] = Field(
        default="text", description="pairwise: read the judge's text, or its log-probabilities of A and B"
    )
    rounds: int = Field(default=1, ge=1, le=64, description="graded: number of grades per answer; they are averaged")
    batch_prompts: int | None = Field(
        default=None,
        ge=1,
        description="comparisons or answers in one unit of work; when absent: 64, or 512 if the judge is on a server",
    )

    @model_validator(mode="after")
    def _reads_what_is_set(self) -> Self:
        other = GRADED if self.method == "pairwise" else PAIRWISE
        unread = [name for name in other if getattr(self, name) != type(self).model_fields[name].default]
        if unread:
            raise ValueError(f"method: {self.method} does not read {', '.join(unread)}; remove it")
        return self

    @model_validator(mode="after")
    def _can_be_asked(self) -> Self:
        if self.rounds > 1 and self.temperature == 0:
            raise ValueError(f"{self.rounds} rounds at temperature 0 would give the same grade; raise the temperature")
        if self.by == "logprobs" and self.temperature != 0:
            raise ValueError("by: logprobs does not sample, so it does not read temperature; remove it")
        return self


def outputs(settings: Label) -> dict[str, str]:
    return {MAIN: "pairs" if settings.method == "pairwise" else "samples", "verdicts": "verdicts"}


def estimate(settings: Label, inputs: Inputs) -> Cost:
    """Every answer is graded, or compared with every other one."""
    came = inputs[settings.samples]
    cost = Cost() if came.records is None else _counted(settings, came, came.records)
    cost.answer = 1 if settings.by == "logprobs" else settings.max_tokens
    if came.records is None:
        cost.unknown.append(came.why)
    return cost


def _counted(settings: Label, came: Known, records: int) -> Cost:
    """The cost for a known number of answers."""
    if settings.method == "graded":
        cost = passing_on(came, records)
        found = shown(came, records, lambda record: whole(record) + _reference(settings, record))
        _ask(settings, cost, records, None if found is None else found + records * came.added)
        return cost
    if len(came.samples) == records and not came.beside and all(isinstance(each, Sample) for each in came.samples[:1]):
        own = [_compared(settings, *each) for each in _by_prompt(settings, came.samples)]
        cost = Cost(records=sum(pairs for pairs, _ in own))
        _ask(settings, cost, cost.records or 0, sum(size for _, size in own))
        return cost
    if came.group is None:
        return Cost(unknown=["comparisons: the number of answers per prompt is unknown until they are generated"])
    return _grouped(settings, came, records // came.group, came.group)


def _grouped(settings: Label, came: Known, prompts: int, each: int) -> Cost:
    """The cost for `each` answers to every prompt, which do not exist yet."""
    pairs, _ = _compared(settings, 0, [0] * each)
    cost = passing_on(came, prompts * pairs, came.added)
    cost.outputs[MAIN].group = None
    found = shown(came, prompts, lambda record: whole(record) + _reference(settings, record))
    _ask(settings, cost, prompts * pairs, None if found is None else pairs * (found + 2 * prompts * came.added))
    return cost


def _ask(settings: Label, cost: Cost, items: int, read: int | None) -> None:
    """Adds the requests to the judge about `items` answers or comparisons, which together show it `read` tokens."""
    times = settings.rounds if settings.method == "graded" else 2 if settings.orders == "both" else 1
    around = prompt_size(settings.prompt, "judge", settings.method, settings.language) + TURN + REQUEST
    calls = times * items
    cost.sampled = 0 if settings.by == "logprobs" else calls * settings.max_tokens
    cost.ask(settings.judge.name, calls, None if read is None else times * (read + items * around), cost.sampled)
    if settings.by == "text" and settings.retries:
        cost.notes.append("calls: without retries for unreadable verdicts")


def _reference(settings: Label, record: Record) -> int:
    """The bytes of the reference answer that the judge is shown."""
    prompt = record.prompt if isinstance(record, Sample) else record
    return text_size(prompt.answer) if settings.reference and isinstance(prompt, Prompt) else 0


def _by_prompt(settings: Label, samples: Sequence[Record]) -> Iterable[tuple[int, list[int]]]:
    """For each prompt its size and the sizes of its answers, in bytes."""
    found: dict[str, tuple[int, list[int]]] = {}
    for sample in samples:
        assert isinstance(sample, Sample)
        prompt = whole(sample.prompt) + _reference(settings, sample)
        found.setdefault(sample.prompt.id, (prompt, []))[1].append(text_size(sample.text))
    return found.values()


def _compared(settings: Label, prompt: int, answers: Sequence[int]) -> tuple[int, int]:
    """The number of comparisons of the answers to one prompt, and the bytes that they show, from those of each."""
    others = len(answers) - 1
    if settings.compare == "first":
        return others, others * (prompt + answers[0]) + sum(answers[1:])
    return len(answers) * others // 2, len(answers) * others // 2 * prompt + others * sum(answers)


def answers(settings: Label, of: AnswersOf) -> Answers:
    """With grades: the input samples with one more score."""
    came = of(settings.samples)
    if settings.method == "pairwise" or came.scores is None:
        return Answers()
    return replace(came, scores=(*came.scores, "judge"))


def empties(settings: Label, of: AnswersOf) -> str:
    """Why there is nothing to compare; empty if there may be."""
    if settings.method == "pairwise" and of(settings.samples).group == 1:
        return (
            f"{settings.samples} has one answer to each prompt, so there is nothing to compare; let more models "
            "answer, raise `samples` of the stage that answers, or set method: graded"
        )
    return ""


STAGE = StageType(
    "label",
    Label,
    outputs=outputs,
    work="togi.stages.data.label_work",
    version=3,
    reasons=REASONS,
    model_rows="togi.stages.data.label_rows",
    estimate=estimate,
    answers=answers,
    empties=empties,
)
