"""The embedded sampler: token ids in, token ids and log-probabilities out, one step at a time.

A group is one prompt with its samples: the prompt is computed once and its keys are kept once. Finished rows leave the
batch. New requests may join while others run. A stream of random numbers belongs to one sample, so that what is sampled
depends on the rows beside it through rounding alone.

Shapes: R rows, G groups, T packed tokens, V vocabulary.
"""

import logging
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from togi.core.errors import InputError
from togi.core.protocols import Tokenizer
from togi.core.records import Completion, SamplingParams
from togi.core.strangers import run_stranger
from togi.rollout.attention import DecodePass, PrefillPass
from togi.rollout.cache import KeyCache, attention_type
from togi.rollout.fused_layers import compute_natively
from togi.rollout.packed import FEWEST_TOKENS, Packing, can_pack
from togi.rollout.processors import check_params, draw, uniform
from togi.rollout.requests import BatchState, Event, Group, Request, Row, record
from togi.rollout.sampling_model import context_limit, is_tested, mean_error, shadow, unsupported
from togi.rollout.terminator import Decoder, StopMatcher, TextStream

log = logging.getLogger(__name__)

PREFILL_TOKENS = 2048
"""Prompts are packed into one forward pass up to this many tokens; a longer one has its own."""

OWN_COLUMNS = 1024
"""Room for an answer's keys is taken at once up to this many tokens, beyond that by doubling."""

PROBE_TOLERANCE = 0.05
"""Nats by which a probe may differ on average: a wrong position gives 3.6, one key too many 0.1, bfloat16 0.03."""


