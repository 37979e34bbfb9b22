"""Facts about answers that are known before the answers exist: their number per prompt, their scores, and references.
With them `togi check` finds what a run would refuse after hours."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from togi.core.records import Prompt, Record, Sample
from togi.core.settings import Ref

MOST = 10_000
"""Records that are read for this; nothing is known of a larger set."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Answers:
    """What is known of samples, or of the prompts that they will answer: the most answers to one prompt, the names of
    their scores, and whether a prompt has a reference answer. None is unknown."""

    group: int | None = None
    scores: tuple[str, ...] | None = None
    references: bool | None = None


AnswersOf = Callable[[Ref], Answers]
"""What is known of the records that a reference names."""


def answers_in(records: Sequence[Record]) -> Answers:
    """What prompts or samples tell; nothing for other records."""
    if not 0 < len(records) <= MOST:
        return Answers()
    found = list(records)
    prompts = [each for each in found if isinstance(each, Prompt)]
    samples = [each for each in found if isinstance(each, Sample)]
    if len(samples) < len(found):
        return Answers(references=any(map(has_reference, prompts)) if len(prompts) == len(found) else None)
    return Answers(
        group=max(Counter(sample.prompt.id for sample in samples).values()),
        scores=tuple(dict.fromkeys(name for sample in samples for name in sample.scores)),
        references=any(has_reference(sample.prompt) for sample in samples),
    )


def has_reference(prompt: Prompt) -> bool:
    """Whether a prompt has a reference answer."""
    return bool((prompt.answer or "").strip())
