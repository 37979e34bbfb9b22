"""The row-wise part of `synthesize`: what the model writes about the candidates of a unit.

A model is asked with conversations, as prompts, or with plain texts that it continues, as documents. Magpie does both:
the model continues a text to a question, and answers the question.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from togi.core.protocols import Completer
from togi.core.records import Completion, Document, Message, Prompt, SamplingParams
from togi.core.seeds import derive, make_id
from togi.data.prompts_texts import joined_pairs
from togi.data.question_pairs import clean_reply
from togi.stages.data.synthesize import Synthesize
from togi.stages.data.synthesize_rules import Rules, unusable
from togi.stages.endpoints import ChatGenerator, Voices
from togi.stages.model_shards import computed
from togi.stages.shards import Shard

Row = dict[str, Any]
"""The data that a unit stores of a candidate: JSON-like, with at least `text` and `stop`."""

Ask = Callable[[Sequence[Prompt]], list[Row]]
"""Asks a model for one answer to each prompt."""

OVER_CONTEXT: Row = {"text": "", "stop": "over_context"}


def params_of(settings: Synthesize, seed: int = 0, n: int = 1, stop: tuple[str, ...] = ()) -> SamplingParams:
    """The sampling parameters of the recipe, or else of the method."""
    way = settings.way
    return SamplingParams(
        temperature=way.temperature if settings.temperature is None else settings.temperature,
        top_p=settings.top_p or way.top_p,
        max_tokens=settings.max_tokens or way.max_tokens,
        n=n,
        seed=seed,
        stop=stop,
    )


# --- conversations ----------------------------------------------------------------------------------------------------


def chat_params(settings: Synthesize, seed: int, greedy: int = 0) -> SamplingParams:
    """The parameters of answers; with `greedy`, they are greedy and have at most that many tokens."""
    params = params_of(settings, derive(seed, "synthesize"))
    return replace(params, temperature=0.0, max_tokens=greedy) if greedy else params


def answers(speaker: ChatGenerator, prompts: Sequence[Prompt], params: SamplingParams) -> list[Row]:
    """A row for each prompt, with its answer from the prompt's own random stream. A prompt that leaves no room for an
    answer in the model's context is not asked."""
    asked = [prompt for prompt in prompts if speaker.fits(prompt, params)]
    found = speaker.generate(asked, params) if asked else []
    rows = {prompt.id: _row(speaker, each[0]) for prompt, each in zip(asked, found, strict=True)}
    return [rows.get(prompt.id, OVER_CONTEXT) for prompt in prompts]


def _row(speaker: ChatGenerator, completion: Completion) -> Row:
    """The answer, cut at its terminator or at the start of another turn."""
    text = completion.text
    for end in (speaker.terminator, *speaker.turn_starts):
        text = text.partition(end)[0] if end else text
    return {"text": text.strip(), "stop": completion.stop}


# --- plain texts ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Continuing:
    """How texts are continued: `samples` times each, until one of the strings in `stop`. The continuations of a text
    are candidates of their own or, if `joined`, pairs of one."""

    samples: int
    stop: tuple[str, ...]
    joined: bool = False


def continuations(
    settings: Synthesize, seed: int, writer: Completer, texts: Sequence[Document], how: Continuing
) -> list[Row]:
    """The rows of all candidates, text by text. The random streams depend on the ids of the texts: the name of the
    candidate, or the number of the text."""
    names = [text.id if how.joined else int(text.id) for text in texts]
    seeds = [[derive(seed, "draft", name, i) for i in range(how.samples)] for name in names]
    params = params_of(settings, n=how.samples, stop=how.stop)
    found = writer.complete([text.text for text in texts], params, seeds)
    if how.joined:
        return [_joined(each, settings.language) for each in found]
    return [{"text": one.text, "stop": one.stop} for each in found for one in each]


def _joined(found: Sequence[Completion], language: str) -> Row:
    """Joins the continuations that ended to one text of pairs."""
    whole = [each.text for each in found if each.stop not in ("length", "error")]
    stop = "terminator" if whole else "error" if all(each.stop == "error" for each in found) else "length"
    return {"text": joined_pairs(whole, language), "stop": stop}


# --- questions --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Questions:
    """The questions that a model writes in a user's place. `producer` is the input of their ids; each of `ends` ends a
    question."""

    settings: Synthesize
    producer: str
    ends: tuple[str, ...]

    def name(self, number: int) -> str:
        """The id of a candidate."""
        return make_id(self.producer, (), number)

    def prompt(self, number: int, text: str) -> Prompt:
        """The question of a candidate, after the system turn of the settings."""
        system = (Message("system", self.settings.system),) if self.settings.system else ()
        return Prompt(id=self.name(number), messages=(*system, Message("user", text)))

    def read(self, rows: Sequence[Row]) -> list[Row]:
        """The rows with the texts of their questions alone."""
        return [{**row, "text": self._question(row["text"])} for row in rows]

    def answered(self, numbers: Sequence[int], rows: Sequence[Row], ask: Ask) -> list[Row]:
        """The rows of candidates with their `answer`; None for a question that breaks a rule."""
        rules, good = Rules(self.settings, distinct=False), {}
        for number, row in zip(numbers, rows, strict=True):
            if unusable(row) is None and rules.failure(row["text"]) is None:
                good[number] = self.prompt(number, row["text"])
        found = dict(zip(good, ask(list(good.values())), strict=True))
        return [{**row, "answer": found.get(number)} for number, row in zip(numbers, rows, strict=True)]

    def _question(self, text: str) -> str:
        text = text.lstrip()
        for end in self.ends:
            text = text.partition(end)[0]
        return clean_reply(text, self.settings.language)


# --- shards -----------------------------------------------------------------------------------------------------------


def value_of(settings: Synthesize, shard: Shard, more: dict[str, Any]) -> dict[str, Any]:
    """`found`: the rows of the unit's candidates. `more` has the fields of `Continuing` if texts are continued, and the
    `ends` of questions if they are answered too."""

    def work(model: Any) -> list[Row]:
        if not (fields := more["continuing"]):
            return answers(model, shard.records, chat_params(settings, shard.seed))
        how = Continuing(**{**fields, "stop": tuple(fields["stop"])})
        if "ends" in more:
            questions = Questions(settings, shard.producer, tuple(more["ends"]))
            return _questioned(questions, shard, model, how, more["most"])
        return continuations(settings, shard.seed, model, shard.records, how)

    return computed(settings.model, shard, more, work)


def _questioned(questions: Questions, shard: Shard, voices: Voices, how: Continuing, most: int) -> list[Row]:
    """The questions of a unit and their answers; there are `most` candidates in all."""
    settings, first = questions.settings, int(shard.records[0].id) * how.samples
    rows = continuations(settings, shard.seed, voices.writer, shard.records, how)[: most - first]
    params = chat_params(settings, shard.seed, settings.answer_tokens)
    return questions.answered(
        range(first, first + len(rows)),
        questions.read(rows),
        lambda prompts: answers(voices.speaker, prompts, params),
    )
