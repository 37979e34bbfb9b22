"""The rows that are sampled together: their slots in the cache, and the logits of each row's next token.

New prompts are computed in the same pass as the next token of the running rows; a common prefix of prompts is computed
once. The slots of ended rows, and of groups without rows, are filled with the last ones.

Shapes: R rows, G groups that join, T packed tokens, V vocabulary.
"""

from collections.abc import Iterable, Sequence
from itertools import chain
from typing import Any

import torch
from torch import Tensor

from togi.kernels import BLOCK
from togi.rollout.attention import DecodePass, MixedPass, Places, PrefillPass
from togi.rollout.cache import COLUMN_STEP, KeyCache
from togi.rollout.kept import KeptKeys
from togi.rollout.requests import Group, Row, Shared, longest_shared
from togi.rollout.room import KeyRoom

OWN_COLUMNS = 1024
"""Room for an answer's keys is allocated at once for up to this many tokens, and then grows by doubling."""

FEWEST_SHARED = 2 * COLUMN_STEP
"""A shorter common prefix of two prompts is computed twice, because fetching its keys would cost more."""


class RunningBatch:
    """The running rows. `net` is the sampler's twin of the model; its keys are stored as `dtype`. If `whole` is set,
    each token recomputes its whole sequence instead. `kept` has keys of ended rows, for later prompts."""

    def __init__(self, net: Any, device: torch.device, dtype: torch.dtype) -> None:
        self.net = net
        self.device = device
        self.whole = False
        self.room: KeyRoom | None = None
        self.kept = KeptKeys()
        self.cache = KeyCache(dtype)
        self.groups: list[Group] = []  # in the order of their slots in the cache
        self.rows: list[Row] = []
        self._joined: list[Group] = []  # the last groups, whose prompts are not computed yet
        self._places: Places | None = None

    def share(self, group: Group) -> None:
        """Finds the prefix that a group shares with one in the batch, or with a kept one if that is longer. Call it
        right before the group joins."""
        if self.whole:
            return
        ids = group.request.prompt_ids
        group.shared, group.kept = longest_shared(ids, self.groups, COLUMN_STEP, FEWEST_SHARED), ()
        blocks = self.kept.beginning(ids)
        if len(blocks) * BLOCK > max(group.shared.tokens, FEWEST_SHARED - 1):
            group.shared, group.kept = Shared(len(self.groups), len(blocks) * BLOCK), blocks

    def join(self, group: Group, rows: Iterable[Row]) -> None:
        """Adds a group; its prompt is computed with the next logits."""
        self.groups.append(group)
        self._joined.append(group)
        self.rows.extend(rows)

    def reserve(self, coming: Sequence[Group]) -> None:
        """Allocates room for the running groups and the `coming` ones."""
        if self.whole:
            return
        groups = [*self.groups, *coming]
        self.cache.reserve(
            groups=len(groups),
            prompt=max(group.num_prompt for group in groups),
            rows=sum(group.live for group in groups),
            own=max(min(group.request.params.max_tokens, OWN_COLUMNS) for group in groups),
        )

    def fits(self, coming: Sequence[Group]) -> bool:
        """Whether `room` suffices for the keys of the running and the `coming` groups at their longest."""
        if self.room is None or self.whole:
            return True
        groups = [*self.groups, *coming]
        places, prompt, rows, own = self.cache.wanted(
            groups=len(groups),
            prompt=max(group.num_prompt for group in groups),
            rows=sum(group.live for group in groups),
            own=max(group.request.params.max_tokens for group in groups),
        )
        return places * prompt + rows * own <= self.room.columns

    def logits(self) -> Tensor:
        """Logits (R, V), float32, of each row's next token."""
        joined, self._joined = self._joined, []
        if self.whole:
            return self._recomputed()
        running = self.rows[: len(self.rows) - sum(group.live for group in joined)]
        if not joined:
            return self._decoded(running)
        self._places, places = None, self._places
        prefill, prompts = self._prefill(joined), Prompts(joined, self.device)
        where = {id(group): at for at, group in enumerate(joined)}
        group_R = torch.tensor([where[id(row.group)] for row in self.rows[len(running) :]], device=self.device)
        if not running:
            logits_GV = self._pass(prompts.ids_T[None], prompts.position_T[None], prefill, prompts.last_G)[0]
            return logits_GV.float().index_select(0, group_R)
        decode = self._decode_pass(running, places)
        ids_T, position_T = self._newest(running)
        new_R = len(prompts.ids_T) + torch.arange(len(running), device=self.device)
        logits_V = self._pass(
            torch.cat((prompts.ids_T, ids_T))[None],
            torch.cat((prompts.position_T, position_T))[None],
            MixedPass(prefill, decode),
            torch.cat((prompts.last_G, new_R)),
        )[0]
        rows = torch.arange(len(joined), len(joined) + len(running), device=self.device)
        return logits_V.float().index_select(0, torch.cat((rows, group_R)))

    def leave(self) -> bool:
        """Removes the ended rows; returns whether there were any."""
        if not any(row.ended for row in self.rows):
            return False
        if self.kept.size and not self.whole:
            self._keep()
        self._places = None
        for at in reversed([at for at, row in enumerate(self.rows) if row.ended]):
            last = len(self.rows) - 1
            self.rows[at].group.live -= 1
            if at != last:
                self.cache.move_row(last, at, self.rows[last].num_own)
                self.rows[at] = self.rows[last]
            self.rows.pop()
        for at in reversed([at for at, group in enumerate(self.groups) if not group.live]):
            last = len(self.groups) - 1
            if at != last:
                self.cache.move_group(last, at, self.groups[last].num_prompt)
                self.groups[at] = self.groups[last]
            self.groups.pop()
        return True

    def clear(self) -> None:
        """Removes everything and releases all memory but that of `kept`."""
        self.groups, self.rows, self._joined, self._places = [], [], [], None
        self.cache.clear()

    # --- passes -------------------------------------------------------------------------------------------------------

    def _pass(self, ids: Tensor, positions: Tensor, run: Any, keep: Tensor | int = 0) -> Tensor:
        return self.net(
            input_ids=ids, position_ids=positions, use_cache=False, logits_to_keep=keep, togi_pass=run
        ).logits

    def _decoded(self, rows: Sequence[Row]) -> Tensor:
        run = self._decode_pass(rows, self._places)
        self._places = run.places
        ids_R, position_R = self._newest(rows)
        return self._pass(ids_R[:, None], position_R[:, None], run)[:, 0].float()

    def _newest(self, rows: Sequence[Row]) -> tuple[Tensor, Tensor]:
        """The newest token of each row (R,), and its position (R,)."""
        ids = [row.ids[-1] for row in rows]
        positions = [row.group.num_prompt + row.num_own for row in rows]
        return torch.tensor(ids, device=self.device), torch.tensor(positions, device=self.device)

    def _decode_pass(self, rows: Sequence[Row], places: Places | None) -> DecodePass:
        """The pass for one more token of `rows`, whose groups come first. `places` are their slots, if known."""
        own_R = [row.num_own for row in rows]
        if max(own_R) >= self.cache.own:
            self.cache.reserve(own=min(2 * self.cache.own, max(row.group.request.params.max_tokens for row in rows)))
        where = {id(group): place for place, group in enumerate(self.groups)}
        group_R = [where[id(row.group)] for row in rows] if places is None else []
        count = max(group_R) + 1 if places is None else places.groups
        places = places or Places.of(group_R, count, self.device)
        return DecodePass(self.cache, places, [group.num_prompt for group in self.groups[:count]], own_R, self.device)

    def _prefill(self, groups: Sequence[Group]) -> PrefillPass:
        """The pass for the prompts of the last groups. Stores their kept keys."""
        places = range(len(self.groups) - len(groups), len(self.groups))
        for place, group in zip(places, groups, strict=True):
            if group.kept:
                self.cache.write(place, self.kept.read(group.kept))
        return PrefillPass(self.cache, places, [group.num_new for group in groups], [group.shared for group in groups])

    def _keep(self) -> None:
        """Keeps the keys of the ended rows."""
        where = {id(group): place for place, group in enumerate(self.groups)}
        for at, row in enumerate(self.rows):
            if row.ended:
                group = row.group
                place = where[id(group)], group.num_prompt, at, row.num_own
                ids = (*group.request.prompt_ids, *row.ids[: row.num_own])
                self.kept.add(ids, lambda start, place=place: self.cache.read(*place, start))

    def _recomputed(self) -> Tensor:
        """Logits (R, V); the library computes each row from its whole sequence."""
        logits = []
        for row in self.rows:
            ids_T = torch.tensor([*row.group.request.prompt_ids, *row.ids], device=self.device)
            logits.append(self.net(input_ids=ids_T[None], use_cache=False).logits[0, -1].float())
        return torch.stack(logits)


class Prompts:
    """The unshared parts of prompts, packed without padding: ids (T,), positions (T,), indices of last tokens (G,)."""

    def __init__(self, groups: Sequence[Group], device: torch.device) -> None:
        new = (group.request.prompt_ids[group.shared.tokens :] for group in groups)
        self.ids_T = torch.tensor(list(chain(*new)), device=device)
        positions = [torch.arange(group.shared.tokens, group.num_prompt, device=device) for group in groups]
        self.position_T = torch.cat(positions)
        self.last_G = torch.tensor([group.num_new for group in groups], device=device).cumsum(0) - 1
