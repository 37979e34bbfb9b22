"""Runs the benchmark `arena`. Writes files in arena-hard's layouts, then reads them as `togi evaluate arena` does."""

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from togi.core.errors import InputError
from togi.core.files import write_text
from togi.core.records import Prompt, SamplingParams
from togi.core.seeds import derive, digest
from togi.core.settings import Ref
from togi.data.question_files import question_name
from togi.evaluate.arena import Rows
from togi.evaluate.arena_files import (
    NO_VERDICT,
    UNKNOWN_LABEL,
    read_judgments,
    read_styles,
    share_of,
    write_battles,
)
from togi.evaluate.benchmarks.arena import Played, arena_table, need_battles
from togi.evaluate.benchmarks.orders import near_chance
from togi.evaluate.benchmarks.table import Table
from togi.evaluate.markdown import markup_counts
from togi.judge.asking import Answered, Attempt
from togi.judge.contests import Weighed
from togi.judge.prompts import Case, JudgePrompt, arena_prompt, load_prompt, own_prompt
from togi.judge.published import arena_hard_v2, ru_arena
from togi.judge.reading import spoken
from togi.stages.evaluation.benchmarks.arena import Arena
from togi.stages.evaluation.benchmarks.asking_work import Asking
from togi.stages.evaluation.benchmarks.judged_work import with_system
from togi.stages.evaluation.benchmarks.rehearsed_work import ANSWER, shown
from togi.stages.evaluation.benchmarks.room_work import Room, Said
from togi.stages.evaluation.benchmarks.weighed_work import weighed
from togi.stages.judging_work import questioned
from togi.stages.rehearsal_work import Rehearsed
from togi.stages.seen_prompts import learnt, mark

UNCLEAR = "unclear"
"""Marks a text with two different labels: there is no verdict, but the judge is not asked again."""
Answers = Mapping[str, Sequence[Said]]
Games = list[tuple[Prompt, list[Prompt], list[Answered[str]]]]
"""For each question: what the judge was asked in its two games, and its replies."""
MIRRORED = {1.0: ("A>B", "B>A"), 0.5: ("A=B", "A=B"), 0.0: ("B>A", "A>B")}
"""The labels of both games, by the preference for the answer that is A in the first game."""


def run(settings: Arena, room: Room) -> Table:
    assert room.baseline is not None and room.baseline_ref is not None
    prompts: list[Prompt] = room.records(settings.questions)
    names, subjects = _names(prompts), _challengers(room)
    said = _answers(settings, room, [room.baseline, *subjects], prompts)
    folder = room.context.folder / "output" / room.name
    for name in said:
        _write(
            folder / "model_answer" / f"{name}.jsonl", [_answer(settings, *each) for each in _rows(name, names, said)]
        )
    agreed = {}
    for name in subjects:
        games, agreed[name] = _games(settings, room, name, prompts, said)
        _write(folder / "model_judgment" / f"{name}.jsonl", [_judgment(settings, room, name, *each) for each in games])
    rows = read_judgments(folder / "model_judgment", settings.rules, room.baseline)
    _count(room, rows)
    need_battles(replace(rows, dropped=Counter(room.dropped)))
    write_battles(folder / "battles.jsonl", rows)
    played = replace(_played(settings, room, rows, prompts, names, folder), agreed=agreed)
    found = arena_table(room.name, played, names, room.bootstrap)
    notes = near_chance(agreed, "both games", room.level)
    return replace(found, dropped=room.dropped, leaks=room.leaks(prompts), notes=notes, manifest=room.manifest())


def preflight(settings: Arena) -> None:
    _prompt(settings)


def rehearse(settings: Arena, room: Room) -> Iterator[Rehearsed]:
    prompts: list[Prompt] = room.records(settings.questions)
    subjects, prompt = _challengers(room), _prompt(settings)
    _names(prompts)
    for each in prompts:
        _question(prompt, each, (ANSWER, ANSWER), settings.read == "text")
    return shown(room, [*subjects, room.baseline or ""], _opened(settings, prompts), settings.max_tokens)


