"""Every setting of a judge's prompt is read, in the stage, in the reward and in the benchmarks."""

import pytest

from togi.core.judging import JudgePrompt, NamedJudgePrompt
from togi.stages.data.label import Label
from togi.stages.evaluation.benchmarks.arena import Arena
from togi.stages.evaluation.benchmarks.graded import GradedSet
from togi.stages.evaluation.benchmarks.mt_bench import MtBench
from togi.stages.evaluation.benchmarks.reward_accuracy import RewardAccuracy
from togi.stages.evaluation.benchmarks.safety import Safety

QUESTIONS = {"questions": "$questions"}
ASKING = {
    Label: {"judge": "$judge", "samples": "$samples"},
    Arena: QUESTIONS,
    GradedSet: QUESTIONS,
    MtBench: QUESTIONS,
    RewardAccuracy: {"pairs": "$pairs"},
    Safety: QUESTIONS,
}


@pytest.mark.parametrize("kind", ASKING, ids=lambda kind: kind.__name__)
def test_the_language_of_the_own_prompt_is_not_read_with_another_prompt(kind: type[JudgePrompt]) -> None:
    with pytest.raises(ValueError, match="language selects one of togi's own prompts"):
        kind(**ASKING[kind], language="ja", prompt="mine.j2")


@pytest.mark.parametrize("kind", [kind for kind in ASKING if kind is not MtBench], ids=lambda kind: kind.__name__)
def test_the_name_of_a_prompt_needs_the_file(kind: type[NamedJudgePrompt]) -> None:
    with pytest.raises(ValueError, match="prompt_name selects from the file under prompt, but prompt is not set"):
        kind(**ASKING[kind], prompt_name="pair")
