"""What the report shows of samples: the number and mean length of each model's answers, and a few examples."""

from collections import Counter
from collections.abc import Iterable
from typing import Any

from togi.core.records import Prompt, Sample

PROMPTS = 12
ANSWERS = 4
"""Maximum number of example prompts, and of answers shown for each."""


class Shown:
    """Collects statistics and examples from all samples of a stage; `by` is the score shown with an answer."""

    def __init__(self, by: str = "") -> None:
        self.by = by
        self.counts: Counter[str] = Counter()
        self.characters: Counter[str] = Counter()
        self.prompts: dict[str, tuple[Prompt, list[dict[str, Any]]]] = {}

    def take(self, samples: Iterable[Sample]) -> None:
        """Adds the next samples."""
        for sample in samples:
            model = sample.model or "unknown"
            self.counts[model] += 1
            self.characters[model] += len(sample.text)
            if len(self.prompts) < PROMPTS:
                self.prompts.setdefault(sample.prompt.id, (sample.prompt, []))
            _, said = self.prompts.get(sample.prompt.id, (None, None))
            if said is not None and len(said) < ANSWERS:
                said.append({"who": model, "text": sample.text, "score": sample.scores.get(self.by)})

    def summary(self) -> dict[str, Any]:
        """Returns the entries for the stage's summary."""
        return {
            "answers_of": dict(self.counts),
            "mean_characters": {name: round(self.characters[name] / count, 1) for name, count in self.counts.items()},
            "examples": [{"question": prompt.text, "said": said} for prompt, said in self.prompts.values()],
        }
