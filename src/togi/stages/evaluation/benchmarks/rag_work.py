"""Runs the benchmark `rag`. The two steps are those of `togi ground`."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

from togi.core.errors import InputError, StageError
from togi.core.records import Message, Prompt, SamplingParams
from togi.core.seeds import derive, digest
from togi.core.settings import ModelRef
from togi.data.document_files import read_parts
from togi.data.grounded_questions import (
    Drawing,
    GroundedQuestion,
    from_contexts,
    from_dialogue,
    from_folder,
    has_context,
    has_documents,
)
from togi.data.retrieval import Bm25, ByEmbedding, Finder
from togi.evaluate.benchmarks.orders import near_chance
from togi.evaluate.benchmarks.rag import COLUMNS, CORRECT, DOMAINS, UNSUPPORTED, GroundedAnswer, rag_parts, rag_values
from togi.evaluate.benchmarks.table import Table, measured, paired
from togi.evaluate.rouge import tokens_of
from togi.judge.contests import Weighed
from togi.judge.grounded import (
    case_values,
    correct_prompt,
    read_correct,
    read_numbers,
    sentences,
    support_prompt,
)
from togi.stages.endpoints import reader
from togi.stages.evaluation.benchmarks.asking_work import Again, Asking
from togi.stages.evaluation.benchmarks.judged_work import measured as measured_models
from togi.stages.evaluation.benchmarks.rag import Rag
from togi.stages.evaluation.benchmarks.rehearsed_work import subject as subject_of
from togi.stages.evaluation.benchmarks.room_work import Room, Said
from togi.stages.evaluation.benchmarks.weighed_work import LETTERS, weighed
from togi.stages.rehearsal_work import Rehearsed, weightless
from togi.text.grounded import IDS, Shown, asked, asked_again, asked_at_once, read_relevant, role_left_out
from togi.text.prompt_file import PromptFile
from togi.text.template import Template

Verdict = TypeVar("Verdict")
Answers = dict[str, list[GroundedAnswer]]
"""One answer to each question, by subject."""


def run(settings: Rag, room: Room) -> Table:
    prompts: list[Prompt] = room.records(settings.questions)
    tokens = tokens_of(settings.language)
    questions = _questions(settings, room, prompts)
    subjects = measured_models(room)
    for subject in subjects:
        ref = ModelRef(subject_of(room, subject))
        if not _at_once(settings, subject) and room.context.inputs[ref].endpoint is None:
            _check_shown(room, subject, reader(room.context, ref)[1], questions[0])
    answers = {subject: _answers(settings, room, subject, questions) for subject in subjects}
    agreed: dict[str, list[bool]] = {}
    if settings.correct:
        answers, agreed = _judge_correct(settings, room, questions, answers)
    if settings.support:
        answers = _judge_support(settings, room, questions, answers)
    asked = {CORRECT: settings.correct, UNSUPPORTED: settings.support}
    columns = [column for column in COLUMNS if asked.get(column, True)]
    values = rag_values(questions, answers, tokens, columns)
    owners = [question.owner for question in questions]
    bootstrap = room.bootstrap
    return Table(
        benchmark=room.name,
        columns=columns,
        cells=measured(columns, values, bootstrap, owners),
        rows=len(questions),
        baseline=room.baseline,
        differences=paired(columns, values, room.baseline, bootstrap, owners) if room.baseline else {},
        parts=rag_parts(questions, values, columns, bootstrap),
        items=[question.id for question in questions],
        owners=owners,
        values=values,
        dropped=room.dropped,
        leaks=room.leaks(prompts),
        notes=[*_notes(settings, room, questions), *near_chance(agreed, "A and B for correct", room.level)],
        manifest=room.manifest(),
        level=room.level,
    )


def rehearse(settings: Rag, room: Room) -> Iterator[Rehearsed]:
    """Yields no rows: which documents are shown is decided only in a run."""
    prompts: list[Prompt] = room.records(settings.questions)
    found, bare = _with_documents(settings, room, prompts)
    if bare and settings.documents is not None:
        read_parts(Path(settings.documents), settings.chunk_chars, whole=settings.shown)
    elif not found:
        raise _no_documents(room, len(prompts))
    for subject in measured_models(room) if found else []:
        source = room.context.model(ref := subject_of(room, subject))
        if not _at_once(settings, subject) and source.kind != "endpoint":
            _check_shown(room, subject, weightless(room.context, ref).template, found[0])
    return iter(())


def _notes(settings: Rag, room: Room, questions: Sequence[GroundedQuestion]) -> list[str]:
    domains = [question.domain for question in questions]
    told = [f"{domains.count(domain)} {title}" for domain, title in DOMAINS.items() if domain in domains]
    notes = [f"questions: {', '.join(told)}"] if told else ["the questions do not say which documents answer them"]
    at_once = [name for name in measured_models(room) if _at_once(settings, name)]
    if at_once:
        held = "; their sentences were checked against all documents" if settings.support else ""
        notes.append(f"{', '.join(at_once)} answered in one step and named no ids{held}")
    return notes


# --- questions --------------------------------------------------------------------------------------------------------


def _questions(settings: Rag, room: Room, prompts: Sequence[Prompt]) -> list[GroundedQuestion]:
    """All questions in the order of their prompts. Raises InputError if none has documents."""
    found, bare = _with_documents(settings, room, prompts)
    found += _from_folder(settings, room, bare)
    if not found:
        raise _no_documents(room, len(prompts))
    by_id = {question.id: question for question in found}
    return [by_id[prompt.id] for prompt in prompts if prompt.id in by_id]


def _with_documents(
    settings: Rag, room: Room, prompts: Sequence[Prompt]
) -> tuple[list[GroundedQuestion], list[Prompt]]:
    """The questions that come with documents or with their own text, and the prompts without any."""
    spoken = [prompt for prompt in prompts if has_documents(prompt)]
    told = [prompt for prompt in prompts if not has_documents(prompt) and has_context(prompt)]
    bare = [prompt for prompt in prompts if not has_documents(prompt) and not has_context(prompt)]
    drawing = Drawing(
        shown=settings.shown,
        outside=settings.out_of_domain,
        seed=derive(room.seed, "documents"),
        language=settings.language,
    )
    return [*map(from_dialogue, spoken), *from_contexts(told, drawing)], bare


def _no_documents(room: Room, count: int) -> InputError:
    return InputError(
        f"{room.name}: none of {count} questions has documents: neither a turn of the role documents nor a "
        "column context; set documents to a folder"
    )


def _from_folder(settings: Rag, room: Room, prompts: Sequence[Prompt]) -> list[GroundedQuestion]:
    if settings.documents is None or not prompts:
        for prompt in prompts:
            room.drop(prompt, "no_documents")
        return []
    parts = read_parts(Path(settings.documents), settings.chunk_chars, whole=settings.shown).parts
    texts = [f"{part.shown.title or ''}\n{part.shown.content}" for part in parts]
    finder: Finder = Bm25(texts) if settings.embedder is None else ByEmbedding(texts, room.embedder(settings.embedder))
    room.note(documents=digest(texts)[:16])
    return from_folder(prompts, parts, finder, settings.shown)


# --- answers ----------------------------------------------------------------------------------------------------------


def _at_once(settings: Rag, subject: str) -> bool:
    return subject in [ref.name for ref in settings.one_step]


def _check_shown(room: Room, subject: str, template: Template, question: GroundedQuestion) -> None:
    """Raises InputError if a local model's template cannot show documents. A server renders conversations itself."""
    messages = asked(question.documents, question.question)
    try:
        role = role_left_out(template.prompt_text(messages), messages)
    except InputError as error:
        raise InputError(f"{room.name}: {subject}: {error}; or add ${subject} to one_step") from None
    if role is not None:
        raise InputError(
            f"{room.name}: {subject}: its template {template.name!r} does not render the turn of the role {role} "
            f"unchanged, which a grounded answer needs: add ${subject} to one_step, or give it a template that allows "
            "any role (llama3, llama3-text, vikhr-nemo)"
        )


