"""Log-probabilities of a given text, which a server returns for `echo`.

Shapes: T tokens of the text, C of one chunk, V vocabulary.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from togi.core.protocols import TextLogprobs
from togi.model.head import find_head
from togi.model.policy import hidden_alone, unwrapped
from togi.model.sizes import chunk_rows


def text_logprobs(net: nn.Module, ids: Sequence[int], top: int) -> TextLogprobs:
    """The model's log-probabilities of a text with the tokens `ids`, and the `top` most likely tokens at every
    position. Keeps the logits of only a bounded number of tokens in memory.

    Raises InputError if `net` is not a model of transformers.
    """
    model = unwrapped(net)
    head, found = find_head(model), TextLogprobs([], [])
    ids_T = torch.tensor(list(ids), device=model.device)
    with torch.inference_mode():
        hidden_TH = hidden_alone(model, ids_T)[:-1]
        size = chunk_rows(8 * model.config.get_text_config().vocab_size)
        for start in range(0, len(hidden_TH), size):
            # in float32 the sum over the vocabulary is off by 2e-5 at 49,152 tokens, always to the same side
            logp_CV = head(hidden_TH[start : start + size]).double().log_softmax(-1)
            _add(found, logp_CV, ids_T[start + 1 : start + 1 + len(logp_CV)], top)
    return found


def _add(found: TextLogprobs, logp_CV: Tensor, target_C: Tensor, top: int) -> None:
    found.logprobs.extend(logp_CV.gather(1, target_C[:, None])[:, 0].tolist())
    value_CK, token_CK = logp_CV.topk(min(top, logp_CV.shape[1]))
    found.top.extend(
        tuple(zip(tokens, values, strict=True))
        for tokens, values in zip(token_CK.tolist(), value_CK.tolist(), strict=True)
    )
