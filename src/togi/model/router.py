"""The load-balancing loss of mixture-of-experts routers (Switch Transformers, arXiv 2101.03961, equations 4 to 6).

Shapes: T rows of a forest, E experts. A trunk row counts once per branch of its tree, as if sequences were computed one
at a time. Means are over the rows of one micro-batch, so this is the only loss that depends on how a step is split.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel

from togi.core.errors import InputError
from togi.model.forest import Forest


def experts_per_token(model: PreTrainedModel) -> int:
    """The number of experts per token. Raises InputError for a model without experts."""
    known = model.config.get_text_config().to_dict()
    count = known.get("num_experts_per_tok")
    if not count:
        raise InputError(f"{known['model_type']} has no experts, so it has no router loss: set router_loss to 0")
    return int(count)


def own_weight(model: PreTrainedModel) -> float:
    """The weight of the router loss in a model's configuration; 0 without experts."""
    known = model.config.get_text_config().to_dict()
    return float(known.get("router_aux_loss_coef") or 0.0) if known.get("num_experts_per_tok") else 0.0


def row_weights(forest: Forest) -> Tensor:
    """(T,) float32: the number of sequences that each row belongs to; 0 for padding rows."""
    weight_T = torch.zeros(len(forest.ids_T), dtype=torch.float32)
    for tree in forest.layout.trees:
        weight_T[tree.start : tree.trunk_stop] = max(len(tree.branches), 1)
        for start, stop in tree.branches:
            weight_T[start:stop] = 1.0
    return weight_T.to(forest.ids_T.device)


def router_loss(logits_TE: Sequence[Tensor], weight_T: Tensor, top_k: int) -> Tensor:
    """E x the sum over experts of (share of choices) x (mean probability), over all layers together.

    It equals `top_k` if the load is balanced. Only the probabilities have a gradient."""
    chosen_E, probability_E = 0.0, 0.0
    for layer_TE in logits_TE:
        share_TE = layer_TE.softmax(-1, dtype=torch.promote_types(layer_TE.dtype, torch.float32))
        rows_T = weight_T.to(share_TE.dtype)
        picked_TE = torch.zeros_like(share_TE).scatter_(1, share_TE.topk(top_k, -1).indices, 1.0)
        chosen_E = chosen_E + rows_T @ picked_TE
        probability_E = probability_E + rows_T @ share_TE
    rows = weight_T.sum() * len(logits_TE)
    experts = logits_TE[0].shape[-1]
    return experts * (chosen_E / rows * (probability_E / rows)).sum()  # type: ignore[union-attr]