def _challengers(room: Room) -> list[str]:
    """The models that play against the baseline. Raises InputError if there are none."""
    found = [name for name in room.subjects if name != room.baseline]
    if not found:
        raise InputError(f"{room.name}: {room.baseline} is the baseline and the only model; add another one to models")
    return found


def _count(room: Room, rows: Rows) -> None:
    """Counts the games that are no battles, each once: failed requests are counted already and have no label."""
    room.count("no_verdict", rows.dropped[NO_VERDICT] - room.dropped.get("failed", 0))
    room.count("unknown_label", rows.dropped[UNKNOWN_LABEL])


def _names(prompts: Sequence[Prompt]) -> list[str]:
    names = [question_name(prompt) for prompt in prompts]
    twice = [name for place, name in enumerate(names) if name in names[:place]]
    if twice:
        raise InputError(f"arena: question {twice[0]} appears twice; keep one row for each question_id")
    return names


def _played(
    settings: Arena, room: Room, rows: Rows, prompts: Sequence[Prompt], names: Sequence[str], folder: Path
) -> Played:
    return Played(
        rows=rows,
        baseline=room.baseline or "",
        styles=read_styles(folder / "model_answer"),
        rules=settings.rules,
        length_control=settings.length_control,
        style_control=settings.style_control,
        leaked=_leaked(room, prompts, names, rows),
    )


def _leaked(room: Room, prompts: Sequence[Prompt], names: Sequence[str], rows: Rows) -> dict[str, list[str]]:
    """The questions that each model was trained on."""
    played = dict.fromkeys(name for battle in rows.battles for name in (battle.model_a, battle.model_b))
    refs: dict[str, Ref] = {**room.subjects}
    if room.baseline is not None and room.baseline_ref is not None:
        refs[room.baseline] = room.baseline_ref
    found: dict[str, list[str]] = {}
    for model in played:
        known = dict.fromkeys(learnt(room.context, refs[model]) or ())
        own = [name for name, prompt in zip(names, prompts, strict=True) if mark(prompt.messages) in known]
        if own:
            found[model] = own
    return found


# --- answers ----------------------------------------------------------------------------------------------------------


def _answers(settings: Arena, room: Room, names: Sequence[str], prompts: Sequence[Prompt]) -> dict[str, list[Said]]:
    seed = derive(room.seed if settings.seed is None else settings.seed, "answers")
    params = settings.params(seed=seed)
    asked = _opened(settings, prompts)
    found = {name: [group[0] for group in room.answers(name, asked, params)] for name in names}
    room.count("no_answer", sum(one.failed for own in found.values() for one in own))
    return found


def _opened(settings: Arena, prompts: Sequence[Prompt]) -> list[Prompt]:
    """The questions with the system prompt of the settings."""
    return [replace(prompt, messages=with_system(settings.system, prompt.messages)) for prompt in prompts]


def _rows(name: str, names: Sequence[str], said: Answers) -> list[tuple[str, str, Said]]:
    return [(name, question, one) for question, one in zip(names, said[name], strict=True) if not one.failed]


def _answer(settings: Arena, model: str, question: str, said: Said) -> dict[str, Any]:
    """A row of arena-hard's answers."""
    metadata = {"token_len": said.tokens, **markup_counts(said.text)}
    if settings.rules == "v2":
        content = {"role": "assistant", "content": {"answer": said.text}}
        return {"uid": question, "model": model, "messages": [content], "metadata": metadata}
    turns = [{"content": said.text, "token_len": said.tokens}]
    return {
        "question_id": question,
        "model_id": model,
        "choices": [{"index": 0, "turns": turns}],
        "conv_metadata": metadata,
    }


# --- games ------------------------------------------------------------------------------------------------------------


def _games(
    settings: Arena, room: Room, name: str, prompts: Sequence[Prompt], said: Answers
) -> tuple[Games, list[bool]]:
    """The games of each question that both models answered; and, for questions with a winner in both games, whether it
    is the same one."""
    assert room.baseline is not None
    prompt = _prompt(settings)
    room.note(judge_prompt=digest([prompt.system, prompt.source])[:16], rules=settings.rules)
    both = [
        (each, base.text, own.text)
        for each, base, own in zip(prompts, said[room.baseline], said[name], strict=True)
        if not base.failed and not own.failed
    ]
    explain = settings.read == "text"
    asked = [_question(prompt, each, pair, explain) for each, base, own in both for pair in ((base, own), (own, base))]
    found, agree = (_written if explain else _chosen)(settings, room, name, asked)
    games = [
        (each, asked[2 * place : 2 * place + 2], found[2 * place : 2 * place + 2])
        for place, (each, _, _) in enumerate(both)
    ]
    return games, agree


