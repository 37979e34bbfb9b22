"""How a model was spoken to while it learnt: saved with it, so that whoever talks to it later can do the same."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from togi.core.records import Message

NEARLY_ALL = 0.9  # share of the rows


@dataclass(frozen=True, slots=True)
class Spoken:
    """The system prompt of training, and how answers were sampled there; None where there was none."""

    system: str | None = None
    sampling: Mapping[str, Any] | None = None

    def to_json(self) -> dict[str, Any]:
        """The keys of a saved model's card."""
        return {"system": self.system, "sampling": None if self.sampling is None else dict(self.sampling)}


def common_system(prompts: Iterable[Sequence[Message]]) -> str | None:
    """The system turn that all prompts, or nearly all, begin with; None where there is none such."""
    counts = Counter(prompt[0].content if prompt and prompt[0].role == "system" else None for prompt in prompts)
    text, count = counts.most_common(1)[0] if counts else (None, 0)
    return text if count >= NEARLY_ALL * counts.total() else None
