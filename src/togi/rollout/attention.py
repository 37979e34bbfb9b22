"""Attention for sampling, plugged into the model library's own attention interface under the name `togi_decode`.

The keyword `togi_pass` takes the state of a forward pass through the model. A `PrefillPass` has several prompts in one
row, each of which attends to itself; a `DecodePass` has one new token in each row; a `MixedPass` has both in one row.
Nothing is global.

Shapes: T packed tokens, R rows, G groups, N row slots in a group, H query heads, K key heads, M = H / K, D head size,
P prompt columns, S own columns, C = P + S.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AttentionInterface

from togi.core.errors import InputError
from togi.kernels import New, Options, Rows, Stored, decode
from togi.rollout.cache import KeyCache, round_up
from togi.rollout.requests import Shared

NAME = "togi_decode"


@dataclass(slots=True)
class PrefillPass:
    """Prompts packed in one row of T tokens: `lengths` in order, written to the cache slots `groups`.

    `shared` names, for each prompt, the group that already has the keys of its first tokens, and the number of these
    tokens; they are not in the row.
    """

    cache: KeyCache
    groups: Sequence[int]
    lengths: Sequence[int]
    shared: Sequence[Shared]

    def attend(self, layer: int, heads: "Heads", options: Options) -> Tensor:
        """(1, T, H, D): each prompt attends causally to itself; its keys are stored."""
        stored = self.cache.layer(layer, heads.key, heads.value)
        outputs, start = [], 0
        for group, length, shared in zip(self.groups, self.lengths, self.shared, strict=True):
            part = slice(start, start + length)
            query, key, value = heads.query[:, :, part], heads.key[:, :, part], heads.value[:, :, part]
            if shared.tokens:
                old_key, old_value = stored.read_prompt(shared.group, shared.tokens)
                key = torch.cat((old_key[None].to(key.dtype), key), 2)
                value = torch.cat((old_value[None].to(value.dtype), value), 2)
            stored.write_prompt(group, key[0], value[0])
            outputs.append(_causal(query, key, value, options).transpose(1, 2))
            start += length
        return torch.cat(outputs, 1)


@dataclass(slots=True)
class Places:
    """The assignment of rows to slots of groups. It changes only when rows join or leave.

    `group_R` is the group of each row. `row_GN` is the row in each slot (0 if empty), `place_R` the slot of each row;
    both are None if the rows already have that order, so that nothing has to be gathered. `order_R` lists the rows,
    sorted by group. `group_of_GN` is the group of each slot.
    """

    groups: int
    width: int
    group_R: Tensor
    order_R: Tensor
    row_GN: Tensor | None
    place_R: Tensor | None
    group_of_GN: Tensor

    @classmethod
    def of(cls, group_R: Sequence[int], groups: int, device: torch.device) -> "Places":
        """The slots of rows whose groups are `group_R`."""
        members: list[list[int]] = [[] for _ in range(groups)]
        for row, group in enumerate(group_R):
            members[group].append(row)
        width = max(len(rows) for rows in members)
        row_GN = [rows[i] if i < len(rows) else 0 for rows in members for i in range(width)]
        as_index = lambda values: torch.tensor(values, device=device)  # noqa: E731
        group_of_GN = torch.arange(groups, device=device).repeat_interleave(width)
        order = [row for rows in members for row in rows]
        first = (groups, width, as_index(list(group_R)), as_index(order))
        if row_GN == list(range(len(group_R))):
            return cls(*first, None, None, group_of_GN)
        place_R = [0] * len(group_R)
        for group, rows in enumerate(members):
            for i, row in enumerate(rows):
                place_R[row] = group * width + i
        return cls(*first, as_index(row_GN), as_index(place_R), group_of_GN)

    def to_places(self, rows: Tensor) -> Tensor:
        """(R, ...) to (G * N, ...)."""
        return rows if self.row_GN is None else rows.index_select(0, self.row_GN)

    def to_rows(self, places: Tensor) -> Tensor:
        """(G * N, ...) to (R, ...)."""
        return places if self.place_R is None else places.index_select(0, self.place_R)


@dataclass(slots=True)
class DecodePass:
    """One new token in each of R rows. `own_R` counts each row's earlier answer tokens, `prompt_G` the prompt tokens of
    each group."""

    cache: KeyCache
    places: Places
    prompt_G: Sequence[int]
    own_R: Sequence[int]
    device: torch.device
    rows: int = field(init=False)
    prompt: int = field(init=False)
    own: int = field(init=False)
    same: bool = field(init=False)
    _masks: dict[int | None, Tensor | None] = field(init=False, default_factory=dict)
    _index: tuple[Tensor, Tensor] | None = field(init=False, default=None)
    _lengths: tuple[Tensor, Tensor] | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        self.rows = len(self.own_R)
        self.prompt = max(self.prompt_G)
        self.own = round_up(max(self.own_R) + 1)
        self.same = min(self.own_R) == max(self.own_R)
        if not self.same:
            self._index = (torch.arange(self.rows, device=self.device), torch.tensor(self.own_R, device=self.device))

    def attend(self, layer: int, heads: "Heads", options: Options) -> Tensor:
        """(R, 1, H, D): each row attends to its group's single copy of the prompt and to its own tokens, in one
        softmax."""
        stored = self.cache.layer(layer, heads.key, heads.value)
        if stored.blocked:
            new = New(heads.query.flatten(1), heads.key.flatten(1), heads.value.flatten(1))
            whole = self.attend_natively(layer, new, options).unflatten(2, (heads.query.shape[1], -1))
            return whole.to(heads.query.dtype)
        self._write(stored.own_key, heads.key)
        self._write(stored.own_value, heads.value)
        places, groups, width = self.places, self.places.groups, self.places.width
        key_heads, size = heads.key.shape[1], heads.query.shape[3]
        many = heads.query.shape[1] // key_heads
        query = (heads.query * options.scale).to(self.cache.dtype).view(self.rows, key_heads, many, size)
        own_RKMS = query @ stored.own_key[: self.rows, :, : self.own].transpose(2, 3)
        query_GKnD = places.to_places(query).view(groups, width, key_heads, many, size).transpose(1, 2)
        prompt_GKnP = query_GKnD.reshape(groups, key_heads, width * many, size) @ (
            stored.prompt_key[:groups, :, : self.prompt].transpose(2, 3)
        )
        own_GKnS = places.to_places(own_RKMS).view(groups, width, key_heads, many, self.own).transpose(1, 2)
        scores = torch.cat((prompt_GKnP.view(groups, key_heads, width, many, self.prompt), own_GKnS), -1)
        share = self._softmax(scores, options)
        prompt_share = share[..., : self.prompt].flatten(2, 3)
        own_share = places.to_rows(share[..., self.prompt :].transpose(1, 2).flatten(0, 1))
        from_prompt = prompt_share @ stored.prompt_value[:groups, :, : self.prompt]
        from_prompt = from_prompt.view(groups, key_heads, width, many, -1).transpose(1, 2).flatten(0, 1)
        from_own = own_share @ stored.own_value[: self.rows, :, : self.own]
        whole = (places.to_rows(from_prompt) + from_own).reshape(self.rows, 1, key_heads * many, -1)
        return whole.to(heads.query.dtype)

    def attend_natively(self, layer: int, new: New, options: Options) -> Tensor:
        """(R, 1, H D): like `attend`, in compiled code, which also writes the new keys and values. The layer must be
        `blocked`."""
        stored = self.cache.layers[layer]
        if self._lengths is None:
            self._lengths = torch.tensor(self.prompt_G)[self.places.group_R], torch.tensor(self.own_R)
        keys = Stored(stored.prompt_key, stored.prompt_value, stored.own_key, stored.own_value)
        return decode(new, keys, Rows(self.places.order_R, self.places.group_R, *self._lengths), options)

    def _write(self, buffer: Tensor, new: Tensor) -> None:
        if self._index is None:
            buffer[: self.rows, :, self.own_R[0]] = new[:, :, 0]
        else:
            row, column = self._index
            buffer[row, :, column] = new[:, :, 0].to(buffer.dtype)

    def _softmax(self, scores: Tensor, options: Options) -> Tensor:
        if options.softcap is not None:
            scores = torch.tanh(scores / options.softcap) * options.softcap
        if options.window not in self._masks:
            self._masks[options.window] = self._mask(options.window, scores)
        mask = self._masks[options.window]
        if mask is not None:
            scores += mask
        elif self.own > self.own_R[0] + 1:
            scores[..., self.prompt + self.own_R[0] + 1 :] = -torch.inf
        return torch.softmax(scores, -1)

    def _mask(self, window: int | None, scores: Tensor) -> Tensor | None:
        """(G, 1, N, 1, C), 0 for visible keys and -inf for others; None if only unused columns are hidden."""
        longest = max(self.prompt_G) + max(self.own_R) + 1
        if window is not None and window >= longest:
            window = None
        if window is None and self.same and min(self.prompt_G) == self.prompt:
            return None
        places = self.places
        group_of = places.group_of_GN
        prompt = torch.tensor(self.prompt_G, device=self.device)[group_of, None]
        own = places.to_places(torch.tensor(self.own_R, device=self.device))[:, None]
        prompt_column = torch.arange(self.prompt, device=self.device)
        own_column = torch.arange(self.own, device=self.device)
        seen_prompt, seen_own = prompt_column < prompt, own_column <= own
        if window is not None:
            seen_prompt = seen_prompt & (prompt + own - prompt_column < window)
            seen_own = seen_own & (own - own_column < window)
        hidden = ~torch.cat((seen_prompt, seen_own), -1)
        mask = torch.zeros(hidden.shape, dtype=scores.dtype, device=self.device).masked_fill_(hidden, -torch.inf)
        return mask.view(places.groups, 1, places.width, 1, -1)


@dataclass(slots=True)
class MixedPass:
    """Prompts and new tokens in one row: first the T tokens of `prefill`, then one token of each row of `decode`."""

    prefill: PrefillPass
    decode: DecodePass

    def attend(self, layer: int, heads: "Heads", options: Options) -> Tensor:
        """(1, T + R, H, D): each part attends as in its own pass."""
        tokens = sum(self.prefill.lengths)
        parts = (heads.query, heads.key, heads.value)
        prompts = self.prefill.attend(layer, Heads(*(x[:, :, :tokens] for x in parts)), options)
        new = Heads(*(x[0, :, tokens:].transpose(0, 1).unsqueeze(2) for x in parts))
        return torch.cat((prompts, self.decode.attend(layer, new, options).transpose(0, 1)), 1)


@dataclass(slots=True)
class Heads:
    """Queries (B, H, T, D), keys and values (B, K, T, D) of the tokens in this pass."""

    query: Tensor
    key: Tensor
    value: Tensor


def _causal(query: Tensor, key: Tensor, value: Tensor, options: Options) -> Tensor:
    """Plain causal attention (1, H, T, D) of a prompt's last T tokens to the whole prompt."""
    new, length, window = query.shape[2], key.shape[2], options.window
    grouped = query.shape[1] != key.shape[1]
    if new == length and options.softcap is None and (window is None or window >= length):
        return F.scaled_dot_product_attention(
            query, key, value, is_causal=True, scale=options.scale, enable_gqa=grouped
        )
    before = length - new
    seen = torch.ones(new, length, dtype=torch.bool, device=query.device).tril(before)
    if window is not None:
        seen = seen.triu(before + 1 - window)
    if options.softcap is None:
        return F.scaled_dot_product_attention(
            query, key, value, attn_mask=seen, scale=options.scale, enable_gqa=grouped
        )
    many = query.shape[1] // key.shape[1]
    query = query.unflatten(1, (-1, many))
    scores = torch.tanh(query @ key.unsqueeze(2).transpose(-1, -2) * (options.scale / options.softcap))
    share = torch.softmax((scores * options.softcap).masked_fill(~seen, -torch.inf), -1)
    return (share @ value.unsqueeze(2)).flatten(1, 2)


def attend(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **settings: Any
) -> tuple[Tensor, None]:
    """The attention function that transformers calls in every layer; `settings` contains `togi_pass`.

    Raises InputError for attention with sinks or a position bias, which it does not support.
    """
    for name in ("s_aux", "position_bias"):
        if settings.get(name) is not None:
            raise InputError(f"{type(module).__name__}: the embedded sampler does not support attention with `{name}`")
    options = Options.asked(query, settings)
    return settings["togi_pass"].attend(module.layer_idx, Heads(query, key, value), options), None


AttentionInterface.register(NAME, attend)
