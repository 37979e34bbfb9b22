"""Chooses the pad token of a saved scorer: one that no conversation ends with.

The library reads each row of a batch at its last token that is not the pad token; servers read the last token. If the
pad token equals the last token of a conversation (often eos), the library reads the token before it. So the saved
scorer gets another special token of its tokenizer. If there is none, it has no pad token: the library then reads the
right token and refuses to pad.
"""

import logging
from typing import Any

from togi.core.records import Message
from togi.model.load import LoadedModel
from togi.text.render import render_text

log = logging.getLogger(__name__)

ANSWERS = ("a", "Yes.", "- one\n- two")
SPARE = ("pad", "reserved", "unused", "extra")  # words in the names of spare tokens


def keep_last_token(model: LoadedModel, tokenizer: Any) -> None:
    """Sets the pad token in a scorer's configuration and in the `tokenizer` saved with it."""
    written = [_conversation(model, answer) for answer in ANSWERS]
    last = [ids[-1] for ids in written]
    config = model.net.config.get_text_config()
    known = [i for i in _candidates(tokenizer, config.pad_token_id, written[0]) if i < config.vocab_size]
    pad = next((i for i in known if i not in last), None)
    if pad is None:
        log.warning("%s: conversations end with the only possible pad token, so the saved scorer has none", model.name)
    else:
        tokenizer.pad_token = tokenizer.convert_ids_to_tokens(pad)
    config.pad_token_id = model.net.config.pad_token_id = pad


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
