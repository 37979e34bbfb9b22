"""Reward functions of grpo.yaml: f(prompt, completion) -> number. They see the answer without its terminator."""

from togi.core.records import Completion, Prompt

FEWEST_WORDS = 6


def one_sentence(prompt: Prompt, completion: Completion) -> float:
    """1 for a finished answer of one sentence, half for two or three; 0 otherwise, also for a question back."""
    text = completion.text.strip()
    if completion.stop != "terminator" or not text.endswith(".") or len(text.split()) < FEWEST_WORDS:
        return 0.0
    sentences = sum(text.count(mark) for mark in (". ", ".\n", "! ", "? ", ":\n")) + 1
    return 1.0 if sentences == 1 else 0.5 if sentences <= 3 else 0.0
