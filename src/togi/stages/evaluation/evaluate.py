"""Declares the stage `evaluate`: runs models on benchmarks, with intervals; or compares base and policy on the same
unseen prompts."""

from collections.abc import Sequence
from typing import Literal, Self

from pydantic import Field, model_validator

from togi.core.sampling import Sampling
from togi.core.settings import ModelRef, NamedModelRef, NamedScorerRef, PromptsRef, Ref, ScorerRef
from togi.rewards.settings import SystemTurns
from togi.stages.base import Around, StageSettings, StageType, gives
from togi.stages.bounds import ask_answers, read
from togi.stages.cost import Cost, Inputs
from togi.stages.evaluation.benchmarks.base import Asked, SubjectRef
from togi.stages.evaluation.benchmarks.table import BENCHMARKS, AnyBenchmark
from togi.stages.evaluation.benchmarks.table import REASONS as BENCHMARK_REASONS
from togi.stages.failures import FailureSettings

REASONS = ("failed", *BENCHMARK_REASONS)
"""Why a prompt is left out: one of its answers failed. Followed by the drop reasons of all benchmarks."""
PAIR = ("base", "policy", "prompts")
TWO_ALONE = (
    *("reward", "reward_system", "held_out", "samples", "language", "batch_prompts", "show"),
    *(name for name in Sampling.model_fields if name != "seed"),
)
"""Settings that only the comparison of base and policy reads; benchmarks have their own."""


WHAT = {"model": "a language model (kind: causal)", "scorer": "a reward model (kind: reward)"}
REFS: dict[str, type[Ref]] = {"model": NamedModelRef, "scorer": NamedScorerRef}


class Evaluate(StageSettings, FailureSettings, Sampling):
    """Measures any number of models on any number of benchmarks. Or, with base, policy and prompts, compares the two
    prompt by prompt: terminator rate, reward, held-out reward, length and diversity.

    A prompt with a failed answer of base or policy is left out for both, and counted.
    """

    type: Literal["evaluate"] = "evaluate"
    models: tuple[SubjectRef, ...] = Field(
        default=(), description="models that the benchmarks measure; also reward models, if a benchmark accepts them"
    )
    benchmarks: tuple[AnyBenchmark, ...] = Field(default=(), description="benchmarks to run, in the report's order")
    judge: ModelRef | None = Field(default=None, description="model that judges, for benchmarks that need a judge")
    baseline: SubjectRef | None = Field(
        default=None, description="model that the others are compared with; the first of models when absent"
    )
    base: ModelRef | None = Field(default=None, description="without benchmarks: the model before training")
    policy: ModelRef | None = Field(default=None, description="without benchmarks: the model after training")
    prompts: PromptsRef | None = Field(default=None, description="without benchmarks: the prompts that both answer")
    reward: ScorerRef | None = Field(default=None, description="reward model that the policy was trained with")
    reward_system: SystemTurns = Field(
        default="keep",
        description="the prompts' system turns in what `reward` reads; drop: leave them out, as in the training",
    )
    held_out: ScorerRef | None = Field(default=None, description="reward model that the policy was never trained with")
    samples: int = Field(default=1, ge=1, description="answers of each model to each prompt")
    temperature: float = Field(
        default=1.0, ge=0, le=2, description="temperature of the answers; use the policy's training temperature"
    )
    max_tokens: int = Field(default=64, ge=1, description="maximum tokens of an answer, terminator included")
    language: Literal["en", "ja", "ru"] = Field(default="en", description="units of the diversity measures")
    bootstrap: int = Field(default=2000, ge=100, description="bootstrap resamples of the prompts")
    level: float = Field(default=0.95, gt=0.5, lt=1, description="confidence level of the intervals")
    batch_prompts: int = Field(default=16, ge=1, description="prompts in one unit of work")
    show: int = Field(default=12, ge=0, description="prompts whose answers the report shows")

    @model_validator(mode="after")
    def _one_way(self) -> Self:
        given = [name for name in PAIR if getattr(self, name) is not None]
        if self.benchmarks:
            fields = type(self).model_fields
            unread = given + [name for name in TWO_ALONE if getattr(self, name) != fields[name].default]
            if unread:
                raise ValueError(
                    f"{', '.join(unread)}: not used with benchmarks, which have their own settings; remove them, "
                    "or remove benchmarks"
                )
            return self._measured()
        if self.models or self.judge is not None or self.baseline is not None:
            raise ValueError(f"models, judge and baseline need benchmarks: a list of {{type: {', '.join(BENCHMARKS)}}}")
        if len(given) < len(PAIR):
            missing = ", ".join(name for name in PAIR if name not in given)
            raise ValueError(
                f"{missing}: required without models and benchmarks; base and policy answer the same prompts"
            )
        if self.reward is None and self.reward_system != "keep":
            raise ValueError("reward_system applies to `reward`, which is not set; remove it")
        return self

    def _measured(self) -> Self:
        """Raises ValueError if benchmarks lack models, a judge or a baseline, or if a name is repeated."""
        if not self.models:
            raise ValueError("benchmarks need models: a list of references such as [$a, $b]")
        for what, names in (
            ("models", list(self.models)),
            ("names of benchmarks", [each.title for each in self.benchmarks]),
        ):
            twice = [name for place, name in enumerate(names) if name in names[:place]]
            if twice:
                hint = "; give one of them a `name`" if twice[0] not in self.models else ""
                raise ValueError(f"{what}: {twice[0]} appears twice{hint}")
        for each in self.benchmarks:
            kind = BENCHMARKS[each.type]
            if kind.judged(each) and self.judge is None:
                raise ValueError(f"benchmark {each.title} needs a judge: set `judge` to a model")
            if kind.against and self.baseline is None:
                raise ValueError(f"benchmark {each.title} needs a baseline: set `baseline` to a model")
        return self

    def within(self, around: Around) -> Self:
        """The settings with references typed as models or reward models. Raises ValueError for a kind that a benchmark
        cannot measure."""
        found = {ref: str(around.stands_for(ref)) for ref in self.models}
        for each in self.benchmarks:
            allowed = BENCHMARKS[each.type].subjects
            wrong = [ref for ref, kind in found.items() if kind in WHAT and kind not in allowed]
            if wrong:
                raise ValueError(
                    f"benchmark {each.title} measures {' or '.join(WHAT[kind] for kind in allowed)}, but {wrong[0]} is "
                    f"{WHAT[found[wrong[0]]]}; measure it in a separate evaluate stage"
                )
        refs = tuple(REFS.get(kind, SubjectRef)(ref) for ref, kind in found.items())
        baseline = self.baseline
        if baseline is not None:
            baseline = REFS.get(str(around.stands_for(baseline)), SubjectRef)(baseline)
        return self.model_copy(update={"models": refs, "baseline": baseline})


