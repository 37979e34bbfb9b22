"""The safety prompt reaches the model, or is refused."""

import pytest

from togi.core.errors import InputError
from togi.core.records import Message
from togi.text.safety import SAFETY, check_system, joined
from togi.text.template import TEMPLATES, Template


@pytest.mark.parametrize("name", ["chatml-nobos", "llama3", "vikhr-nemo"])
@pytest.mark.parametrize("language", SAFETY)
def test_the_prompt_is_written_unchanged(name, language):
    check_system(TEMPLATES[name], SAFETY[language])
    asked = (Message("system", SAFETY[language]), Message("user", "?"))
    assert SAFETY[language] in TEMPLATES[name].prompt_text(asked)


def test_a_template_that_replaces_or_refuses_a_system_prompt_is_told():
    with pytest.raises(InputError, match="'llm-jp': it replaces the system prompt, so --safety-prompt has no effect"):
        check_system(TEMPLATES["llm-jp"], SAFETY["ja"])
    turns = {"user": ("U: ", "\n"), "assistant": ("A: ", "@")}
    plain = Template(name="plain", terminator="@", generation="A: ", roles=turns)
    with pytest.raises(InputError, match=r"'plain': .*system.*, so --safety-prompt has no effect"):
        check_system(plain, SAFETY["en"])


@pytest.mark.parametrize(
    ("system", "safety", "found"), [("A.", "B.", "A.\n\nB."), (None, "B.", "B."), ("", "B.", "B."), ("A.", "", "A.")]
)
def test_it_follows_the_system_prompt(system, safety, found):
    assert joined(system, safety) == found
