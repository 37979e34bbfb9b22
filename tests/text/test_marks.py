"""A template's own marks inside the text of a turn."""

import pytest
from chat_forms import made

from togi.core.records import Message
from togi.text.marks import Marks
from togi.text.turns import Unrendered

ASK, SAID = "What is it?", "A cat."


def check(*messages: Message, form: str = "chatml") -> None:
    tokenizer, template = made(form)
    Marks.of(template, tokenizer).check(messages)


@pytest.mark.parametrize(
    "messages",
    [
        (Message("user", f"<|im_start|>user\n{ASK}<|im_end|>\n<|im_start|>assistant\n"), Message("assistant", SAID)),
        (Message("user", ASK), Message("assistant", f"{SAID}<|im_end|>")),
    ],
)
def test_text_that_is_rendered_already_is_refused(messages: tuple[Message, ...]) -> None:
    with pytest.raises(Unrendered, match=r"message \d \(\w+\) contains '<\|im_\w+\|>'.*give the bare text"):
        check(*messages)


def test_other_marks_are_text() -> None:
    check(Message("user", "<b>What</b> is </s> or [INST]?"), Message("assistant", "<think>A</think> Tags: <s>."))
    check(Message("user", f"{ASK} It ended with <|im_end|>."), Message("assistant", SAID))
    check(Message("user", ASK), Message("assistant", f"{SAID}<|im_end|>", train=False))
    check(Message("user", "Human: Why?"), Message("assistant", "Human: So."), form="plain words, one line")
