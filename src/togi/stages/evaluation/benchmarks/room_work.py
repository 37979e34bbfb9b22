"""The context of a running benchmark: its subjects, the judge, and methods that ask them.

Finished units of work are stored, so a restart does not repeat them. The manifest records the questions, the sampling
parameters, the judge, and the identity of each subject.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from togi.core.errors import GraderError, InputError, StageError
from togi.core.hashing import file_hash
from togi.core.protocols import Embedder, Scorer
from togi.core.records import Completion, Message, Prompt, Record, SamplingParams
from togi.core.seeds import derive, digest
from togi.core.settings import EmbedderRef, ModelRef, Ref, ScorerRef
from togi.core.sources import ModelSource, fingerprint
from togi.evaluate.statistics import Bootstrap
from togi.judge.asking import Answered, Asker
from togi.stages.context import Context
from togi.stages.endpoints import ChatGenerator, chooser, embedder, generator, scorer
from togi.stages.evaluation.benchmarks.asking_work import FIRST, ONCE, Again, Asking, Legible
from togi.stages.evaluation.benchmarks.journal_work import (
    REFUSED,
    TOO_LONG,
    Said,
    answer_rows,
    number_rows,
    numbers_of,
    replies_of,
    reply_rows,
    stopped,
)
from togi.stages.failures import Failures
from togi.stages.held_against import held_against, told
from togi.stages.seen_prompts import learnt, mark
from togi.stages.shards import SHARD_ROWS

Value = TypeVar("Value")
Item = TypeVar("Item")
UNIT = 16
"""Prompts, or questions to a judge, in one unit of work of a local model."""


@dataclass(slots=True)
class Room:
    """The context of the benchmark `name`. `subjects` are the measured models by name. `baseline` is the name of the
    model that the others are compared with; it need not be a subject (`baseline_ref`)."""

    context: Context
    name: str
    subjects: Mapping[str, Ref]
    judge: ModelRef | None = None
    baseline: str | None = None
    baseline_ref: Ref | None = None
    level: float = 0.95
    resamples: int = 2000
    reasons: Sequence[str] = ()
    max_failed_share: float = 0.1
    dropped: dict[str, int] = field(default_factory=dict)
    noted: dict[str, Any] = field(default_factory=dict)
    legible: dict[str, Legible] = field(default_factory=dict)  # the judge's replies, by the kind of question

    @property
    def seed(self) -> int:
        """The seed of this benchmark: all subjects answer from the same random streams."""
        return derive(self.context.seed, self.name)

    @property
    def bootstrap(self) -> Bootstrap:
        """The bootstrap for intervals."""
        return Bootstrap(seed=derive(self.context.seed, "bootstrap"), level=self.level, resamples=self.resamples)

    def kind(self, ref: Ref) -> str:
        """The kind of a subject: model or scorer."""
        return self.context.inputs[ref].kind

    # --- inputs ---------------------------------------------------------------------------------------------------

    def records(self, ref: Ref) -> list[Any]:
        """Reads the records of `ref` and counts them as input. Raises InputError if there are none."""
        found = self.context.records(ref)
        self.context.count_in(len(found))
        return found

    def generator(self, ref: ModelRef, *, batch_rows: int = UNIT, repeat: int = 0) -> ChatGenerator:
        """The generator of a model. Prefer `answers` and `ask`, which journal its answers."""
        return generator(self.context, ref, batch_rows=batch_rows, repeat=repeat)

    def scorer(self, ref: ScorerRef) -> Scorer:
        """A reward model."""
        return scorer(self.context, ref)

    def embedder(self, ref: EmbedderRef | None) -> Embedder:
        """A sentence embedder; hashed n-grams without one."""
        return embedder(self.context, ref)

    # --- voice ----------------------------------------------------------------------------------------------------

    def log(self, message: str) -> None:
        """Logs one line."""
        self.context.log(f"{self.name}: {message}")

    def alarm(self, name: str, message: str, **fields: Any) -> None:
        """Raises an alarm, shown in the log and in the report."""
        self.context.alarm(name, f"{self.name}: {message}", **fields)

    def progress(self, done: int, total: int, what: str) -> None:
        """Reports progress."""
        self.context.progress(done, total, what)

    def drop(self, record: Record | str, reason: str) -> None:
        """Drops a row that the benchmark cannot use, for one of its declared reasons."""
        self.count(reason)
        self.context.drop(record, reason)

    def count(self, reason: str, number: int = 1) -> None:
        """Counts unusable items that are not records, such as a judge's texts. Raises ValueError for a reason that the
        benchmark does not declare."""
        if reason not in self.reasons:
            raise ValueError(f"{self.name}: {reason!r} is not a declared reason: {', '.join(self.reasons) or 'none'}")
        if number:
            self.dropped[reason] = self.dropped.get(reason, 0) + number

    # --- work -----------------------------------------------------------------------------------------------------

    def units(self, count: int, make: Callable[[int], Any], name: str = "batch") -> list[Any]:
        """Computes units 0..count-1 and returns their values (JSON-like) in order. Finished units are not repeated
        after a restart. `name` distinguishes the phases of one benchmark."""
        return list(self._stream(count, make, name))

    def _stream(self, count: int, make: Callable[[int], Any], name: str) -> Iterator[Any]:
        """`units`, one by one."""
        return self.context.stream_units(count, make, f"{self.name}-{name}", what=f"batches of {self.name}")

    def answers(
        self,
        subject: str,
        prompts: Sequence[Prompt],
        params: SamplingParams,
        phase: str = "answers",
        again: Again = ONCE,
    ) -> list[list[Said]]:
        """`params.n` answers of a subject (or of the baseline) to each prompt; restarts do not repeat finished units.

        `phase` distinguishes several calls for one subject. A failed request gives an answer with `failed` set. Raises
        StageError if too many failed. A local model is never asked the same greedy question twice.
        """
        ref = ModelRef(self._ref(subject))
        repeat = again.repeat if params.temperature or self._served(ref) else 0
        speaker = self.generator(ref, batch_rows=UNIT * params.n, repeat=repeat)

        def make(batch: Sequence[Prompt]) -> list[Any]:
            room = [speaker.fits(prompt, params) for prompt in batch]
            found = iter(speaker.generate([prompt for prompt, fits in zip(batch, room, strict=True) if fits], params))
            long = [Completion(text="", stop="error")] * params.n
            groups = [(prompt, next(found) if fits else long) for prompt, fits in zip(batch, room, strict=True)]
            rows = [answer_rows(speaker, *each) for each in groups]
            return [
                group if fits else [{**row, "stop": TOO_LONG} for row in group]
                for group, fits in zip(rows, room, strict=True)
            ]

        units = list(self._in_units(ref, prompts, make, f"{phase}-{subject}{_nth(repeat)}"))
        self._note(phase, prompts if again.asked is None else again.asked, params)
        found = [[Said(**row) for row in rows] for unit in units for rows in unit]
        self._tell(ref, [group[0].stop for group in found], again.refusable)
        return found

    def scores(
        self, ref: Ref, items: Sequence[tuple[tuple[Message, ...], str]], phase: str
    ) -> list[float | GraderError]:
        """A reward model's scores of answers (prompt messages, text without terminator). Finished units are not
        repeated after a restart. An answer that cannot be scored gets an error. `phase` distinguishes several calls."""
        judge = self.scorer(ScorerRef(ref))
        return numbers_of(list(self._in_units(ref, items, lambda batch: number_rows(judge.score(batch)), phase)))

    def ask(
        self, questions: Sequence[Prompt], read: Callable[[str], Value | None], how: Asking
    ) -> list[Answered[Value]]:
        """The judge's replies to each question. Finished units are not repeated after a restart. `read` parses a text
        into a verdict, or None.

        The ids of questions name their random streams. Raises StageError if too many requests failed, and as soon as
        FIRST replies of the evaluation's judge are unreadable and none is readable.
        """
        ref = how.judge or self.judge
        if ref is None:
            raise InputError(f"stage {self.context.name}: {self.name} needs a judge: set `judge` to a model")
        speaker = self.generator(ref, batch_rows=UNIT * how.rounds, repeat=how.again.repeat)
        asker = Asker(
            generator=speaker, read=read, params=how.params, retries=how.retries, terminator=speaker.terminator
        )

        def make(batch: Sequence[Prompt]) -> list[list[tuple[str, bool]]]:
            room = [speaker.fits(prompt, how.params) for prompt in batch]
            found = iter(asker.ask([prompt for prompt, fits in zip(batch, room, strict=True) if fits], how.rounds))
            return [reply_rows(next(found)) if fits else [(TOO_LONG, True)] for fits in room]

        heard: list[Answered[Value]] = []
        for unit in self._in_units(ref, questions, make, f"{how.phase}{_nth(how.again.repeat)}", FIRST):
            heard += (batch := [replies_of(attempts, read) for attempts in unit])
            if how.judge is None:
                self._hold_legible(how.kind, batch)
        how.note(self.noted)
        if how.judge is None:
            self.noted["judge"] = self.identity(ref)
        self._tell(ref, [stopped(each) for each in heard], how.again.refusable)
        return heard

    def _hold_legible(self, kind: str, batch: Sequence[Answered[Any]]) -> None:
        """Counts a batch of the judge's replies. Raises StageError if FIRST are unreadable and none is readable."""
        legible = self.legible.setdefault(kind, Legible())
        legible.note(batch)
        if legible.unread >= FIRST and not legible.read:
            raise self._illegible(legible)

    def hold_any_legible(self) -> None:
        """Raises StageError if the judge's replies are unreadable and none is readable."""
        lost = [legible for legible in self.legible.values() if legible.unread]
        if lost and not any(legible.read for legible in self.legible.values()):
            raise self._illegible(lost[0])

    def _illegible(self, legible: Legible) -> StageError:
        return StageError(
            f"stage {self.context.name}: {self.name}: no reply of {self.judge} can be read as a verdict (the first of "
            f"{legible.unread}: {legible.text[:300]!r}). Raise judge_max_tokens if the reply is cut off, use a prompt "
            "that asks for the expected form, or choose another judge"
        )

    def choices(
        self, ref: ModelRef, questions: Sequence[Prompt], words: tuple[str, str], phase: str
    ) -> list[float | GraderError]:
        """The judge's log-probability of beginning its answer with the first word minus that of the second, in nats,
        for each question. Finished units are not repeated after a restart. A question without a result has an error."""
        judge = chooser(self.context, ref)
        asked = [question.messages for question in questions]
        units = self._in_units(ref, asked, lambda batch: number_rows(judge.margins(batch, *words)), phase)
        return numbers_of(list(units))

    def _in_units(
        self, ref: Ref, items: Sequence[Item], make: Callable[[Sequence[Item]], list[Any]], phase: str, first: int = 0
    ) -> Iterator[list[Any]]:
        """Applies `make` to batches of items, of which the first has at most `first` if that is set. A server's answers
        are stored one by one, so its units can be large and keep the server busy."""
        size, phase = (SHARD_ROWS, f"{phase}-served") if self._served(ref) else (UNIT, phase)
        ends = [*range(first or size, len(items), size), len(items)] if items else []
        begins = [0, *ends]
        return self._stream(len(ends), lambda unit: make(items[begins[unit] : ends[unit]]), phase)

    def _served(self, ref: Ref) -> bool:
        return self.context.inputs[ref].endpoint is not None

    def why_none(self, name: str, setting: str, tokens: int) -> str:
        """Why a model gave no answer at all: a local model fails only if a prompt leaves no room for `tokens` tokens,
        which `setting` sets."""
        if self._served(ModelRef(f"${name}")):
            return "see the log for its server's messages"
        return f"no prompt leaves room for {tokens} tokens in its context; lower {setting}, or use another model"

    def _tell(self, ref: Ref, stops: Sequence[str], refusable: bool) -> None:
        """Raises alarms for missing answers. Raises StageError if too many requests failed or all were refused."""
        self._tell_long(ref, stops.count(TOO_LONG))
        refused = stops.count(REFUSED)
        if refused:
            told = f"the server of {ref} refused {refused} of {len(stops)} prompts; see the log for its messages"
            if refused == len(stops) and not refusable:
                raise StageError(f"stage {self.context.name}: {self.name}: {told}")
            self.alarm("refused", f"{told}. They get no answer and count as refused", value=refused / len(stops))
        self._tell_failed(ref, len(stops), stops.count("error"))

    def _tell_long(self, ref: Ref, count: int) -> None:
        if count:
            self.alarm(
                "prompts_too_long",
                f"{count} prompts leave {ref} no room for an answer of max_tokens tokens and count as failed; use a "
                "model with a longer context, or lower max_tokens",
                value=float(count),
                threshold=0.0,
            )

    def _tell_failed(self, ref: Ref, total: int, failed: int) -> None:
        """Raises StageError if more than the allowed share of requests failed."""
        failures = Failures(self.context, self.max_failed_share, total, f"{ref} ({self.name})")
        failures.note(failed)
        failures.tell("they count as failed")

    def leaks(self, prompts: Sequence[Prompt]) -> dict[str, int | None]:
        """For each measured model and the judge: how many of the prompts it was trained on, with an alarm. None if that
        is not known, as for most models that togi did not train."""
        marks = [mark(prompt.messages) for prompt in prompts]
        refs = {**self.subjects, **({"judge": self.judge} if self.judge is not None else {})}
        known = {name: learnt(self.context, ref) for name, ref in refs.items()}
        found = {name: None if own is None else _among(marks, own) for name, own in known.items()}
        for name, count in found.items():
            if count:
                self.alarm(
                    "evaluated_on_learnt",
                    f"{name} was trained on {count} of {len(prompts)} questions, so its figures do not hold for unseen "
                    "questions; keep training and evaluation apart with `select` or `decontaminate`",
                    value=count / len(prompts),
                    threshold=0.0,
                )
        return found

    def decontaminated(self, tests: Sequence[Ref]) -> dict[str, str]:
        """For each measured model: which of its training data was compared with the sets `tests`, and how many records
        were left out; logged too. Without models of which nothing is known."""
        found = {}
        for name, ref in self.subjects.items():
            if held := [each for test in tests for each in held_against(self.context, ref, test)]:
                found[name] = told(held)
                self.log(f"the training data of {name} was decontaminated against these questions: {found[name]}")
        return found

    # --- the manifest ---------------------------------------------------------------------------------------------

    def note(self, **parts: Any) -> None:
        """Adds to the manifest what must agree before two tables are compared, such as the hash of a judge's prompt."""
        self.noted |= parts

    def manifest(self) -> dict[str, Any]:
        """Everything that determines the numbers, as far as it is known."""
        named = {name: self.identity(ref) for name, ref in self.subjects.items()}
        if self.baseline_ref is not None and self.baseline is not None:
            named[self.baseline] = self.identity(self.baseline_ref)
        common = {"benchmark": self.name, "seed": self.seed, "level": self.level, **self.noted}
        return {"common": common, "subjects": named}

    def identity(self, ref: Ref) -> dict[str, Any]:
        """Identifies a model: a fingerprint of its weights (for a served model, of its entry in the recipe), the
        engine, and the chat template that the recipe names."""
        target = self.context.inputs[ref]
        source, endpoint = target.source, target.endpoint
        engine = "togi" if endpoint is None else "server"
        if target.folder is not None:
            return {"model": target.folder.name, "engine": engine, "template": "own"}
        assert source is not None
        found = digest([fingerprint(source), source.tokens])[:16] if source.kind == "path" else fingerprint(source)
        return {"model": found, "engine": engine, "template": _template(source)}

    def _ref(self, subject: str) -> Ref:
        if subject in self.subjects:
            return self.subjects[subject]
        assert subject == self.baseline and self.baseline_ref is not None, f"{subject} is not a subject"
        return self.baseline_ref

    def _note(self, phase: str, prompts: Sequence[Prompt], params: SamplingParams) -> None:
        """Records the questions only: later turns also contain the subject's own answers."""
        asked = [[turn.content for turn in prompt.messages if turn.role != "assistant"] for prompt in prompts]
        mark = {"questions": digest(asked)[:16], "sampling": asdict(params)}
        self.noted.setdefault("asked", {})[phase] = mark


def _nth(repeat: int) -> str:
    """The suffix that distinguishes the units of a repeated question."""
    return f"-again-{repeat}" if repeat else ""


def _among(marks: Sequence[str], known: Sequence[str]) -> int:
    return sum(map(frozenset(known).__contains__, marks))


def _template(source: ModelSource) -> str:
    """The name of a chat template, or the hash of the file that holds it."""
    return file_hash(Path(source.template_file))[:16] if source.template_file else source.template or "own"
