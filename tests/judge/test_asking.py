"""A judge is asked again, for the next sample index and as often as allowed; what stays unreadable is not read."""

from dataclasses import dataclass, field

from togi.core.records import Completion, Message, Prompt, SamplingParams
from togi.judge.asking import Asker
from togi.judge.reading import read_grade


@dataclass
class Judge:
    """Answers with the given texts: a list for each prompt, by sample index; None is a request that failed."""

    texts: dict[str, list[str | None]]
    asked: list[tuple[list[str], float, int]] = field(default_factory=list)
    refuses: bool = False

    def generate(self, prompts, params):
        self.asked.append(([p.id for p in prompts], params.temperature, params.n))
        return [[self.said(self.texts[p.id][i]) for i in range(params.n)] for p in prompts]

    def said(self, text):
        failure = Completion(text="", stop="error", refused=self.refuses)
        return failure if text is None else Completion(text=f"{text}</s>", stop="terminator")


def ask(judge: Judge, retries: int = 1, rounds: int = 1, temperature: float = 0.0):
    params = SamplingParams(temperature=temperature)
    asker = Asker(
        generator=judge, read=lambda t: read_grade(t, 1, 10), params=params, retries=retries, terminator="</s>"
    )
    return asker.ask([Prompt(id=name, messages=(Message("user", name),)) for name in judge.texts], rounds)


def test_only_what_cannot_be_read_is_asked_again_and_no_longer_greedily():
    judge = Judge({"a": ["[[7]]", "never"], "b": ["hm", "[[3]]"], "c": [None, "never"]})
    found = ask(judge)
    assert [each.values for each in found] == [[7.0], [3.0], []]
    assert [each.failed for each in found] == [False, False, True]
    assert [attempt.text for attempt in found[1].attempts] == ["hm", "[[3]]"]
    assert judge.asked == [(["a", "b", "c"], 0.0, 1), (["b"], 0.5, 2)]


def test_a_question_that_the_server_refuses_says_so():
    judge = Judge({"a": [None], "b": ["[[7]]"]}, refuses=True)
    assert [(each.failed, each.refused) for each in ask(judge)] == [(True, True), (False, False)]


def test_retries_are_bounded_and_the_last_text_counts_no_more_than_the_first():
    judge = Judge({"a": ["x", "y", "z", "[[5]]"]})
    (found,) = ask(judge, retries=2)
    assert found.values == [] and [attempt.text for attempt in found.attempts] == ["x", "y", "z"]
    assert [n for _, _, n in judge.asked] == [1, 2, 3]


def test_rounds_are_filled_up_from_the_next_indices():
    judge = Judge({"a": ["[[4]]", "hm", "[[6]]", "[[8]]", "never"], "b": ["[[1]]", "[[2]]", "[[3]]"]})
    found = ask(judge, rounds=3, temperature=0.7)
    assert [each.values for each in found] == [[4.0, 6.0, 8.0], [1.0, 2.0, 3.0]]
    assert judge.asked == [(["a", "b"], 0.7, 3), (["a"], 0.7, 4)]
