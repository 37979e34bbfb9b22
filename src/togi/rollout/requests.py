"""The sampler's state of running requests: a group is one prompt with its samples, a row is one sample.

Shapes: R rows, L seen tokens.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from togi.core.protocols import Event, Request
from togi.core.records import Completion
from togi.model.forest import common_prefix
from togi.rollout.kept import Block
from togi.rollout.processors import Draw, Settings, likeliest
from togi.rollout.terminator import Ending, StopMatcher, TextStream


@dataclass(frozen=True, slots=True)
class Shared:
    """The first `tokens` of a prompt, whose keys are already in the cache slot `group`."""

    group: int = 0
    tokens: int = 0


@dataclass(slots=True, eq=False)
class Group:
    """A running request: `context` holds the last tokens of its prompt, `live` counts its unfinished rows, `shared` is
    the part of its prompt that is not computed, because another group has it, or because it was `kept`."""

    id: int
    request: Request
    watch: StopMatcher
    context: tuple[int, ...]
    live: int
    shared: Shared = Shared()
    kept: Sequence[Block] = ()

    @property
    def num_prompt(self) -> int:
        """The number of tokens in the prompt."""
        return len(self.request.prompt_ids)

    @property
    def num_new(self) -> int:
        """The number of prompt tokens that this group computes itself."""
        return self.num_prompt - self.shared.tokens


def longest_shared(prompt_ids: tuple[int, ...], others: Sequence[Group], step: int, fewest: int) -> Shared:
    """The longest prefix of a prompt, in multiples of `step` tokens, that it shares with one of the `others`.

    Leaves at least one token to compute. Prefixes of fewer than `fewest` tokens are not worth sharing.
    """
    found = Shared()
    for place, other in enumerate(others):
        tokens = min(common_prefix([prompt_ids, other.request.prompt_ids]), len(prompt_ids) - 1) // step * step
        if tokens >= fewest and tokens > found.tokens:
            found = Shared(place, tokens)
    return found


@dataclass(slots=True, eq=False)
class Row:
    """One running sample. Its newest token has no keys yet; they are computed in the next step."""

    group: Group
    index: int
    text: TextStream | None
    ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    sampled_logprobs: list[float] = field(default_factory=list)
    top_logprobs: list[tuple[tuple[int, float], ...]] = field(default_factory=list)
    ended: bool = False

    @property
    def num_own(self) -> int:
        """The number of answer tokens whose keys are in the cache."""
        return len(self.ids) - 1

    def completion(self, ending: Ending) -> Completion:
        """The sample as a record."""
        return Completion(
            text=ending.text,
            stop=ending.stop,
            token_ids=tuple(self.ids),
            logprobs=tuple(self.logprobs),
            sampled_logprobs=tuple(self.sampled_logprobs),
            top_logprobs=tuple(self.top_logprobs),
        )


def rows_of(group: Group) -> list[Row]:
    """The samples of a group."""
    stream = group.request.stream
    return [Row(group, at, TextStream(group.watch, group.context) if stream else None) for at in range(group.live)]


@dataclass(slots=True)
class BatchState:
    """The state that stays the same while no row joins or leaves."""

    settings: Settings
    seeds_R: np.ndarray
    prompt_R: Tensor
    seen_RL: Tensor | None
    top: int
    """The most top tokens that a row reports."""

    @classmethod
    def of(cls, rows: Sequence[Row], device: torch.device) -> "BatchState":
        """The state of `rows`."""
        params = [row.group.request.params for row in rows]
        settings = Settings.of(params, device)
        return cls(
            settings=settings,
            seeds_R=np.array([row.group.request.seeds[row.index] for row in rows], dtype=np.uint64),
            prompt_R=torch.tensor([row.group.num_prompt for row in rows], device=device),
            seen_RL=None if settings.penalty is None else _seen(rows, device),
            top=max(one.logprobs for one in params),
        )


def _seen(rows: Sequence[Row], device: torch.device) -> Tensor:
    """The prompt and answer ids of each row, with room for later tokens; unused room repeats the row's first id."""
    width = max(row.group.num_prompt + row.group.request.params.max_tokens for row in rows)
    seen = np.empty((len(rows), width), dtype=np.int64)
    for line, row in zip(seen, rows, strict=True):
        known = [*row.group.request.prompt_ids, *row.ids]
        line[: len(known)] = known
        line[len(known) :] = known[0]
    return torch.from_numpy(seen).to(device)


def report_likeliest(rows: Sequence[Row], state: BatchState, logits_RV: Tensor) -> None:
    """Records the most likely tokens of each row that asks for them. Call it before drawing a token."""
    if not state.top:
        return
    id_RK, logp_RK = likeliest(logits_RV, state.settings, state.top)
    for row, ids, logps in zip(rows, id_RK.tolist(), logp_RK.tolist(), strict=True):
        asked = row.group.request.params.logprobs
        if asked:
            row.top_logprobs.append(tuple(zip(ids[:asked], logps[:asked], strict=True)))


def record(rows: Sequence[Row], drawn: Draw) -> list[Event]:
    """Appends the drawn tokens to their rows; returns the events for new text and for ended rows."""
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
