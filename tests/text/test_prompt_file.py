"""Prompt files: values are filled in, and an unusable file gives one clear message."""

import pytest

from togi.core.errors import InputError
from togi.text.prompt_file import PromptFile, read_prompt


def test_values_stand_in_their_places_and_the_margins_are_cut(tmp_path):
    path = tmp_path / "own.j2"
    path.write_text("\n{% if answer %}{{ answer }}: {% endif %}{{ question }}\n\n", encoding="utf-8")
    prompt = read_prompt(path)
    assert prompt.render({"question": "{{ answer }}?", "answer": "青"}) == "青: {{ answer }}?"
    assert prompt.render({"question": "Q", "answer": None}) == "Q"


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("{{ qestion }}", "'qestion' is undefined; it may use question"),
        ("one\n{% if %}", r"own\.j2:2: the prompt cannot be rendered"),
        ("{{ question.__class__.__mro__ }}", "unsafe|undefined"),
        ("{% if false %}{{ question }}{% endif %}", "the prompt is empty"),
        ("{{ 1 // 0 }}", "ZeroDivisionError"),
        ("{% for i in range(99999999) %}x{% endfor %}", "own.j2"),
    ],
)
def test_a_prompt_that_cannot_be_rendered_says_where_and_what_it_may_use(source, said):
    with pytest.raises(InputError, match=said) as error:
        PromptFile("own.j2", source).render({"question": "Why?"})
    assert "own.j2" in str(error.value)


def test_a_file_that_is_no_text_is_refused(tmp_path):
    path = tmp_path / "own.j2"
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(InputError, match=r"own\.j2: is not UTF-8"):
        read_prompt(path)
    with pytest.raises(InputError, match=r"gone\.j2: the prompt cannot be read: No such file"):
        read_prompt(tmp_path / "gone.j2")
