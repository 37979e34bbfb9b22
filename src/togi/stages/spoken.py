"""The system prompt and sampling settings of training, saved with a model, so that chats with it can use the same."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from togi.core.records import Message

NEARLY_ALL = 0.9  # fraction of the rows


@dataclass(frozen=True, slots=True)
class Spoken:
    """The system prompt of training, and how answers were sampled there; each is None if there was none."""

    system: str | None = None
    sampling: Mapping[str, Any] | None = None

    def to_json(self) -> dict[str, Any]:
        """The keys of a saved model's card."""
        return {"system": self.system, "sampling": None if self.sampling is None else dict(self.sampling)}


def common_system(prompts: Iterable[Sequence[Message]]) -> str | None:
    """The system turn at the beginning of all prompts, or nearly all; None if there is no such turn."""
    counts = Counter(prompt[0].content if prompt and prompt[0].role == "system" else None for prompt in prompts)
    text, count = counts.most_common(1)[0] if counts else (None, 0)
    return text if count >= NEARLY_ALL * counts.total() else None
