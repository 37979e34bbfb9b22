"""Shared by benchmarks whose answers a judge grades: conversations run turn by turn, then their answers are judged.

A missing answer ends its conversation: later turns have no answer either.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby
from pathlib import Path
from typing import TypeVar

from togi.core.errors import InputError, StageError
from togi.core.records import Message, Prompt, SamplingParams, led_by_system
from togi.core.seeds import derive, digest
from togi.data.question_files import question_name, turns_of
from togi.evaluate.benchmarks.judgments import Frame, Judgment, Outcome
from togi.judge.prompts import Case, JudgePrompt, load_prompt, load_prompts, own_prompt
from togi.judge.published import fastchat, llmjp_mt_bench
from togi.judge.reading import read_grade
from togi.stages.evaluation.benchmarks.asking_work import Again, Asking
from togi.stages.evaluation.benchmarks.judged import JudgedSettings
from togi.stages.evaluation.benchmarks.rehearsed_work import ANSWER, shown
from togi.stages.evaluation.benchmarks.room_work import Room
from togi.stages.judging_work import questioned
from togi.stages.rehearsal_work import Rehearsed

Item = TypeVar("Item")
Read = Callable[[str], float | None]


@dataclass(frozen=True, slots=True)
class Grade:
    """A judge's grade, and those of single metrics if its prompt asks for several."""

    score: float
    metrics: Mapping[str, float]


@dataclass(slots=True)
class Talk:
    """One conversation of a subject: the question, the round, and the answers so far (None for a missing one)."""

    question: Prompt
    round: int
    turns: tuple[str, ...]
    temperature: float
    answers: list[str | None] = field(default_factory=list)

    @property
    def over(self) -> bool:
        """Whether an answer is missing."""
        return None in self.answers

    def messages(self, turn: int) -> tuple[Message, ...]:
        """The conversation up to and including user turn `turn` (from 0)."""
        said = list(self.question.messages)
        for place in range(turn):
            said += [Message("assistant", self.answers[place] or ""), Message("user", self.turns[place + 1])]
        return tuple(said)

    def prompt(self, turn: int, system: str | None) -> Prompt:
        """The prompt of a turn for the subject; its id names its random stream."""
        messages = with_system(system, self.messages(turn))
        return Prompt(id=_name("turn", self.question.id, self.round, turn), messages=messages)


@dataclass(frozen=True, slots=True)
class Material:
    """What a judge is shown with the answer: the reference answers to the question's turns, and a rubric."""

    references: tuple[str, ...] = ()
    rubric: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Speaking:
    """Runs the conversations of subjects, with a temperature per question and a system prompt. `phase` distinguishes
    several runs of one subject."""

    settings: JudgedSettings
    room: Room
    temperature: Callable[[Prompt], float]
    system: str | None = None
    phase: str = ""

    def hold(self, subject: str, questions: Sequence[Prompt]) -> list[Talk]:
        """Has a subject answer every question in every round, turn by turn. Raises StageError if it answers none."""
        talks = [
            Talk(question, number, turns_of(question), self.temperature(question))
            for number in range(1, self.settings.rounds + 1)
            for question in questions
        ]
        degrees = sorted(dict.fromkeys(talk.temperature for talk in talks))
        for turn in range(max(len(talk.turns) for talk in talks)):
            for degree in degrees:
                own = [t for t in talks if t.temperature == degree and turn < len(t.turns)]
                for repeat, group in _calls(own, degree, lambda talk: talk.round):
                    self._say(subject, group, turn, repeat)
        if all(answer is None for talk in talks for answer in talk.answers):
            raise StageError(
                f"stage {self.room.context.name}: {self.room.name}: {subject} answered none of {len(talks)} "
                f"conversations; {self.room.why_none(subject, 'max_tokens', self.settings.max_tokens)}"
            )
        return talks

    def _say(self, subject: str, talks: Sequence[Talk], turn: int, repeat: int) -> None:
        """Adds the answers to one turn of conversations with one temperature; `repeat` counts earlier calls with the
        same prompts."""
        asked, degree = [talk for talk in talks if not talk.over], talks[0].temperature
        params = replace(self.settings.params(seed=seed_of(self.settings, self.room, "answers")), temperature=degree)
        prompts = [talk.prompt(turn, self.system) for talk in asked]
        again = Again(repeat=repeat, refusable=True, asked=[talk.prompt(turn, self.system) for talk in talks])
        found = self.room.answers(subject, prompts, params, f"{self.phase}turn-{turn + 1}-at-{degree:g}", again)
        for talk, (said,) in zip(asked, found, strict=True):
            talk.answers.append(None if said.failed else said.text)
        for talk in talks:
            talk.answers += [None] * (turn + 1 - len(talk.answers))


@dataclass(frozen=True, slots=True)
class Graded:
    """An answer to be judged: its subject, conversation and turn (from 0)."""

    subject: str
    talk: Talk
    turn: int

    @property
    def answer(self) -> str | None:
        return self.talk.answers[self.turn]


