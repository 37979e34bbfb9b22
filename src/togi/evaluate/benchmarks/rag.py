"""The columns of the benchmark `rag`, after Vikhr-Nemo's card: answers from documents that are judged correct, are
similar to the reference, and name the right documents.

The card publishes the first three columns, for questions about the documents (in domain) and for others (out of
domain). Its code is not public: the definitions below are our interpretation, stated in each column's note.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from togi.data.grounded_questions import GroundedQuestion
from togi.evaluate.benchmarks.table import Part, Values, measured
from togi.evaluate.rouge import Tokens, rouge_l
from togi.evaluate.statistics import Bootstrap
from togi.evaluate.table import Metric
from togi.text.grounded import Relevant

CORRECT = Metric(
    name="correct",
    higher_is_better=True,
    note="share judged correct, given documents and reference",
    share=True,
)
ROUGE = Metric(name="ROUGE-L", higher_is_better=True, most=1.0, note="F1 with the reference answer, over words")
COUNTS_DIFFER = Metric(
    name="ids: difference in number", higher_is_better=False, note="| number of named ids - number of right ids |"
)
PLACES_DIFFER = Metric(
    name="ids: difference in place",
    higher_is_better=False,
    note="mean | k-th named id - k-th right id |, both sorted; undefined if only one of the lists is empty",
)
SET_F1 = Metric(name="ids: F1", higher_is_better=True, most=1.0, note="of the sets of ids; 1 if both are empty")
EXACT = Metric(name="ids: exact", higher_is_better=True, note="share of answers with exactly the right ids", share=True)
UNREAD = Metric(
    name="ids: not readable", higher_is_better=False, note="share of first replies without a list of ids", share=True
)
UNKNOWN = Metric(
    name="ids: unknown", higher_is_better=False, note="share of lists with an id that no document has", share=True
)
UNSUPPORTED = Metric(
    name="unsupported",
    higher_is_better=False,
    note="share of an answer's sentences that its named documents do not support, by the judge",
    share=True,
)
COLUMNS = (CORRECT, ROUGE, UNSUPPORTED, EXACT, SET_F1, COUNTS_DIFFER, PLACES_DIFFER, UNREAD, UNKNOWN)
DOMAINS = {"in_domain": "in domain", "out_of_domain": "out of domain"}


@dataclass(frozen=True, slots=True, kw_only=True)
class GroundedAnswer:
    """A subject's answer to a question; `text` is None if a request failed. `grounded`: it was asked for ids;
    `relevant` are the ids that it named, None if unreadable. `correct` and `unsupported` (the share of its sentences)
    are the judge's, None without a verdict."""

    text: str | None
    grounded: bool = True
    relevant: Relevant | None = None
    correct: bool | None = None
    unsupported: float | None = None


def values_of(question: GroundedQuestion, answer: GroundedAnswer, tokens: Tokens) -> dict[str, float | None]:
    """The numbers of one answer by column; None if undefined."""
    found: dict[str, float | None] = dict.fromkeys(column.name for column in COLUMNS)
    if answer.text is None:
        return found
    found[CORRECT.name] = None if answer.correct is None else float(answer.correct)
    found[UNSUPPORTED.name] = answer.unsupported
    if question.reference is not None:
        found[ROUGE.name] = rouge_l(tokens(question.reference), tokens(answer.text))
    if answer.grounded:
        found[UNREAD.name] = float(answer.relevant is None)
    if answer.relevant is not None:
        found[UNKNOWN.name] = float(bool(answer.relevant.unknown))
        if question.relevant is not None:
            found |= id_values(answer.relevant.ids, question.relevant)
    return found


def id_values(named: Sequence[int], right: Sequence[int]) -> dict[str, float | None]:
    """The numbers that compare the named ids with the right ones."""
    pairs = list(zip(sorted(named), sorted(right), strict=False))
    places = sum(abs(one - other) for one, other in pairs) / len(pairs) if pairs else None
    both = len([name for name in named if name in right])
    total = len(named) + len(right)
    return {
        EXACT.name: float(sorted(named) == sorted(right)),
        SET_F1.name: 2 * both / total if total else 1.0,
        COUNTS_DIFFER.name: float(abs(len(named) - len(right))),
        PLACES_DIFFER.name: places if total else 0.0,
    }


def rag_values(
    questions: Sequence[GroundedQuestion],
    answers: Mapping[str, Sequence[GroundedAnswer]],
    tokens: Tokens,
    columns: Sequence[Metric],
) -> Values:
    """By subject and column: one number per question."""
    found = {}
    for subject, own in answers.items():
        rows = [values_of(question, answer, tokens) for question, answer in zip(questions, own, strict=True)]
        found[subject] = {column.name: [row[column.name] for row in rows] for column in columns}
    return found


def rag_parts(
    questions: Sequence[GroundedQuestion], values: Values, columns: Sequence[Metric], bootstrap: Bootstrap
) -> list[Part]:
    """The same columns for questions in domain and out of domain, as on the card."""
    parts = []
    for domain, title in DOMAINS.items():
        places = [place for place, question in enumerate(questions) if question.domain == domain]
        chosen = {
            subject: {name: [column[place] for place in places] for name, column in own.items()}
            for subject, own in values.items()
        }
        if places:
            owners = [questions[place].owner for place in places]
            note = f"{len(places)} question{'s' if len(places) > 1 else ''}"
            parts.append(
                Part(title=title, columns=columns, cells=measured(columns, chosen, bootstrap, owners), note=note)
            )
    return parts