def _answers(settings: Rag, room: Room, subject: str, questions: Sequence[GroundedQuestion]) -> list[GroundedAnswer]:
    seed = derive(room.seed if settings.seed is None else settings.seed, "answers")
    params = settings.params(seed=seed)
    if _at_once(settings, subject):
        asking = [asked_at_once(each.documents, each.question) for each in questions]
        second: list[Said | None] = [*_say(room, subject, "at-once", _named("at-once", questions, asking), params)]
        found = [GroundedAnswer(text=_text(said), grounded=False) for said in second]
    else:
        found = _two_steps(room, subject, questions, params)
    room.count("no_answer", sum(each.text is None for each in found))
    if all(each.text is None for each in found):
        raise StageError(
            f"stage {room.context.name}: {room.name}: {subject} answered none of {len(found)} questions; "
            f"{room.why_none(subject, 'max_tokens', settings.max_tokens)}"
        )
    return found


def _two_steps(
    room: Room, subject: str, questions: Sequence[GroundedQuestion], params: SamplingParams
) -> list[GroundedAnswer]:
    """Asks for the document ids, then for the answer; the second prompt contains the first reply verbatim."""
    first = [asked(each.documents, each.question) for each in questions]
    ids = replace(IDS, max_tokens=params.max_tokens, seed=params.seed)
    named = _say(room, subject, "ids", _named("ids", questions, first), ids)
    again = [asked_again(messages, said.text) for messages, said in zip(first, named, strict=True)]
    prompts = _named("answer", questions, again)
    come = [prompt for prompt, said in zip(prompts, named, strict=True) if not said.failed]
    second = iter(_say(room, subject, "answers", come, params, prompts))
    answers = [None if said.failed else next(second) for said in named]
    return [
        GroundedAnswer(text=_text(answer), relevant=read_relevant(said.text, len(question.documents)))
        for question, said, answer in zip(questions, named, answers, strict=True)
    ]