class Sampler:
    """Samples from `net`, any decoder-only model of transformers, until `terminator` stands in the decoded text.

    The weights are read where they are, so training steps on `net` are seen; the structure (adapters on or off) is that
    of the moment of construction. An end-of-sequence token that is not the terminator does not end an answer; `end_ids`
    do, as stop strings. At most `batch_rows` rows are computed together. `on_logits` receives a copy of the float32
    logits (R, V) of every step with the (request, index) of each row. A model whose keys cannot be kept is sampled by
    computing whole sequences, aloud (`whole`). Raises InputError for one that cannot be computed so either.
    """

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
            raise InputError("the chat template has no terminator; an answer needs a text that ends it")
        self.net: Any = shadow(net)
        weight = next(net.parameters())
        self.device = weight.device
        self.whole = False
        if self.device.type == "cpu":
            compute_natively(self.net)
        self._packing = Packing(self.net, batch_rows) if can_pack(net) else None
        self.limit = context_limit(net)
        self.batch_rows = batch_rows
        self.terminator = terminator
        self.end_ids = tuple(end_ids)
        self._decoder = Decoder(tokenizer)
        self._watches: dict[tuple[str, ...], StopMatcher] = {}
        self._on_logits = on_logits
        self._cache = KeyCache(attention_type(weight))
        self._waiting: deque[Group] = deque()
        self._groups: list[Group] = []  # in the order of their places in the cache
        self._rows: list[Row] = []
        self._batch_state: BatchState | None = None
        self._next_id = 0
        if why := unsupported(net):
            self._compute_whole(net, why)
        if self.whole or not is_tested(net):
            self._probe(net)

    def add(self, request: Request) -> int:
        """Takes a request and returns its id; raises InputError if it can never be answered."""
        return self._add(request, "the prompt")

    def step(self) -> list[Event]:
        """Computes the prompts that wait, as far as there is room, or else one token of every row."""
        with torch.inference_mode():
            rows = self._admit()
            if rows:
                state, logits_RV = self._prefill(rows)
            elif self._rows:
                rows = self._rows
                state, logits_RV = self._decode()
            else:
                return []
            events = self._advance(rows, state, logits_RV)
            self._drop_ended()
        return events

    def cancel(self, request: int) -> None:
        """Forgets a request, waiting or running; an unknown or finished one is no error."""
        self._waiting = deque(group for group in self._waiting if group.id != request)
        for row in self._rows:
            if row.group.id == request:
                row.ended = True
        with torch.inference_mode():
            self._drop_ended()

    def packed(self) -> AbstractContextManager[None]:
        """Keeps the weights as they are now in a faster layout while `with` lasts; `generate` does so by itself."""
        return nullcontext() if self._packing is None else self._packing

    @property
    def busy(self) -> bool:
        """Whether a step has anything to do."""
        return bool(self._waiting or self._rows)

    def generate(
        self, prompt_ids: Sequence[Sequence[int]], params: SamplingParams, seeds: Sequence[Sequence[int]]
    ) -> list[list[Completion]]:
        """Answers every prompt `params.n` times, in batches that follow from the numbers of prompts and samples alone.

        `seeds[i][j]` is the random stream of sample j of prompt i. Raises InputError for a prompt that does not fit,
        before anything is computed, and RuntimeError while requests of `add` are running.
        """
        if self.busy:
            raise RuntimeError("generate was called while requests of add are running")
        requests = self._requests(prompt_ids, params, seeds)
        for at, request in requests:
            self._check(request, f"prompt {at}")
        answers: list[list[Completion]] = [[] for _ in prompt_ids]
        try:
            with self.packed() if params.max_tokens >= FEWEST_TOKENS else nullcontext():
                for batch in batches([request.params.n for _, request in requests], self.batch_rows):
                    self._run([requests[i][1] for i in batch], [answers[requests[i][0]] for i in batch])
        finally:
            self._abandon()
        return answers

    def _requests(
        self, prompt_ids: Sequence[Sequence[int]], params: SamplingParams, seeds: Sequence[Sequence[int]]
    ) -> list[tuple[int, Request]]:
        """One request per prompt, or several if one prompt has more samples than a batch has rows."""
        requests = []
        for at, (ids, own) in enumerate(zip(prompt_ids, seeds, strict=True)):
            if len(own) != params.n:
                raise InputError(f"prompt {at}: {len(own)} seeds for n = {params.n} samples; give one seed per sample")
            for start in range(0, params.n, self.batch_rows):
                part = tuple(own[start : start + self.batch_rows])
                part_params = params if len(part) == params.n else replace(params, n=len(part))
                requests.append((at, Request(prompt_ids=tuple(ids), params=part_params, seeds=part)))
        return requests

    def _run(self, requests: Sequence[Request], answers: Sequence[list[Completion]]) -> None:
        first = self._next_id
        for request in requests:
            self._add(request, "the prompt")
        found: list[dict[int, Completion]] = [{} for _ in requests]
        while self.busy:
            for event in self.step():
                if event.completion is not None:
                    found[event.request - first][event.index] = event.completion
        for samples, answer in zip(found, answers, strict=True):
            answer.extend(samples[index] for index in range(len(samples)))

    def _abandon(self) -> None:
        """Back to the state of a new sampler: no request, no memory."""
        self._waiting.clear()
        self._groups, self._rows, self._batch_state = [], [], None
        self._cache.clear()

    def _add(self, request: Request, name: str) -> int:
        self._check(request, name)
        context = self._decoder.context(request.prompt_ids)
        group = Group(self._next_id, request, self._watch(request.params.stop), context, request.params.n)
        self._next_id += 1
        self._waiting.append(group)
        return group.id

    def _check(self, request: Request, name: str) -> None:
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
        if self.limit is not None and length + more > self.limit:
            raise InputError(
                f"{name}: {length} tokens and max_tokens {more} are {length + more}, but the model's context is "
                f"{self.limit}; shorten the prompt by {length + more - self.limit} tokens or lower max_tokens"
                + (f" to {self.limit - length}" if length < self.limit else "")
            )

    def _watch(self, stop: tuple[str, ...]) -> StopMatcher:
        if stop not in self._watches:
            self._watches[stop] = StopMatcher(self._decoder, self.terminator, stop, self.end_ids)
        return self._watches[stop]

    def _admit(self) -> list[Row]:
        """Gives waiting requests places, first come first served; returns their rows."""
        rows: list[Row] = []
        tokens = 0
        while self._waiting:
            group = self._waiting[0]
            tokens += group.num_prompt
            if len(self._rows) + len(rows) + group.live > self.batch_rows or (rows and tokens > PREFILL_TOKENS):
                break
            self._groups.append(self._waiting.popleft())
            rows.extend(
                Row(group, index, TextStream(group.watch, group.context) if group.request.stream else None)
                for index in range(group.live)
            )
        return rows

    def _reserve(self) -> None:
        """Room for all that runs and for what waits, as far as it will run beside it."""
        groups, rows = list(self._groups), len(self._rows)
        for group in self._waiting:
            rows += group.live
            if rows > self.batch_rows:
                break
            groups.append(group)
        self._cache.reserve(
            groups=len(groups),
            prompt=max(group.num_prompt for group in groups),
            rows=sum(group.live for group in groups),
            own=max(min(group.request.params.max_tokens, OWN_COLUMNS) for group in groups),
        )

    def _prefill(self, rows: list[Row]) -> tuple[BatchState, Tensor]:
        """Computes the prompts of new rows, packed without padding; logits (R, V) of each row's first token."""
        groups = list({id(row.group): row.group for row in rows}.values())
        first = len(self._groups) - len(groups)
        self._rows = [*self._rows, *rows]
        self._batch_state = None
        if self.whole:
            return BatchState.of(rows, None, self.device), self._recomputed(rows)
        self._reserve()
        lengths = [group.num_prompt for group in groups]
        ids_T = torch.tensor([token for group in groups for token in group.request.prompt_ids], device=self.device)
        position_T = torch.cat([torch.arange(length, device=self.device) for length in lengths])
        last_G = torch.tensor(lengths, device=self.device).cumsum(0) - 1
        logits_GV = self.net(
            input_ids=ids_T[None],
            position_ids=position_T[None],
            use_cache=False,
            logits_to_keep=last_G,
            togi_pass=PrefillPass(self._cache, range(first, len(self._groups)), lengths),
        ).logits[0]
        where = {id(group): place for place, group in enumerate(groups)}
        group_R = torch.tensor([where[id(row.group)] for row in rows], device=self.device)
        return BatchState.of(rows, None, self.device), logits_GV.float().index_select(0, group_R)

    def _decode(self) -> tuple[BatchState, Tensor]:
        """One more token of every row; logits (R, V)."""
        if self._batch_state is None:
            self._batch_state = BatchState.of(self._rows, self._groups, self.device)
        state = self._batch_state
        if self.whole:
            return state, self._recomputed(self._rows)
        assert state.places is not None
        own_R = [row.num_own for row in self._rows]
        if max(own_R) >= self._cache.own:
            self._cache.reserve(own=2 * self._cache.own)
        logits_R1V = self.net(
            input_ids=torch.tensor([[row.ids[-1]] for row in self._rows], device=self.device),
            position_ids=(state.prompt_R + torch.tensor(own_R, device=self.device))[:, None],
            use_cache=False,
            togi_pass=DecodePass(
                self._cache,
                state.places,
                [group.num_prompt for group in self._groups],
                own_R,
                self.device,
            ),
        ).logits
        return state, logits_R1V[:, 0].float()

    def _recomputed(self, rows: Sequence[Row]) -> Tensor:
        """Logits (R, V) of each row's next token, each from its whole sequence, as the library computes it."""
        logits = []
        for row in rows:
            ids_T = torch.tensor([*row.group.request.prompt_ids, *row.ids], device=self.device)
            logits.append(self.net(input_ids=ids_T[None], use_cache=False).logits[0, -1].float())
        return torch.stack(logits)

    def _advance(self, rows: Sequence[Row], state: BatchState, logits_RV: Tensor) -> list[Event]:
        """Chooses a token for every row and tells what happened."""
        if self._on_logits is not None:
            self._on_logits(logits_RV.clone(), [(row.group.id, row.index) for row in rows])
        position_R = np.array([len(row.ids) for row in rows])
        random_R = torch.from_numpy(uniform(state.seeds_R, position_R)).to(self.device)
        drawn = draw(logits_RV, state.settings, random_R, state.seen_RL)
        if state.seen_RL is not None:
            line = torch.arange(len(rows), device=self.device)
            state.seen_RL[line, state.prompt_R + torch.from_numpy(position_R).to(self.device)] = drawn.token
        return record(rows, drawn)

    def _drop_ended(self) -> None:
        """Ended rows, and groups without rows, give their places to the last ones."""
        if not any(row.ended for row in self._rows):
            return
        self._batch_state = None
        for at in reversed([at for at, row in enumerate(self._rows) if row.ended]):
            last = len(self._rows) - 1
            self._rows[at].group.live -= 1
            if at != last:
                self._cache.move_row(last, at, self._rows[last].num_own)
                self._rows[at] = self._rows[last]
            self._rows.pop()
        for at in reversed([at for at, group in enumerate(self._groups) if not group.live]):
            last = len(self._groups) - 1
            if at != last:
                self._cache.move_group(last, at, self._groups[last].num_prompt)
                self._groups[at] = self._groups[last]
            self._groups.pop()

    def _probe(self, net: nn.Module) -> None:
        """Compares some sampled tokens with the plain computation. Where they differ, or the model's code fails, each
        token computes its whole sequence from then on; raises InputError if that differs too."""
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
        """What is wrong with a probe, if anything is."""
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
            f"on a probe the sampler's log-probabilities differ from its own by {error:.3f} nats on average (allowed "
            f"{PROBE_TOLERANCE})"
        )

    def _compute_whole(self, net: nn.Module, why: str) -> None:
        """Samples with the library's own computation of whole sequences from now on."""
        log.warning("%s: %s; so each new token computes its whole sequence again, slower", type(net).__name__, why)
        self.whole, self._packing, self.net = True, None, shadow(net, None)
        self._batch_state = None


def batches(samples: Sequence[int], batch_rows: int) -> list[range]:
    """Which prompts are computed together if prompt i has `samples[i]` samples: in order, at most `batch_rows` rows."""
    cuts, rows = [0], 0
    for at, count in enumerate(samples):
        if rows and rows + count > batch_rows:
            cuts.append(at)
            rows = 0
        rows += count
    return [range(start, stop) for start, stop in pairwise([*cuts, len(samples)]) if stop > start]
