"""Attention over forests, plugged into transformers' attention interface under the name `togi_tree`.

Shapes: H query heads, K key heads, R = H / K, T rows, D width of a head. Rows are those of a `Forest`.

The forest is passed as the keyword argument `togi_forest` of the forward pass. Without it `togi_tree` is the library's
own SDPA, so the same model handles both. On CPU a tree is computed in dense blocks: each trunk and branch attends to
itself, then all branches attend to their trunk. The parts are combined by their log-sum-exp. No mask over a whole tree
is ever built.
"""

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention.flex_attention import create_block_mask, flex_attention
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, sdpa_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from togi import kernels
from togi.core.errors import InputError
from togi.kernels import Options
from togi.model.blocks import blocks_of
from togi.model.forest import Forest

TREE_ATTENTION = "togi_tree"


def _softmax_attention(query: Tensor, key: Tensor, value: Tensor, unseen: Tensor, options: Options) -> Tensor:
    """Explicit attention: softmax(cap(q k scale)) v, with a soft cap if the model has one."""
    scores = query @ key.transpose(-1, -2) * options.scale
    if options.softcap is not None:
        scores = options.softcap * torch.tanh(scores / options.softcap)
    scores = scores.masked_fill(unseen, -torch.inf)
    return torch.softmax(scores, dim=-1, dtype=torch.promote_types(scores.dtype, torch.float32)).to(value.dtype) @ value


def attend_explicitly(
    forest: Forest, query_KRTD: Tensor, key_KTD: Tensor, value_KTD: Tensor, options: Options
) -> Tensor:
    """Attention of a forest, one trunk or branch at a time, with explicit scores: for soft caps, for values of another
    width and for other devices."""
    outs = []
    for tree in forest.layout.trees:
        trunk = range(tree.start, tree.trunk_stop)
        for q0, q1, keys in (
            (tree.start, tree.trunk_stop, [*trunk]),
            *((start, stop, [*trunk, *range(start, stop)]) for start, stop in tree.branches),
        ):
            distance_QK = forest.position_T[q0:q1, None] - forest.position_T[keys]
            unseen_QK = distance_QK < 0
            if options.window is not None:
                unseen_QK |= distance_QK >= options.window
            query, key, value = query_KRTD[:, :, q0:q1], key_KTD[:, None, keys], value_KTD[:, None, keys]
            outs.append(_softmax_attention(query, key, value, unseen_QK, options))
    return torch.cat(outs, dim=2)


_compiled_flex: list[Callable[..., Any]] = []  # compiled on first use, so that an import starts no compiler


def block_mask(forest: Forest, window: int | None) -> Any:
    """FlexAttention's block mask for a forest, built once per forest and window. Padding rows see only themselves."""
    if window not in forest.cache:
        tree_T, branch_T, position_T = forest.tree_T, forest.branch_T, forest.position_T

        def sees(batch: Any, head: Any, q: Tensor, k: Tensor) -> Tensor:
            distance = position_T[q] - position_T[k]
            on_path = (branch_T[k] == 0) | (branch_T[k] == branch_T[q])
            seen = (tree_T[q] == tree_T[k]) & on_path & (distance >= 0)
            return seen if window is None else seen & (distance < window)

        size = len(tree_T)
        forest.cache[window] = create_block_mask(sees, None, None, size, size, device=str(tree_T.device))
    return forest.cache[window]


@lru_cache(maxsize=8)
def _capped(softcap: float) -> Callable[..., Tensor]:
    """A score function for FlexAttention; the same object for the same cap, so that it is compiled only once."""

    def capped(score: Tensor, batch: Any, head: Any, q: Any, k: Any) -> Tensor:
        return softcap * torch.tanh(score / softcap)

    return capped


def attend_flexibly(forest: Forest, query_HTD: Tensor, key_KTD: Tensor, value_KTD: Tensor, options: Options) -> Tensor:
    """One fused kernel over the packed row, on CUDA."""
    if not _compiled_flex:
        _compiled_flex.append(torch.compile(flex_attention, dynamic=False) if query_HTD.is_cuda else flex_attention)
    return _compiled_flex[0](
        query_HTD[None],
        key_KTD[None],
        value_KTD[None],
        score_mod=None if options.softcap is None else _capped(options.softcap),
        block_mask=block_mask(forest, options.window),
        scale=options.scale,
        enable_gqa=query_HTD.shape[0] != key_KTD.shape[0],
    )[0]