def _say(
    room: Room,
    subject: str,
    phase: str,
    prompts: Sequence[Prompt],
    params: SamplingParams,
    noted: Sequence[Prompt] | None = None,
) -> list[Said]:
    return [group[0] for group in room.answers(subject, prompts, params, phase, Again(asked=noted))]


def _named(step: str, questions: Sequence[GroundedQuestion], asking: Sequence[Sequence[Message]]) -> list[Prompt]:
    """Turns conversations into prompts whose ids name random streams."""
    return [
        Prompt(id=digest(["rag", step, question.id])[:16], messages=tuple(messages))
        for question, messages in zip(questions, asking, strict=True)
    ]


def _text(said: Said | None) -> str | None:
    return None if said is None or said.failed else said.text


# --- verdicts ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Case:
    """An answer to be judged, number `place` of its subject's answers, with the documents that the judge is shown."""

    subject: str
    place: int
    question: GroundedQuestion
    text: str
    documents: Sequence[Shown]


def _judge_correct(
    settings: Rag, room: Room, questions: Sequence[GroundedQuestion], answers: Answers
) -> tuple[Answers, dict[str, list[bool]]]:
    """Judges whether each answer is correct, given all shown documents and the reference. With log-probabilities, also
    returns, by subject, whether the verdict is the same whichever letter means correct."""
    cases = [
        Case(subject, place, question, answer.text, question.documents)
        for subject, own in answers.items()
        for place, (question, answer) in enumerate(zip(questions, own, strict=True))
        if answer.text is not None
    ]
    prompt = correct_prompt(settings.language)
    if settings.read == "text":
        verdicts = _ask(settings, room, "correct", prompt, cases, read_correct)
        return _with(answers, cases, [{"correct": verdict} for verdict in verdicts]), {}
    found = _weigh(room, prompt, cases)
    agreed: dict[str, list[bool]] = {subject: [] for subject in answers}
    for case, one in zip(cases, found, strict=True):
        if one is not None and one.agree is not None:
            agreed[case.subject].append(one.agree)
    sure = [None if one is None or one.preference == 0.5 else one.preference == 1.0 for one in found]
    room.count("unreadable", sum(one is not None and one.preference == 0.5 for one in found))
    return _with(answers, cases, [{"correct": verdict} for verdict in sure]), agreed


