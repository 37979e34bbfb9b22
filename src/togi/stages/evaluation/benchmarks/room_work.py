"""The context of a running benchmark: its subjects, the judge, and methods that ask them.

Finished units of work are stored, so a restart does not repeat them. The manifest records the questions, the sampling
parameters, the judge, and the identity of each subject.
"""

from collections.abc import Callable, Mapping, Sequence
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
from togi.judge.asking import Answered, Asker, Attempt
from togi.rewards.base import Attempt as Answer
from togi.rewards.terminator import TerminatorCheck
from togi.stages.context import Context
from togi.stages.endpoints import ChatGenerator, chooser, embedder, generator, scorer
from togi.stages.failures import Failures
from togi.stages.seen_prompts import learnt, mark
from togi.stages.shards import SHARD_ROWS

Value = TypeVar("Value")
Item = TypeVar("Item")
TOO_LONG, REFUSED = "too_long", "refused"
UNIT = 16
"""Prompts, or questions to a judge, in one unit of work of a local model."""


@dataclass(frozen=True, slots=True)
class Said:
    """An answer of a subject: the text without terminator, why it stopped, its number of tokens (0 if a server does not
    report it), and whether it ended properly. `stop` is `error` if the request failed, REFUSED if the server will not
    answer this prompt, TOO_LONG if the prompt leaves no room for an answer."""

    text: str
    stop: str
    tokens: int
    closed: bool

    @property
    def failed(self) -> bool:
        """Whether there is no answer."""
        return self.stop in ("error", REFUSED, TOO_LONG)


@dataclass(frozen=True, slots=True, kw_only=True)
class Again:
    """Options of one of several calls. `repeat` counts earlier calls with the same greedy questions, so that a server
    is asked again. With `refusable`, a server may refuse every prompt of this call; the benchmark itself checks that it
    got answers. `asked` lists the prompts for the manifest, if this call leaves some out."""

    repeat: int = 0
    refusable: bool = False
    asked: Sequence[Prompt] | None = None


ONCE = Again()


