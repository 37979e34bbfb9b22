"""Questions with documents: from dialogues, from SQuAD files, and written to a folder."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from places import ROOT

from togi.core.errors import InputError
from togi.core.records import Message, Prompt
from togi.data.document_files import Part
from togi.data.grounded_questions import (
    Drawing,
    GroundedQuestion,
    from_contexts,
    from_dialogue,
    from_folder,
    has_context,
)
from togi.data.importing import DataSpec, load_records
from togi.data.retrieval import Bm25
from togi.text.grounded import NO_ANSWER, Shown, asked, dialogue

SHOWN = [Shown("A", "Rain falls."), Shown("B", "Snow falls.")]
XQUAD = ROOT.parent / "shared" / "data" / "xquad"


def load(folder: Path, rows: Any, name: str = "rows.json", **spec: Any) -> list[Any]:
    (folder / name).write_text(json.dumps(rows, ensure_ascii=False), encoding="utf-8")
    return list(load_records(DataSpec(path=folder / name, **spec), "prompts").records)


def turns(*messages: Message) -> list[dict[str, str]]:
    return [{"role": each.role, "content": each.content} for each in messages]


# --- dialogues --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "relevant", "domain"),
    [
        ("good", (1,), "in_domain"),
        ("ood", (), "out_of_domain"),
        (None, (), "out_of_domain"),
        (None, (0, 1), "in_domain"),
    ],
)
def test_a_dialogue_of_the_published_set(tmp_path: Path, kind: str | None, relevant: tuple[int, ...], domain: str):
    row = {"conversation": turns(*dialogue(SHOWN, "What falls?", relevant, "Snow.\n\nIt does."))}
    row |= {} if kind is None else {"type": kind}
    (prompt,) = load(tmp_path, [row], preset="Vikhrmodels/Grounded-RAG-RU-v2")
    found = from_dialogue(prompt)
    assert (found.question, found.relevant, found.domain) == ("What falls?", relevant, domain)
    assert found.reference == "Snow.\n\nIt does." and list(found.documents) == SHOWN


def test_a_dialogue_without_an_answer_says_nothing_of_its_documents(tmp_path: Path):
    (prompt,) = load(tmp_path, [{"messages": turns(*asked(SHOWN, "What falls?"))}])
    found = from_dialogue(prompt)
    assert (found.relevant, found.reference, found.domain) == (None, None, None)


@pytest.mark.parametrize(
    ("messages", "says"),
    [
        ((Message("documents", "Rain falls."), Message("user", "Why?")), "is not a JSON list of objects with doc_id 0"),
        ((*asked(SHOWN, "Why?"), Message("assistant", "So."), Message("user", "And?")), "2 user turns"),
    ],
)
def test_what_is_no_grounded_dialogue_is_told(messages: tuple[Message, ...], says: str):
    with pytest.raises(InputError, match=says):
        from_dialogue(Prompt(id="p", messages=messages))


# --- SQuAD ------------------------------------------------------------------------------------------------------------


def squad(*articles: tuple[str, dict[str, list[str]]]) -> dict[str, Any]:
    """A SQuAD file of articles with texts and questions; the answer to each question is the last word of its text."""
    return {
        "version": "1.1",
        "data": [
            {
                "title": title,
                "paragraphs": [
                    {
                        "context": context,
                        "qas": [
                            {"id": f"{context}-{ask}", "question": ask, "answers": [{"text": context.split()[-1]}]}
                            for ask in questions
                        ],
                    }
                    for context, questions in texts.items()
                ],
            }
            for title, texts in articles
        ],
    }


FILE = squad(
    ("Rain", {"Rain is water": ["What is rain?"], "Rain comes from clouds": ["Where from?", "And whence?"]}),
    ("Snow", {"Snow is ice": ["What is snow?"]}),
    ("Wind", {"Wind is air": ["What is wind?"], "Wind comes from pressure": ["Why?"]}),
)


def drawn(prompts: list[Prompt], **changes: Any) -> list[GroundedQuestion]:
    return from_contexts(prompts, Drawing(**{"shown": 3, "outside": 0.0, "seed": 5, "language": "en", **changes}))


def test_a_file_of_squad_gives_its_questions(tmp_path: Path):
    found = load(tmp_path, FILE)
    assert [prompt.text for prompt in found][:3] == ["What is rain?", "Where from?", "And whence?"]
    assert found[1].answer == "clouds" and found[1].extra["title"] == "Rain" and all(map(has_context, found))


@pytest.mark.parametrize(
    ("broken", "says"),
    [
        ({"data": [{"paragraphs": [{"context": "x"}]}]}, "article 1, paragraph 1: 'qas': found nothing, wanted a list"),
        ({"data": [{"paragraphs": [{"qas": [7]}]}]}, "article 1, paragraph 1, question 1: found a number"),
        ({"data": [{"paragraphs": []}, {"title": "x"}]}, "article 2: 'paragraphs': found nothing"),
    ],
)
def test_a_broken_file_of_squad_is_told_by_its_place(tmp_path: Path, broken: dict[str, Any], says: str):
    with pytest.raises(InputError, match=says):
        load(tmp_path, broken)


def test_a_question_stands_among_texts_of_its_article_first(tmp_path: Path):
    for found in drawn(load(tmp_path, FILE)):
        (right,) = found.relevant or ()
        assert found.domain == "in_domain" and len(found.documents) == 3
        assert found.reference == found.documents[right].content.split()[-1]
        if found.documents[right].title != "Snow":
            assert [each.title for each in found.documents].count(found.documents[right].title) == 2


def test_questions_of_a_text_have_one_owner_and_their_texts_come_in_any_order(tmp_path: Path):
    found = drawn(load(tmp_path, FILE))
    assert len({each.owner for each in found}) == 5 and found[1].owner == found[2].owner
    assert len({each.relevant for each in found}) > 1, "the right text does not always stand in one place"
    assert drawn(load(tmp_path, FILE)) == found and drawn(load(tmp_path, FILE), seed=6) != found


def test_a_share_is_asked_about_other_articles_where_nothing_answers(tmp_path: Path):
    prompts = load(tmp_path, FILE)
    found = drawn(prompts, outside=0.5, language="ru")
    away = [(prompt, each) for prompt, each in zip(prompts, found, strict=True) if each.domain == "out_of_domain"]
    assert len(away) == 3
    for prompt, each in away:
        assert each.relevant == () and each.reference == NO_ANSWER["ru"]
        assert prompt.extra["title"] not in [document.title for document in each.documents]
    with pytest.raises(InputError, match="all texts belong to one article"):
        drawn(prompts[:3], outside=1.0)


@pytest.mark.parametrize("answers", [[], {"text": [], "answer_start": []}], ids=["file", "hub"])
def test_a_question_without_an_answer_in_its_text_is_out_of_domain(answers: Any):
    extra = {"context": "Rain is water", "answers": answers}
    (found,) = drawn([Prompt(id="p", messages=(Message("user", "Who?"),), extra=extra)])
    assert (found.relevant, found.domain, found.reference) == ((), "out_of_domain", NO_ANSWER["en"])


def test_rows_as_the_hub_has_them_keep_their_first_answer():
    extra = {"context": "Rain is water", "answers": {"text": ["water", "wet"], "answer_start": [8, 8]}}
    (found,) = drawn([Prompt(id="p", messages=(Message("user", "What?"),), extra=extra)])
    assert (found.reference, found.relevant) == ("water", (0,))


@pytest.mark.skipif(not XQUAD.is_dir(), reason="XQuAD lies beside the project, in ../shared")
@pytest.mark.parametrize("language", ["en", "ru"])
def test_xquad_is_read_whole(language: str):
    prompts = [
        each
        for each in load_records(DataSpec(path=XQUAD / f"xquad.{language}.json"), "prompts").records
        if isinstance(each, Prompt)
    ]
    found = drawn(prompts, shown=6, outside=0.5, language=language)
    assert len(found) == 1190 and len({each.owner for each in found}) == 240
    assert Counter(each.domain for each in found) == {"in_domain": 595, "out_of_domain": 595}
    assert {len(each.documents) for each in found} == {6}


# --- a folder ---------------------------------------------------------------------------------------------------------


def test_questions_to_a_folder_are_shown_what_fits_best():
    parts = [Part("f.md", "line 1", Shown(None, f"{word} falls from the sky")) for word in ("rain", "snow", "hail")]
    prompts = [Prompt(id="p", messages=(Message("user", "When does hail fall?"),), answer="Now.")]
    finder = Bm25([part.shown.content for part in parts])
    (found,) = from_folder(prompts, parts, finder, 2)
    assert found.documents[0].content.startswith("hail") and len(found.documents) == 2
    assert (found.relevant, found.reference, found.domain) == (None, "Now.", None)
    (whole,) = from_folder(prompts, parts, finder, 3)
    assert [each.content[:4] for each in whole.documents] == ["rain", "snow", "hail"]