def _weigh(room: Room, prompt: PromptFile, cases: Sequence[Case]) -> list[Weighed | None]:
    """Weighs each case by the judge's log-probabilities of A and B: first A means correct, then B."""
    assert room.judge is not None
    room.note(judge=room.identity(room.judge), read="logprobs", judge_prompts={"correct": digest(prompt.source)[:16]})
    put = [_put(f"correct is {letter}", prompt, case, letter) for case in cases for letter in LETTERS]
    return weighed(room, room.judge, put, "correct-choices")


def _judge_support(settings: Rag, room: Room, questions: Sequence[GroundedQuestion], answers: Answers) -> Answers:
    """Judges the share of each answer's sentences that its named documents do not support; an answer in one step is
    checked against all shown documents. An answer with unreadable ids or without sentences has no share."""
    cases = [
        Case(subject, place, question, answer.text, _held_against(question, answer))
        for subject, own in answers.items()
        for place, (question, answer) in enumerate(zip(questions, own, strict=True))
        if answer.text is not None and sentences(answer.text) and not (answer.grounded and answer.relevant is None)
    ]
    verdicts = _ask(settings, room, "support", support_prompt(settings.language), cases, read_numbers)
    shares = [_share(room, case, numbers) for case, numbers in zip(cases, verdicts, strict=True)]
    return _with(answers, cases, [{"unsupported": share} for share in shares])


def _held_against(question: GroundedQuestion, answer: GroundedAnswer) -> list[Shown]:
    if answer.relevant is None:
        return list(question.documents)
    return [question.documents[number] for number in sorted(answer.relevant.ids)]


def _share(room: Room, case: Case, numbers: Sequence[int] | None) -> float | None:
    """The share of unsupported sentences; None if a sentence number does not exist."""
    count = len(sentences(case.text))
    if numbers is not None and any(number > count for number in numbers):
        room.count("unreadable")
        return None
    return None if numbers is None else len(numbers) / count


def _ask(
    settings: Rag,
    room: Room,
    what: str,
    prompt: PromptFile,
    cases: Sequence[Case],
    read: Callable[[str], Verdict | None],
) -> list[Verdict | None]:
    """The verdict on each case; None without one, which is counted."""
    params = SamplingParams(
        temperature=settings.judge_temperature,
        max_tokens=settings.judge_max_tokens,
        seed=derive(room.seed if settings.seed is None else settings.seed, "judge"),
    )
    put = [_put(what, prompt, case) for case in cases]
    found = room.ask(put, read, Asking(params, what, retries=settings.retries)) if put else []
    prompts = room.noted.get("judge_prompts", {})
    room.note(judge_prompts={**prompts, what: digest(prompt.source)[:16]})
    room.count("failed", sum(each.failed and not each.values for each in found))
    room.count("unreadable", sum(not each.failed and not each.values for each in found))
    return [each.values[0] if each.values else None for each in found]


def _put(what: str, prompt: PromptFile, case: Case, letter: str = "") -> Prompt:
    """The judge's prompt for a case."""
    values = case_values(case.documents, case.question.question, case.text, case.question.reference)
    name = digest(["rag", what, case.question.id, case.subject])[:16]
    return Prompt(id=name, messages=(Message("user", prompt.render(values | {"letter": letter})),))


def _with(answers: Answers, cases: Sequence[Case], found: Sequence[Mapping[str, object]]) -> Answers:
    """The answers, updated with the values found for each case."""
    changed = {subject: list(own) for subject, own in answers.items()}
    for case, more in zip(cases, found, strict=True):
        changed[case.subject][case.place] = replace(changed[case.subject][case.place], **more)
    return changed
