"""The row-wise part of `synthesize`: what the model writes about the candidates of a unit.

A model is asked with conversations, as prompts, or with plain texts that it continues, as documents.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from togi.core.protocols import Completer
from togi.core.records import Completion, Document, Prompt, SamplingParams
from togi.core.seeds import derive
from togi.data.prompts_texts import joined_pairs
from togi.stages.data.synthesize import Synthesize
from togi.stages.endpoints import ChatGenerator
from togi.stages.model_shards import computed
from togi.stages.shards import Shard

Row = dict[str, Any]
"""The data that a unit stores of a candidate: JSON-like, with at least `text` and `stop`."""

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
    """A row for each prompt, with its answer from the prompt's own random stream. A prompt without turns has no room in
    the model's context and is not asked."""
    asked = [prompt for prompt in prompts if prompt.messages]
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


# --- shards -----------------------------------------------------------------------------------------------------------


def value_of(settings: Synthesize, shard: Shard, more: dict[str, Any]) -> dict[str, Any]:
    """`found`: the rows of the unit's candidates. `more` has the fields of `Continuing` if texts are continued."""

    def work(model: Any) -> list[Row]:
        if how := more["continuing"]:
            given = Continuing(**{**how, "stop": tuple(how["stop"])})
            return continuations(settings, shard.seed, model, shard.records, given)
        return answers(model, shard.records, chat_params(settings, shard.seed))

    return computed(settings.model, shard, more, work)
