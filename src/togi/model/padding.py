"""The token at which a scorer is read, and the pad token of a saved scorer.

The library reads each row of a batch at its last token that is not the pad token; many servers read the last token. If
the pad token equals the last token of a conversation (often eos), the library reads the token before it. A scorer from
outside is read in the same way, because it was trained in this way. A scorer trained by togi is read at the last token,
so its folder gets another special token of its tokenizer as pad token, one that no conversation ends with. If there is
none, it has no pad token: the library then reads the right token and refuses to pad.
"""

import logging
from collections.abc import Sequence
from typing import Any

from togi.core.records import Message
from togi.model.load import LoadedModel
from togi.text.render import render_text

log = logging.getLogger(__name__)

ANSWERS = ("a", "Yes.", "- one\n- two")
SPARE = ("pad", "reserved", "unused", "extra")  # words in the names of spare tokens


def read_length(ids: Sequence[int], skipped: int | None) -> int:
    """The number of tokens up to the one at which the library reads a text's score: the last that is not `skipped`, the
    pad token; the first if all are."""
    return next((place + 1 for place in reversed(range(len(ids))) if ids[place] != skipped), 1)


def tell_skipped(model: LoadedModel) -> None:
    """Logs if a loaded scorer is not read at the last token of a conversation."""
    if model.skipped is not None and model.skipped in [ids[-1] for ids in _written(model)]:
        pad = model.tokenizer.convert_ids_to_tokens(model.skipped)
        log.warning(
            "%s: a conversation ends with %r, which is also the pad token in its config.json, so its score is read at "
            "the token before, as transformers does. Servers that read the last token (vLLM) give other scores",
            model.name,
            pad,
        )


def keep_last_token(model: LoadedModel, tokenizer: Any) -> None:
    """Sets the pad token in a scorer's configuration and in the `tokenizer` saved with it. One that is read before its
    pad token keeps it."""
    written = _written(model)
    last = [ids[-1] for ids in written]
    if model.skipped in last:
        return
    config = model.net.config.get_text_config()
    known = [i for i in _candidates(tokenizer, config.pad_token_id, written[0]) if i < config.vocab_size]
    pad = next((i for i in known if i not in last), None)
    if pad is None:
        log.warning("%s: conversations end with the only possible pad token, so the saved scorer has none", model.name)
    else:
        tokenizer.pad_token = tokenizer.convert_ids_to_tokens(pad)
    config.pad_token_id = model.net.config.pad_token_id = pad


def _written(model: LoadedModel) -> list[list[int]]:
    """Short conversations as ids."""
    return [_conversation(model, answer) for answer in ANSWERS]


def _conversation(model: LoadedModel, answer: str) -> list[int]:
    return render_text(model.template, model.tokenizer, (Message("user", "Hi"), Message("assistant", answer)))


def _candidates(tokenizer: Any, configured: int | None, written: list[int]) -> list[int]:
    """Candidate ids for the pad token, best first: the current one, then special tokens by name, and last those that
    the template writes. Only special tokens qualify: another token would be removed from texts if it became special."""
    special = {i: str(token.content).lower() for i, token in tokenizer.added_tokens_decoder.items() if token.special}
    spare = {i: next((n for n, word in enumerate(SPARE) if word in name), len(SPARE)) for i, name in special.items()}
    order = sorted(special, key=lambda i: (i in written, spare[i], i))
    at_hand = [i for i in (tokenizer.pad_token_id, configured) if i is not None and i in special]
    return [*at_hand, *order]
