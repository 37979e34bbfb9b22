"""A judge as a reward: its grade is a score, and an answer without a grade is a failure, never a zero."""

from pathlib import Path

import pytest
from judges import SpokenJudge, between

from togi.core.errors import GraderError, StageError
from togi.core.records import Completion, Message, Prompt
from togi.core.settings import references
from togi.rewards.build import RewardResources, build_reward
from togi.rewards.settings import JudgeTerm, RewardSettings
from togi.stages import judging_work
from togi.stages.context import Context, Control
from togi.stages.judging_work import JudgeScorer

PROMPT = Prompt(id="p", messages=(Message("user", "Why?"),), answer="never shown")


def say(text: str, index: int) -> str | None:
    found = between(text, "Answer", "End of the answer")
    return {"good": "Rating: [[9]]", "gone": None, "slow": "hm" if index == 0 else "[[4]]"}.get(found, "I refuse.")


@pytest.fixture
def reward(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A reward whose only term is a judge, and that judge."""
    judge = SpokenJudge(say)
    monkeypatch.setattr(judging_work, "generator", lambda context, ref, batch_rows: judge)
    context = Context("policy", tmp_path, tmp_path, 1, {}, Control(send=lambda event: None))
    terms = [{"type": "judge", "judge": "$teacher", "weight": 0.5, "cap": 8}]
    settings = RewardSettings.model_validate({"terms": terms, "max_failed_share": 0.6})
    (term,) = settings.terms
    assert isinstance(term, JudgeTerm) and [str(ref) for _, ref in references(settings)] == ["$teacher"]
    judges = {term.name: JudgeScorer(term, context, batch_rows=4)}
    return build_reward(settings, RewardResources(terminator="</s>", judges=judges)), judge


def graded(reward, *texts: str):
    return reward.grade(PROMPT, [Completion(text=f"{text}</s>", stop="terminator") for text in texts])


def test_a_grade_is_shaped_and_weighted_like_any_score(reward):
    built, judge = reward
    (good, slow) = graded(built, "good", "slow")
    assert (good.components, good.total) == ({"judge": 9.0}, 4.0)
    assert (slow.components, slow.total) == ({"judge": 4.0}, 2.0)  # asked again under the next index
    assert "never shown" not in "".join(judge.asked)


def test_what_gives_no_grade_is_a_failure(reward):
    built, _ = reward
    found = graded(built, "good", "gone", "bad")
    assert [row.total for row in found] == [4.0, None, None]
    assert "prompt p" in found[1].failed and "the request failed" in found[1].failed
    assert "cannot read a grade in 'I refuse.'" in found[2].failed
    with pytest.raises(StageError, match="3 of 4 answers could not be graded"):
        built.check_failures(graded(built, "good", "gone", "bad", "bad"))


def test_the_scorer_gives_errors_in_the_place_of_scores(reward):
    built, _ = reward
    scorer = built.terms[0].grader.scorer
    found = scorer.score([(PROMPT.messages, "gone"), (PROMPT.messages, "good")])
    assert isinstance(found[0], GraderError) and found[1] == 9.0
