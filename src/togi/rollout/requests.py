"""What the sampler keeps of requests while they run: a group is one prompt with its samples, a row is one sample.

Shapes: R rows, L seen tokens.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from togi.core.records import Completion, SamplingParams
from togi.rollout.attention import Places
from togi.rollout.processors import Draw, Settings
from togi.rollout.terminator import Ending, StopMatcher, TextStream


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One prompt to answer `params.n` times, sample i from the random stream `seeds[i]`; `stream`: text as it comes."""

    prompt_ids: tuple[int, ...]
    params: SamplingParams
    seeds: tuple[int, ...]
    stream: bool = False


@dataclass(frozen=True, slots=True)
class Event:
    """What happened to sample `index` of `request`: new text (streams only), and its completion once it has ended."""

    request: int
    index: int
    text: str = ""
    completion: Completion | None = None


@dataclass(slots=True, eq=False)
class Group:
    """A request under way: `context` are the last tokens of its prompt, `live` its rows that have not ended."""

    id: int
    request: Request
    watch: StopMatcher
    context: tuple[int, ...]
    live: int

    @property
    def num_prompt(self) -> int:
        """Tokens of the prompt."""
        return len(self.request.prompt_ids)


@dataclass(slots=True, eq=False)
class Row:
    """One sample under way. Its newest token has no keys yet: it is computed in the next step."""

    group: Group
    index: int
    text: TextStream | None
    ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    sampled_logprobs: list[float] = field(default_factory=list)
    ended: bool = False

    @property
    def num_own(self) -> int:
        """Tokens of the answer whose keys are in the cache."""
        return len(self.ids) - 1

    def completion(self, ending: Ending) -> Completion:
        """The sample as a record."""
        return Completion(
            text=ending.text,
            stop=ending.stop,
            token_ids=tuple(self.ids),
            logprobs=tuple(self.logprobs),
            sampled_logprobs=tuple(self.sampled_logprobs),
        )


@dataclass(slots=True)
class BatchState:
    """What stays the same while no row comes or goes."""

    places: Places | None
    settings: Settings
    seeds_R: np.ndarray
    prompt_R: Tensor
    seen_RL: Tensor | None

    @classmethod
    def of(cls, rows: Sequence[Row], groups: Sequence[Group] | None, device: torch.device) -> "BatchState":
        """The state of `rows`; with `groups`, in the order of the cache, also their places."""
        lengths = [row.group.num_prompt for row in rows]
        settings = Settings.of([row.group.request.params for row in rows], device)
        places = None
        if groups is not None:
            where = {id(group): place for place, group in enumerate(groups)}
            places = Places.of([where[id(row.group)] for row in rows], len(groups), device)
        return cls(
            places=places,
            settings=settings,
            seeds_R=np.array([row.group.request.seeds[row.index] for row in rows], dtype=np.uint64),
            prompt_R=torch.tensor(lengths, device=device),
            seen_RL=None if settings.penalty is None else _seen(rows, device),
        )


def _seen(rows: Sequence[Row], device: torch.device) -> Tensor:
    """The ids of prompt and answer of each row, with room for what comes; free room repeats the row's first id."""
    width = max(row.group.num_prompt + row.group.request.params.max_tokens for row in rows)
    seen = np.empty((len(rows), width), dtype=np.int64)
    for line, row in zip(seen, rows, strict=True):
        known = [*row.group.request.prompt_ids, *row.ids]
        line[: len(known)] = known
        line[len(known) :] = known[0]
    return torch.from_numpy(seen).to(device)


def record(rows: Sequence[Row], drawn: Draw) -> list[Event]:
    """Appends the drawn tokens to their rows; events of text and of endings."""
    events = []
    drawn_R = zip(drawn.token.tolist(), drawn.logp.tolist(), drawn.sampled_logp.tolist(), strict=True)
    for row, (token, logp, sampled) in zip(rows, drawn_R, strict=True):
        row.ids.append(token)
        row.logprobs.append(logp)
        row.sampled_logprobs.append(sampled)
        group = row.group
        ending = group.watch.ending(group.context, row.ids)
        if ending is None and len(row.ids) == group.request.params.max_tokens:
            ending = Ending("length", group.watch.text(group.context, row.ids))
        row.ended = ending is not None
        text = "" if row.text is None else row.text.finish(ending) if ending is not None else row.text.feed(token)
        if text or ending is not None:
            completion = None if ending is None else row.completion(ending)
            events.append(Event(group.id, row.index, text, completion))
    return events