def _written(settings: Arena, room: Room, name: str, asked: Sequence[Prompt]) -> tuple[list[Answered[str]], list[bool]]:
    """The judge's text for each game, and whether both games of a question name the same winner."""
    params = SamplingParams(
        temperature=settings.judge_temperature, max_tokens=settings.judge_max_tokens, seed=derive(room.seed, "judge")
    )
    read = _read_v2 if settings.rules == "v2" else _read_v01
    found = room.ask(asked, read, Asking(params, f"games-{name}", retries=settings.retries))
    room.count("failed", sum(one.failed and not one.values for one in found))
    shares = [share_of(one.values[0] if one.values else None, settings.rules) for one in found]
    both = [(one, other) for one, other in zip(shares[::2], shares[1::2], strict=True) if 0.5 not in (one, other)]
    return found, [one == 1 - other for one, other in both]


def _chosen(settings: Arena, room: Room, name: str, asked: Sequence[Prompt]) -> tuple[list[Answered[str]], list[bool]]:
    """The same from the judge's log-probabilities of A and B. Both orders together decide both games, so that a judge
    with position bias still gives usable verdicts."""
    assert room.judge is not None
    room.note(judge=room.identity(room.judge), read=settings.read)
    found = weighed(room, room.judge, asked, f"choices-{name}")
    agree = [one.agree for one in found if one is not None and one.agree is not None]
    return [Answered([attempt]) for one in found for attempt in _attempts(one)], agree


def _attempts(one: Weighed | None) -> list[Attempt[str]]:
    if one is None:
        return [Attempt("", None, failed=True)] * 2
    return [Attempt(f"[[{label}]], by log-probabilities", label) for label in MIRRORED[one.preference]]


def _prompt(settings: Arena) -> JudgePrompt:
    if settings.prompt is None:
        return arena_prompt(settings.language) if settings.read == "text" else own_prompt("pairwise", settings.language)
    return load_prompt(Path(settings.prompt), "pairwise", settings.prompt_name)


def _question(prompt: JudgePrompt, question: Prompt, answers: tuple[str, str], explain: bool) -> Prompt:
    case = Case(messages=question.messages, answers=answers, reference=question.answer, explain=explain)
    asked = questioned(prompt, case, f"question {question_name(question)}")
    return replace(asked, id=digest(["arena", question.id, *answers])[:16])


def _read_v01(text: str) -> str | None:
    """The label; UNCLEAR for two different ones; None for a text without any, so that the judge is asked again."""
    label, again = ru_arena(spoken(text))
    return None if again else label or UNCLEAR


def _read_v2(text: str) -> str | None:
    return arena_hard_v2(spoken(text))


def _judgment(
    settings: Arena, room: Room, model: str, question: Prompt, asked: Sequence[Prompt], said: Sequence[Answered[str]]
) -> dict[str, Any]:
    """A row of arena-hard's judgments: the baseline is A in the first game, the model in the second."""
    texts = ["\n".join(attempt.text for attempt in one.attempts) for one in said]
    scores = [None if not one.values or one.values[0] == UNCLEAR else one.values[0] for one in said]
    judge = "" if room.judge is None else room.identity(room.judge)["model"]
    if settings.rules == "v2":
        category = str(question.extra.get("category") or "")
        games = [{"score": score, "judgment": {"answer": text}} for score, text in zip(scores, texts, strict=True)]
        named = {"uid": question_name(question), "category": category, "judge": judge, "model": model}
        return {**named, "baseline": room.baseline, "games": games}
    shown = [one.messages[-1].content for one in asked]
    games = [
        {"user_prompt": words, "judgment": text, "score": score}
        for words, text, score in zip(shown, texts, scores, strict=True)
    ]
    return {"question_id": question_name(question), "model": model, "judge": judge, "games": games}


def _write(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
