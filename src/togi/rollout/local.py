"""The embedded engine: token ids in, token ids and log-probabilities out, one step at a time.

A group is one prompt with its samples: the prompt is computed once and its keys are stored once. A prompt that shares a
prefix with a group in the batch copies the keys of the prefix. Only a server keeps keys for later groups (`kept`), so a
resumed run computes the same. Finished rows leave the batch. New requests join while others run; counts of rows and
tokens decide when, never the clock. Each sample has its own random stream, so other rows in the batch affect it only
through rounding.

Shapes: R rows, G groups, T packed tokens, V vocabulary.
"""

import logging
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from togi.core.errors import InputError
from togi.core.protocols import Event, Request, Tokenizer
from togi.core.records import Completion, SamplingParams
from togi.core.strangers import run_stranger
from togi.rollout.batch import RunningBatch
from togi.rollout.cache import attention_type
from togi.rollout.engine import answer, batches, requests_of
from togi.rollout.fused_layers import compute_natively
from togi.rollout.kept import KeptKeys
from togi.rollout.packed import FEWEST_TOKENS, Packing, can_pack
from togi.rollout.processors import check_params, draw, uniform
from togi.rollout.requests import BatchState, Group, Row, record, report_likeliest, rows_of
from togi.rollout.room import KeyRoom
from togi.rollout.sampling_model import context_limit, is_tested, mean_error, shadow, unsupported
from togi.rollout.terminator import Decoder, StopMatcher

log = logging.getLogger(__name__)

PREFILL_TOKENS = 2048
"""Prompts are packed into one forward pass up to this many tokens; a longer prompt gets its own pass."""

PROBE_TOLERANCE = 0.05
"""The average difference in nats allowed in a probe: a wrong position gives 3.6, an extra key 0.1, bfloat16 0.03."""


@dataclass(slots=True)
class _Queue:
    """The unread events of a request; `left` counts its samples whose end has not been read."""

    left: int
    events: deque[Event] = field(default_factory=deque)