@dataclass(frozen=True, slots=True, kw_only=True)
class Bench:
    """Grades answers. `prompts` are the judge's prompts by name; `material` is keyed by question id. `system` is added
    if the judge's prompt has no system turn. `published` reads grades if `reads` is llm-jp."""

    settings: JudgedSettings
    room: Room
    prompts: Mapping[str, JudgePrompt]
    material: Mapping[str, Material]
    scale: tuple[int, int]
    category: str = "category"
    system: str | None = None
    published: Read = llmjp_mt_bench

    def judge(self, talks: Mapping[str, Sequence[Talk]]) -> dict[str, list[Judgment]]:
        """The judgments of all subjects, in the order of their conversations, turn by turn."""
        answers = [
            Graded(subject, talk, turn)
            for subject, own in talks.items()
            for talk in own
            for turn in range(len(talk.turns))
        ]
        chosen = [(self._chosen(each), each) for each in answers if each.answer is not None]
        found: dict[tuple[str, str, int, int], Judgment] = {}
        for name, group in groupby(sorted(chosen, key=lambda pair: pair[0]), key=lambda pair: pair[0]):
            named = [each for _, each in group]
            for repeat, own in _calls(named, self.settings.judge_temperature, lambda each: each.talk.round):
                found |= self._ask(name, own, repeat)
        if found and all(each.outcome == "failed" for each in found.values()):
            assert self.room.judge is not None
            why = self.room.why_none(self.room.judge.name, "judge_max_tokens", self.settings.judge_max_tokens)
            raise StageError(
                f"stage {self.room.context.name}: {self.room.name}: {self.room.judge} graded none of {len(found)} "
                f"answers; {why}"
            )
        self._note(chosen)
        judged: dict[str, list[Judgment]] = {subject: [] for subject in talks}
        for each in answers:
            judged[each.subject].append(found.get(_place(each)) or self._judgment(each, "no_answer", None))
        return judged

    def rehearse(self, questions: Sequence[Prompt]) -> Iterator[Rehearsed]:
        """The first turns as the subjects read them, after the judge's prompt was filled in for every turn, with a
        placeholder for the answer."""
        for question in questions:
            talk = Talk(question, 1, turns_of(question), 0.0)
            talk.answers = [ANSWER] * len(talk.turns)
            for turn in range(len(talk.turns)):
                graded = Graded("", talk, turn)
                self._question(self.prompts[self._chosen(graded)], graded)
        system = self.settings.spoken_system
        asked = [replace(each, messages=with_system(system, each.messages)) for each in questions]
        return shown(self.room, measured(self.room), asked, self.settings.max_tokens)

    def _chosen(self, each: Graded) -> str:
        """The name of the prompt for an answer: if there are several, the one for this turn, with or without reference.
        Raises InputError if none or several fit."""
        known = self.material.get(each.talk.question.id, Material())
        wants = each.turn < len(known.references)
        fits = [name for name, prompt in self.prompts.items() if _fits(prompt, each.turn, wants)]
        found = list(self.prompts) if len(self.prompts) == 1 else fits
        if len(found) != 1:
            told = ", ".join(found) if found else "none"
            raise InputError(
                f"{self.settings.prompt}: needs exactly one prompt for turn {each.turn + 1} of a question "
                f"{'with' if wants else 'without'} a reference answer; found {told} among "
                f"{', '.join(self.prompts)}"
            )
        return found[0]

    def _ask(self, name: str, answers: Sequence[Graded], repeat: int) -> dict[tuple[str, str, int, int], Judgment]:
        prompt = self.prompts[name]
        asked = [self._question(prompt, each) for each in answers]
        settings = self.settings
        params = SamplingParams(
            temperature=settings.judge_temperature,
            top_p=settings.judge_top_p,
            max_tokens=settings.judge_max_tokens,
            seed=seed_of(settings, self.room, "judge"),
        )
        again = Again(repeat=repeat, refusable=True)
        how = Asking(params, phase=f"grades-{name}", retries=settings.retries, again=again)
        found = self.room.ask(asked, self._reader(prompt), how)
        judgments = {}
        for each, said in zip(answers, found, strict=True):
            grade = said.values[0] if said.values else None
            outcome: Outcome = "grade" if said.values else "failed" if said.failed else "unreadable"
            judgments[_place(each)] = self._judgment(each, outcome, grade)
        return judgments

    def _question(self, prompt: JudgePrompt, each: Graded) -> Prompt:
        """The judge's prompt for an answer. Raises InputError if a value that the prompt needs is missing."""
        question, turn, answer = each.talk.question, each.turn, each.answer or ""
        known = self.material.get(question.id, Material())
        low, high = self.scale
        case = Case(
            messages=each.talk.messages(turn),
            answers=(answer,),
            reference=known.references[turn] if turn < len(known.references) else None,
            earlier_references=known.references[:turn],
            rubric=known.rubric,
            low=low,
            high=high,
        )
        asked = questioned(prompt, case, f"question {question_name(question)}")
        name = _name("judge", question.id, each.talk.round, turn, answer)
        if self.system is not None and not prompt.system:
            asked = replace(asked, messages=led_by_system(self.system, asked.messages))
        return replace(asked, id=name)

    def _reader(self, prompt: JudgePrompt) -> Callable[[str], Grade | None]:
        """Returns the reader of grades: the one of the prompt's file, else the one of the settings. With a grade off
        the scale there is none."""
        low, high = self.scale
        chosen = {"llm-jp": self.published, "fastchat": fastchat, "togi": lambda text: read_grade(text, low, high)}
        read = prompt.read or chosen[self.settings.reads]

        def on_the_scale(text: str) -> Grade | None:
            score, metrics = read(text), (prompt.read_metrics and prompt.read_metrics(text)) or {}
            if score is None or not all(low <= grade <= high for grade in (score, *metrics.values())):
                return None
            return Grade(float(score), metrics)

        return on_the_scale

    def _judgment(self, each: Graded, outcome: Outcome, grade: Grade | None) -> Judgment:
        return Judgment(
            question=each.talk.question.id,
            turn=each.turn + 1,
            round=each.talk.round,
            category=str(each.talk.question.extra.get(self.category) or ""),
            outcome=outcome,
            score=grade and grade.score,
            metrics=grade.metrics if grade else {},
        )

    def _note(self, chosen: Sequence[tuple[str, Graded]]) -> None:
        """Adds the judge's prompts, and the material that it was shown, to the manifest."""
        used = dict.fromkeys(name for name, _ in chosen)
        texts = {name: digest([self.prompts[name].system, self.prompts[name].source])[:16] for name in sorted(used)}
        shown = [[name, list(own.references), own.rubric] for name, own in self.material.items()]
        self.room.note(
            judge_prompts=texts,
            judge_material=digest(shown)[:16],
            reads=self.settings.reads,
            scale=list(self.scale),
            rounds=self.settings.rounds,
        )