def attend(forest: Forest, query_HTD: Tensor, key_KTD: Tensor, value_KTD: Tensor, options: Options) -> Tensor:
    """Attention of a forest, (H, T, D of the values)."""
    if query_HTD.is_cuda:
        return attend_flexibly(forest, query_HTD, key_KTD, value_KTD, options)
    same_width = value_KTD.shape[-1] == key_KTD.shape[-1]
    if options.softcap is None and same_width and query_HTD.device.type == "cpu":
        return kernels.attend(query_HTD, key_KTD, value_KTD, blocks_of(forest.layout, options.window), options)
    query_KRTD = query_HTD.unflatten(0, (key_KTD.shape[0], -1))
    return attend_explicitly(forest, query_KRTD, key_KTD, value_KTD, options).flatten(0, 1)


def _plain(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **kwargs: Any
) -> tuple[Tensor, None]:
    """The library's SDPA, or explicit attention for a soft cap, which SDPA would silently ignore."""
    if kwargs.get("softcap") is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)
    num_shared, length = query.shape[1] // key.shape[1], query.shape[2]
    if attention_mask is None:
        unseen = torch.ones(length, key.shape[2], dtype=torch.bool, device=query.device).triu(1)
    else:
        unseen = ~attention_mask[..., : key.shape[2]]
    key, value = key.repeat_interleave(num_shared, 1), value.repeat_interleave(num_shared, 1)
    out = _softmax_attention(query, key, value, unseen, Options.asked(query, kwargs))
    return out.transpose(1, 2).contiguous(), None


def tree_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """The function that transformers calls in each layer; query is (1, H, T, D), the result (1, T, H, D).

    Raises InputError if a layer needs something that is not supported here.
    """
    for name in ("s_aux", "position_bias"):
        if kwargs.get(name) is not None:
            raise InputError(
                f"{type(module).__name__} has {name} (attention sinks or position bias), which is not supported; "
                "use another model"
            )
    forest: Forest | None = kwargs.pop("togi_forest", None)
    if forest is None:
        return _plain(module, query, key, value, attention_mask, **kwargs)
    if kwargs.get("dropout"):
        raise InputError("attention dropout is on, but the rows of a trunk are shared by all branches; call net.eval()")
    dtype = value.dtype  # under autocast rotated queries and keys may be wider than values
    out_HTD = attend(forest, query[0].to(dtype), key[0].to(dtype), value[0], Options.asked(query, kwargs))
    return out_HTD.transpose(0, 1).contiguous()[None], None


ALL_ATTENTION_FUNCTIONS.register(TREE_ATTENTION, tree_attention)
ALL_MASK_ATTENTION_FUNCTIONS.register(TREE_ATTENTION, sdpa_mask)


def forest_arguments(forest: Forest) -> dict[str, Any]:
    """Keyword arguments of the model body's forward pass for a forest. The library passes a 4-dimensional mask through
    unchanged, so the empty mask keeps it from building a T x T one."""
    return {
        "input_ids": forest.ids_T[None],
        "position_ids": forest.position_T[None],
        "attention_mask": torch.empty(1, 1, 0, 0, dtype=torch.bool, device=forest.ids_T.device),
        "use_cache": False,
        "togi_forest": forest,
    }


def refuse_unsupported(config: Any) -> None:
    """Raises InputError for bidirectional attention, in which a token depends on later ones."""
    text = config.get_text_config()
    if text.to_dict().get("use_bidirectional_attention"):
        raise InputError(f"{text.model_type}: its tokens attend to later ones (use_bidirectional_attention)")


def shares_prompts(config: Any) -> bool:
    """Whether tree attention supports the attention of a configuration. Only the library computes distance biases
    (ALiBi) and chunked attention, one sequence at a time. (Rotary schemes that depend on the longest position change
    only beyond the context that `context_of` allows.)"""
    known = config.get_text_config().to_dict()
    return not any(known.get(name) for name in ("attention_chunk_size", "alibi"))