class Sampler:
    """The `Engine` that samples from `net`, any decoder-only model of transformers, until the decoded text contains
    `terminator`. Reading events computes them: one thread at a time, the others wait.

    The sampler uses the weights of `net` in place, so it sees training steps; the structure (adapters on or off) is
    that at construction. An end-of-sequence token that is not the terminator does not end an answer; `end_ids` do, as
    stop strings. At most `batch_rows` rows are computed together (`bound` also limits their keys). `on_logits` receives
    a copy of the float32 logits (R, V) of every step with the (request, index) of each row. If a model's keys cannot be
    cached, each token recomputes its whole sequence, with a warning (`whole`). Raises InputError if that fails too.
    """

    repeatable = True

    def __init__(
        self,
        net: nn.Module,
        tokenizer: Tokenizer,
        terminator: str,
        *,
        batch_rows: int = 64,
        end_ids: Sequence[int] = (),
        on_logits: Callable[[Tensor, list[tuple[int, int]]], None] | None = None,
    ) -> None:
        if not terminator:
            raise InputError("the chat template has no terminator; the sampler needs a text that ends an answer")
        twin, weight = shadow(net), next(net.parameters())
        self.device = weight.device
        if self.device.type == "cpu":
            compute_natively(twin)
        self._packing = Packing(twin, batch_rows) if can_pack(net) else None
        self._packed = False
        self._held = False
        self.limit = context_limit(net)
        self.batch_rows = batch_rows
        self.terminator = terminator
        self.end_ids = tuple(end_ids)
        self._decoder = Decoder(tokenizer)
        decoder, own = self._decoder, self.end_ids
        self._watch = lru_cache(64)(lambda stop, ends: StopMatcher(decoder, terminator, stop, (*own, *ends)))
        self.on_logits = on_logits
        self._batch = RunningBatch(twin, self.device, attention_type(weight))
        self._state: BatchState | None = None
        self._waiting: deque[Group] = deque()
        self._queues: dict[int, _Queue] = {}
        self._next_id = 0
        self._lock = threading.RLock()
        if why := unsupported(net):
            self._compute_whole(net, why)
        if self.whole or not is_tested(net):
            self._probe(net)

    @property
    def net(self) -> Any:
        """The twin that the sampler runs; it shares the parameters of the model."""
        return self._batch.net

    @property
    def whole(self) -> bool:
        """Whether each token recomputes its whole sequence, because the model's keys cannot be cached."""
        return self._batch.whole

    @property
    def busy(self) -> bool:
        """Whether a step has anything to do."""
        return bool(self._waiting or self._batch.rows)

    def bound(self, size: float) -> None:
        """Limits keys and values to `size` bytes from now on. Requests then wait for room; their answers stay the same,
        up to the rounding of smaller batches. Raises InputError for a model of unknown sizes."""
        self._batch.room = KeyRoom(self.net, size)

    def pack(self) -> None:
        """Packs the weights for good, so that all requests are faster, unless that takes too much memory. Otherwise
        they are packed only while long answers are computed."""
        if self._packing is not None:
            self._packing.__enter__()

    @property
    def kept(self) -> KeptKeys:
        """Keys of ended requests: a later prompt that begins like one of them is computed from there on, and answered
        as without them only up to rounding. None are kept until they get a `size`."""
        return self._batch.kept

    @property
    def cache_bytes(self) -> int:
        """The bytes that keys and values take now."""
        return self._batch.cache.size

    # --- the engine ---------------------------------------------------------------------------------------------------

    def check(self, request: Request, name: str = "the prompt") -> None:
        """Raises InputError for a request that can never be answered; its message begins with `name`."""
        check_params(request.params)
        length, more = len(request.prompt_ids), request.params.max_tokens
        if not length:
            raise InputError(f"{name}: it has no tokens; a prompt needs at least one")
        if len(request.seeds) != request.params.n:
            raise InputError(f"{name}: {len(request.seeds)} seeds for n = {request.params.n}; give one per sample")
        if request.params.n > self.batch_rows:
            raise InputError(
                f"{name}: n = {request.params.n} samples, but a batch has {self.batch_rows} rows; "
                "ask for fewer at once or raise batch_rows"
            )
        if self._batch.room is not None and (wrong := self._batch.room.problem(request)):
            raise InputError(f"{name}: {wrong}")
        if self.limit is not None and length + more > self.limit:
            over, room = length + more - self.limit, self.limit - length
            ways = [f"shorten the prompt by {_tokens(over)}"] if over < length else []
            ways += [f"lower max_tokens to {room}"] if room > 0 else []
            raise InputError(
                f"{name}: {_tokens(length)} and max_tokens {more} are {length + more}, but the model's context is "
                f"{self.limit}; {' or '.join(ways) or 'shorten the prompt and lower max_tokens'}"
            )

    def add(self, request: Request) -> int:
        """Adds a request and returns its id. Raises InputError if it can never be answered."""
        self.check(request)
        context = self._decoder.context(request.prompt_ids)
        with self._lock:
            watch = self._watch(request.params.stop, request.end_ids)
            group = Group(self._next_id, request, watch, context, request.params.n)
            self._next_id += 1
            self._waiting.append(group)
            self._queues[group.id] = _Queue(request.params.n)
        return group.id

    def events(self, request: int) -> Iterator[Event]:
        """Yields the events of one request in order, until its last sample has ended or it is cancelled. Computes steps
        while there are none; events of other requests wait in their queues."""
        while True:
            with self._lock:
                queue = self._queues.get(request)
                while queue is not None and not queue.events and self.busy:
                    self.step()
                if queue is None or not queue.events:
                    return
                event = queue.events.popleft()
                queue.left -= event.completion is not None
                if not queue.left:
                    del self._queues[request]
            yield event

    def ready(self, request: int) -> list[Event]:
        """The unread events of one request; computes nothing."""
        with self._lock:
            queue = self._queues.get(request)
            found = [] if queue is None else [*queue.events]
            if queue is not None:
                queue.events.clear()
                queue.left -= sum(event.completion is not None for event in found)
                if not queue.left:
                    del self._queues[request]
            return found

    def step(self) -> None:
        """Computes one more token of every row, and the first one of waiting requests, as far as there is room."""
        with self._lock, torch.inference_mode():
            self._pack()
            if self._admit() or self._state is None:
                self._state = BatchState.of(self._batch.rows, self.device) if self._batch.rows else None
            if self._state is None:
                return
            for event in self._advance(self._batch.rows, self._state, self._batch.logits()):
                self._queues[event.request].events.append(event)
            self._leave()

    def cancel(self, request: int) -> None:
        """Drops a waiting or running request. An unknown or finished request is no error."""
        with self._lock, torch.inference_mode():
            self._queues.pop(request, None)
            self._waiting = deque(group for group in self._waiting if group.id != request)
            for row in self._batch.rows:
                if row.group.id == request:
                    row.ended = True
            self._leave()

    def publish(self, weights: Iterable[tuple[str, Any]]) -> None:
        """Copies weights into the network, by their names in it, unless they already share its memory. Raises
        RuntimeError while requests run, because their keys come from the earlier weights."""
        if self.busy:
            raise RuntimeError("publish was called while requests are running")
        self._batch.kept.clear()
        targets = dict(self.net.named_parameters())
        with torch.no_grad():
            for name, value in weights:
                if targets[name].data_ptr() != value.data_ptr():
                    targets[name].copy_(value)
        if self._packing is not None:
            self._packing.refresh()

    def close(self) -> None:
        """Drops all requests and releases all memory, as in a new sampler."""
        with self._lock:
            self._waiting.clear()
            self._queues.clear()
            self._batch.clear()
            self._batch.kept.clear()
            self._release()

    def generate(
        self, prompt_ids: Sequence[Sequence[int]], params: SamplingParams, seeds: Sequence[Sequence[int]]
    ) -> list[list[Completion]]:
        """Answers every prompt `params.n` times, in batches that depend only on the numbers of prompts and samples.

        `seeds[i][j]` is the random stream of sample j of prompt i. Raises InputError for a prompt that does not fit,
        before computing anything, and RuntimeError while requests of `add` are running.
        """
        if self.busy:
            raise RuntimeError("generate was called while requests of add are running")
        requests = requests_of(prompt_ids, params, seeds, self.batch_rows)
        for at, request in requests:
            self.check(request, f"prompt {at}")
        answers: list[list[Completion]] = [[] for _ in prompt_ids]
        with self._holding():
            for batch in batches([request.params.n for _, request in requests], self.batch_rows):
                own = [requests[i] for i in batch]
                for (at, _), found in zip(own, answer(self, [request for _, request in own]), strict=True):
                    answers[at].extend(found)
        return answers

    # --- a step -------------------------------------------------------------------------------------------------------

    def _pack(self) -> None:
        """Packs the weights for products with few rows, if a waiting request is long and not a stream, which should
        start at once."""
        asked = (group.request for group in self._waiting)
        if self._packing is None or self._packed or self._batch.rows:
            return
        if any(request.params.max_tokens >= FEWEST_TOKENS and not request.stream for request in asked):
            self._packing.__enter__()
            self._packed = True

    def _release(self) -> None:
        """Releases memory when nothing runs."""
        self._state = None
        if self.busy or self._held:
            return
        self._batch.clear()
        if self._packed and self._packing is not None:
            self._packing.__exit__()
            self._packed = False

    @contextmanager
    def _holding(self) -> Iterator[None]:
        """Keeps memory and packed weights between batches."""
        self._held = True
        try:
            yield
        finally:
            self._held = False
            self.close()

    def _admit(self) -> bool:
        """Admits waiting requests to the batch, in order; returns whether there were any."""
        rows = tokens = 0
        while self._waiting:
            group = self._waiting[0]
            self._batch.share(group)
            tokens += group.num_new
            if len(self._batch.rows) + group.live > self.batch_rows or (rows and tokens > PREFILL_TOKENS):
                break
            if not self._batch.fits([group]):
                if self._batch.rows:
                    break
                self._batch.cache.clear()  # room allocated for earlier requests
            rows += group.live
            self._batch.join(self._waiting.popleft(), rows_of(group))
        if rows:
            self._batch.reserve(self._next_beside())
        return rows > 0

    def _next_beside(self) -> list[Group]:
        """The waiting groups that fit in addition to the running ones."""
        groups, rows = [], len(self._batch.rows)
        for group in self._waiting:
            rows += group.live
            if rows > self.batch_rows or not self._batch.fits([*groups, group]):
                break
            groups.append(group)
        return groups

    def _advance(self, rows: Sequence[Row], state: BatchState, logits_RV: Tensor) -> list[Event]:
        """Chooses a token for every row and returns the events."""
        if self.on_logits is not None:
            self.on_logits(logits_RV.clone(), [(row.group.id, row.index) for row in rows])
        report_likeliest(rows, state, logits_RV)
        position_R = np.array([len(row.ids) for row in rows])
        random_R = torch.from_numpy(uniform(state.seeds_R, position_R)).to(self.device)
        drawn = draw(logits_RV, state.settings, random_R, state.seen_RL)
        if state.seen_RL is not None:
            line = torch.arange(len(rows), device=self.device)
            state.seen_RL[line, state.prompt_R + torch.from_numpy(position_R).to(self.device)] = drawn.token
        return record(rows, drawn)

    def _leave(self) -> None:
        """Removes ended rows; releases memory after the last one."""
        if self._batch.leave():
            self._state = None
        if not self.busy:
            self._release()

    # --- unknown models -----------------------------------------------------------------------------------------------

    def _probe(self, net: nn.Module) -> None:
        """Compares some sampled tokens with the plain computation. If they differ, or the model's code fails, each
        token recomputes its whole sequence from then on. Raises InputError if that differs too."""
        wrong = self._difference(net)
        if wrong and not self.whole:
            self._compute_whole(net, wrong)
            wrong = self._difference(net)
        if wrong:
            raise InputError(
                f"{type(net).__name__}: the embedded sampler cannot compute this model: {wrong}. Sample from its "
                "folder with generate() of transformers"
            )

    def _difference(self, net: nn.Module) -> str:
        """The fault that a probe finds, empty if none."""
        prompts = [[5, 3, 2, 7, 11], [3, 2, 13]]
        params = SamplingParams(max_tokens=6, n=2)
        try:
            answers = run_stranger(lambda: self.generate(prompts, params, [[1, 2], [3, 4]]), InputError)
            pairs = [(ids, answer) for ids, own in zip(prompts, answers, strict=True) for answer in own]
            error = run_stranger(lambda: mean_error(net, pairs), InputError)
        except InputError as failed:
            return str(failed)
        if error <= PROBE_TOLERANCE:
            return ""
        return (
            f"in a probe, the sampler's log-probabilities differ from the model's own by {error:.3f} nats on average "
            f"(allowed: {PROBE_TOLERANCE})"
        )

    def _compute_whole(self, net: nn.Module, why: str) -> None:
        """From now on, samples with the library's own computation of whole sequences."""
        log.warning("%s: %s; each new token recomputes its whole sequence, which is slower", type(net).__name__, why)
        self._batch.whole, self._packing, self._batch.net = True, None, shadow(net, None)


def _tokens(count: int) -> str:
    return f"{count} token{'' if count == 1 else 's'}"
