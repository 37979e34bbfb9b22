"""A judge for tests: a `Generator` that answers with a function of the question and records the questions."""

from collections.abc import Callable
from dataclasses import dataclass, field

from togi.core.records import Completion, Message, Prompt, Sample

END = "<end>"


@dataclass
class SpokenJudge:
    """`say(text of the question, index)` returns the answer, or None for a request that failed."""

    say: Callable[[str, int], str | None]
    terminator: str = END
    turn_starts: tuple[str, ...] = ()
    asked: list[str] = field(default_factory=list)

    def generate(self, prompts, params):
        self.asked += [prompt.messages[-1].content for prompt in prompts]
        return [[self.completion(prompt, index) for index in range(params.n)] for prompt in prompts]

    def completion(self, prompt: Prompt, index: int) -> Completion:
        text = self.say(prompt.messages[-1].content, index)
        return Completion(text="", stop="error") if text is None else Completion(text=text + END, stop="terminator")


def sample(name: str, question: str, text: str, model: str | None = None, reference: str | None = None) -> Sample:
    """An answer; answers to one question share their prompt."""
    prompt = Prompt(id=f"p-{question}", messages=(Message("user", question),), answer=reference)
    return Sample(id=name, prompt=prompt, completion=Completion(text=text, stop="terminator"), model=model)


def between(text: str, start: str, end: str) -> str:
    """The text between two lines of togi's English prompt."""
    return text.partition(f"[{start}]\n")[2].partition(f"\n[{end}]")[0]


def shown(text: str) -> tuple[str, str]:
    """Answers A and B of togi's English prompt."""
    return between(text, "Answer A", "End of answer A"), between(text, "Answer B", "End of answer B")
