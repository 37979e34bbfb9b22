"""Pairs without labels: what is rejected, and that nothing is rejected for being itself."""

from togi.core.records import Message, Prompt
from togi.stages.contrast_work import _instructed, _of_others


def test_off_topic_gives_every_prompt_the_answer_of_another_one():
    answers = [f"answer {i}" for i in range(9)]
    for seed in range(20):
        others = _of_others(answers, seed)
        assert sorted(others) == sorted(answers)
        assert all(other != own for other, own in zip(others, answers, strict=True))
    assert _of_others(answers, 1) != _of_others(answers, 2)


def test_an_instruction_is_a_system_turn_or_the_whole_user_turn():
    prompt = Prompt(id="p", messages=(Message("system", "Be brief."), Message("user", "Why?")))
    system = _instructed("Be careless.", "careless-0", prompt)
    assert system.messages == (Message("system", "Be careless."), Message("user", "Why?"))
    whole = _instructed("Ask again: {question}", "careless-1", prompt)
    assert whole.messages == (Message("user", "Ask again: Why?"),)
    assert system.id != whole.id  # the random stream of a sample follows from it