@dataclass(frozen=True, slots=True)
class Asking:
    """How a judge is asked: `rounds` readable verdicts on each question, with up to `retries` repeats for an unreadable
    one. `phase` distinguishes several calls of one benchmark. `judge` replaces the evaluation's judge."""

    params: SamplingParams
    phase: str = "verdicts"
    retries: int = 1
    rounds: int = 1
    judge: ModelRef | None = None
    again: Again = ONCE

    def note(self, noted: dict[str, Any]) -> None:
        """Adds the parameters to the manifest. A subject that acts as judge is listed there already."""
        phase = self.phase if self.judge is None else "subjects"
        told = {"sampling": asdict(self.params), "retries": self.retries, "rounds": self.rounds}
        noted.setdefault("judged", {})[phase] = told


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
        return self.context.units(count, make, f"{self.name}-{name}", f"batches of {self.name}")

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
            rows = [_rows(speaker, *each) for each in groups]
            return [
                group if fits else [{**row, "stop": TOO_LONG} for row in group]
                for group, fits in zip(rows, room, strict=True)
            ]

        units = self._in_units(ref, prompts, make, f"{phase}-{subject}{_nth(repeat)}")
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
        return _numbers(self._in_units(ref, items, lambda batch: _kept(judge.score(batch)), phase))

    def ask(
        self, questions: Sequence[Prompt], read: Callable[[str], Value | None], how: "Asking"
    ) -> list[Answered[Value]]:
        """The judge's replies to each question. Finished units are not repeated after a restart. `read` parses a text
        into a verdict, or None.

        The ids of questions name their random streams. Raises StageError if too many requests failed.
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
            return [_said(next(found)) if fits else [(TOO_LONG, True)] for fits in room]

        units = self._in_units(ref, questions, make, f"{how.phase}{_nth(how.again.repeat)}")
        how.note(self.noted)
        if how.judge is None:
            self.noted["judge"] = self.identity(ref)
        found = [_answered(attempts, read) for unit in units for attempts in unit]
        self._tell(ref, [_stopped(each) for each in found], how.again.refusable)
        return found

    def choices(
        self, ref: ModelRef, questions: Sequence[Prompt], words: tuple[str, str], phase: str
    ) -> list[float | GraderError]:
        """The judge's log-probability of beginning its answer with the first word minus that of the second, in nats,
        for each question. Finished units are not repeated after a restart. A question without a result has an error."""
        judge = chooser(self.context, ref)
        asked = [question.messages for question in questions]
        return _numbers(self._in_units(ref, asked, lambda batch: _kept(judge.margins(batch, *words)), phase))

    def _in_units(
        self, ref: Ref, items: Sequence[Item], make: Callable[[Sequence[Item]], list[Any]], phase: str
    ) -> list[list[Any]]:
        """Applies `make` to batches of items. A server's answers are stored one by one, so its units can be large and
        keep the server busy."""
        size, phase = (SHARD_ROWS, f"{phase}-served") if self._served(ref) else (UNIT, phase)
        return self.units(-(-len(items) // size), lambda unit: make(items[unit * size : (unit + 1) * size]), phase)

    def _served(self, ref: Ref) -> bool:
        return self.context.inputs[ref].endpoint is not None

    def _tell(self, ref: Ref, stops: Sequence[str], refusable: bool) -> None:
        """Raises alarms for missing answers. Raises StageError if too many requests failed or all were refused."""
        self._tell_long(ref, stops.count(TOO_LONG))
        refused = stops.count(REFUSED)
        if refused:
            told = f"the server of {ref} refused {refused} of {len(stops)} prompts; see the log for its messages"
            if refused == len(stops) and not refusable:
                raise StageError(f"stage {self.context.name}: {self.name}: {told}")
            self.alarm("refused", f"{told}. They have no answer and are counted", value=refused / len(stops))
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

    def leaks(self, prompts: Sequence[Prompt]) -> dict[str, int]:
        """For each measured model and the judge: how many of the prompts it was trained on, with an alarm. Unknown (0)
        for models that togi did not train."""
        marks = [mark(prompt.messages) for prompt in prompts]
        refs = {**self.subjects, **({"judge": self.judge} if self.judge is not None else {})}
        found = {name: _among(marks, learnt(self.context, ref)) for name, ref in refs.items()}
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


def _rows(speaker: ChatGenerator, prompt: Prompt, group: Sequence[Completion]) -> list[dict[str, Any]]:
    """The answers to a prompt, in the journal's format."""
    check = TerminatorCheck(terminator=speaker.terminator, turn_starts=speaker.turn_starts)
    rows = []
    for one in group:
        text = one.text.partition(speaker.terminator)[0].strip()
        closed = one.stop != "error" and check(Answer(prompt=prompt, completion=one, answer=text)) is None
        stop = REFUSED if one.refused else one.stop
        rows.append({"text": text, "stop": stop, "tokens": len(one.token_ids), "closed": closed})
    return rows


def _kept(numbers: Sequence[float | GraderError]) -> list[Any]:
    """Numbers and errors, in the journal's format."""
    return [{"error": str(one)} if isinstance(one, GraderError) else one for one in numbers]


def _numbers(units: Sequence[Sequence[Any]]) -> list[float | GraderError]:
    """The inverse of `_kept`."""
    return [GraderError(one["error"]) if isinstance(one, dict) else one for unit in units for one in unit]


def _said(answered: Answered[Any]) -> list[tuple[str, bool]]:
    """All replies of a judge to a question, in the journal's format."""
    return [(REFUSED if attempt.refused else attempt.text, attempt.failed) for attempt in answered.attempts]


def _answered(attempts: Sequence[Sequence[Any]], read: Callable[[str], Value | None]) -> Answered[Value]:
    """The inverse of `_said`."""
    return Answered(
        [Attempt(text, None if failed else read(text), failed, failed and text == REFUSED) for text, failed in attempts]
    )


def _stopped(answered: Answered[Any]) -> str:
    """How a question to a judge ended: REFUSED, TOO_LONG, `error`, or empty if there is a text."""
    if answered.values or not answered.failed:
        return ""
    if answered.refused:
        return REFUSED
    return TOO_LONG if answered.attempts[0].text == TOO_LONG else "error"


def _nth(repeat: int) -> str:
    """The suffix that distinguishes the units of a repeated question."""
    return f"-again-{repeat}" if repeat else ""


def _among(marks: Sequence[str], known: Sequence[str]) -> int:
    return sum(map(frozenset(known).__contains__, marks))


def _template(source: ModelSource) -> str:
    """The name of a chat template, or the hash of the file that holds it."""
    return file_hash(Path(source.template_file))[:16] if source.template_file else source.template or "own"