def measures(settings: Evaluate) -> Sequence[Ref]:
    """The records on which models are measured."""
    if settings.prompts is not None:
        return [settings.prompts]
    return [ref for each in settings.benchmarks for ref in BENCHMARKS[each.type].measures(each)]


def estimate(settings: Evaluate, inputs: Inputs) -> Cost:
    """The cost of two models that answer each prompt, or of the benchmarks."""
    if settings.prompts is None:
        return _estimate_benchmarks(settings, inputs)
    came = inputs[settings.prompts]
    if came.records is None:
        return Cost(answer=settings.max_tokens, unknown=[came.why])
    answers, answer = settings.samples * came.records, settings.max_tokens
    cost = Cost(samples=2 * answers, sampled=2 * answers * answer, answer=answer)
    for ref in (settings.base, settings.policy):
        assert ref is not None
        cost.ask(ref.name, came.records, read(came, came.records), answers * answer, settings.samples)
        for scorer in (settings.reward, settings.held_out):
            if scorer is not None:
                ask_answers(cost, scorer.name, came, answers, answer)
    return cost


def _estimate_benchmarks(settings: Evaluate, inputs: Inputs) -> Cost:
    """The sum over benchmarks. If one cannot estimate its cost, that is noted, the sum is a lower bound, and it is
    unknown how much the models read."""
    total = Cost()
    for each in settings.benchmarks:
        kind = BENCHMARKS[each.type]
        if kind.estimate is None:
            total.unknown.append(f"the requests of {each.title}")
            continue
        cost = kind.estimate(each, Asked(inputs, settings.models, settings.judge, settings.baseline))
        for name in ("samples", "tokens", "sampled"):
            if (more := getattr(cost, name)) is not None:
                setattr(total, name, (getattr(total, name) or 0) + more)
        for name, asked in cost.asked.items():
            total.ask(name, asked.calls, asked.read, asked.written, asked.choices)
        total.notes += cost.notes
        total.unknown += [f"{each.title}: {why}" for why in cost.unknown]
    for name in list(total.asked) if total.unknown else ():
        total.ask(name, 0, None, 0)
    return total


STAGE = StageType(
    "evaluate",
    Evaluate,
    outputs=gives("tables", items="tables"),
    work="togi.stages.evaluation.evaluate_work",
    version=18,
    reasons=REASONS,
    estimate=estimate,
    measures=measures,
    computes=lambda settings: True,  # statistics, also of stored answers
)