def with_system(system: str | None, messages: Sequence[Message]) -> tuple[Message, ...]:
    """The conversation with the system prompt first, if there is one and the conversation has none."""
    if system is None or messages[0].role == "system":
        return tuple(messages)
    return led_by_system(system, messages)


def _calls(items: Sequence[Item], degree: float, round_of: Callable[[Item], int]) -> list[tuple[int, Sequence[Item]]]:
    """Splits items into calls, each with a repeat count. Sampled items go in one call. Greedy items go round by round,
    because only the repeat count distinguishes equal ones."""
    if degree:
        return [(0, items)] if items else []
    rounds = sorted(dict.fromkeys(map(round_of, items)))
    return [(number - 1, [each for each in items if round_of(each) == number]) for number in rounds]


def judge_prompts(settings: JudgedSettings, name: str | None, own: JudgePrompt | None = None) -> dict[str, JudgePrompt]:
    """The judge prompts of the file in the settings, or only the one called `name`; without a file, togi's own prompt.
    Raises InputError for a file without such prompts."""
    if settings.prompt is None:
        return {"togi": own or own_prompt("graded", settings.language)}
    path = Path(settings.prompt)
    found = load_prompts(path, "graded") if name is None else {name: load_prompt(path, "graded", name)}
    if not found:
        raise InputError(f"{path}: has no prompt that grades one answer")
    return dict(found)


def seed_of(settings: JudgedSettings, room: Room, what: str) -> int:
    """The sampling seed for `what`."""
    return derive(room.seed if settings.seed is None else settings.seed, what)


def frame(room: Room, questions: Sequence[Prompt], notes: Sequence[str] = ()) -> Frame:
    """What a table has besides its numbers. Call it last: the manifest must include all that was asked."""
    return Frame(
        name=room.name,
        bootstrap=room.bootstrap,
        baseline=room.baseline,
        manifest=room.manifest(),
        leaks=room.leaks(questions),
        notes=notes,
    )


def measured(room: Room) -> list[str]:
    """The names of the measured models, baseline included."""
    return list(dict.fromkeys([*room.subjects, *([room.baseline] if room.baseline else [])]))


def references_of(question: Prompt) -> tuple[str, ...]:
    """The reference answers in a question's row: its answer, else the column `reference` (a text or a list of
    texts)."""
    if question.answer is not None:
        return (question.answer,)
    own = question.extra.get("reference")
    listed = own if isinstance(own, list) else [own]
    texts = tuple(each for each in listed if isinstance(each, str))
    return texts if len(texts) == len(listed) else ()


def _fits(prompt: JudgePrompt, turn: int, wants: bool) -> bool:
    return prompt.turns is None or (prompt.turns == turn + 1 and prompt.wants_reference == wants)


def _place(each: Graded) -> tuple[str, str, int, int]:
    return each.subject, each.talk.question.id, each.talk.round, each.turn


def _name(*parts: object) -> str:
    return digest(list(parts))[:16]
