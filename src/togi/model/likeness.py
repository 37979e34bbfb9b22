"""Checks whether two networks are the same: an exported model against its source."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from togi.core.errors import GraderError, InputError
from togi.core.records import Message
from togi.model.load import LoadedModel
from togi.model.policy import nearly_equal
from togi.model.reward_model import ModelScorer

ALLOWED = {"f32": 1e-3, "f16": 0.02, "bf16": 0.08, "q8_0": 0.15}
"""The allowed mean difference of tokens' log-probabilities, by the type of stored weights."""
TIES = 4
"""Two tokens tie if their log-probabilities differ by less than this multiple of ALLOWED: either may be first."""
PROBES = (
    "Why is the sky blue?\n\n2. Because",
    "日本の首都は東京です。2024年の",
    "Привет! Как дела?  «Хорошо» —",
    "def add(a, b):\n    return",
    "The numbers 12, 345 and 6.78 are",
    "こんにちは。お元気ですか？ﾊﾝｶｸ",
    "Снег идёт, и на улице",
    "Once upon a time, there was a café 😀",
)
"""Texts in the scripts of togi's users; their tokenization is compared too."""
ANSWER = "I do not know."
"""The answer to the probes that reward models score."""


@dataclass(frozen=True, slots=True)
class Likeness:
    """A comparison over `tokens` that the first network writes greedily. `mean` and `worst` are the mean and the
    largest difference of log-probabilities. `others` is the number of tokens for which the second network would choose
    another one, and `wrong` the number of these that are not ties."""

    tokens: int
    mean: float
    worst: float
    others: int
    wrong: int

    def trouble(self, kept: str) -> str | None:
        """The fault, for weights stored as `kept`; None if the networks are the same."""
        allowed = ALLOWED[kept]
        if not self.mean <= allowed:
            return f"log-probabilities differ by {self.mean:.2g} on average; rounding explains at most {allowed:g}"
        if self.wrong:
            return f"{self.wrong} of {self.tokens} tokens of greedy answers differ and are not ties"
        return None


def same_tokens(one: Any, other: Any) -> None:
    """Raises InputError if two tokenizers split a probe text differently."""
    for text in PROBES:
        ids, found = (each(text, add_special_tokens=False)["input_ids"] for each in (one, other))
        if ids != found:
            raise InputError(
                f"its tokenizer changes: {text!r} is {ids[:12]}... in the model and {found[:12]}... as written"
            )


def likeness(model: LoadedModel, other: Any, kept: str, length: int = 24) -> Likeness:
    """Compares the network of `model` with another one, on the `length` tokens that it writes after each probe."""
    gaps: list[Tensor] = []
    others = wrong = 0
    for text in PROBES:
        ids = torch.tensor([model.tokenizer(text, add_special_tokens=False)["input_ids"]])
        whole = greedy(model.net, ids, length)
        mine, found = (_scores(net, whole)[ids.shape[1] - 1 : -1] for net in (model.net, other))
        said = whole[0, ids.shape[1] :, None]
        gaps.append((mine.gather(1, said) - found.gather(1, said)).abs().flatten())
        top = found.argmax(1, keepdim=True)
        another = top != said
        behind = mine.gather(1, said) - mine.gather(1, top)
        others += int(another.sum())
        wrong += int((another & (behind > TIES * ALLOWED[kept])).sum())
    off = torch.cat(gaps)
    return Likeness(len(off), float(off.mean()), float(off.max()), others, wrong)


def greedy(net: Any, ids: Tensor, length: int) -> Tensor:
    """`ids` (1, T) followed by `length` greedily chosen tokens, including any end token."""
    cache = None
    fed = ids
    with torch.no_grad():
        for _ in range(length):
            out = net(input_ids=fed, past_key_values=cache, use_cache=True)
            cache, fed = out.past_key_values, out.logits[:, -1:].argmax(-1)
            ids = torch.cat([ids, fed], dim=1)
    return ids


def _scores(net: Any, ids: Tensor) -> Tensor:
    """Log-probabilities (T, V) of the next token after each position."""
    with torch.no_grad():
        return net(input_ids=ids, use_cache=False).logits[0].float().log_softmax(-1)


def score_likeness(model: LoadedModel, again: LoadedModel) -> list[dict[str, Any]]:
    """The scores of an answer to each probe, computed in two ways: by togi from `model` (`here`), and by the model
    library from `again`, with its own tokenizer, template and head (`library`).

    Raises InputError if they differ by more than rounding.
    """
    items = [((Message("user", text),), ANSWER) for text in PROBES]
    here = [_number(score) for score in ModelScorer(model).score(items)]
    found = [_library_score(again, text) for text in PROBES]
    if not nearly_equal(torch.tensor(found), torch.tensor(here)):
        raise InputError(f"the written model scores probes differently: {found}, but the model gives {here}")
    return [{"text": each[0], "here": each[1], "library": each[2]} for each in zip(PROBES, here, found, strict=True)]


def _number(score: float | GraderError) -> float:
    if isinstance(score, GraderError):
        raise score
    return score


def _library_score(model: LoadedModel, text: str) -> float:
    turns = [{"role": "user", "content": text}, {"role": "assistant", "content": ANSWER}]
    whole = model.tokenizer.apply_chat_template(turns, tokenize=False)
    ids = model.tokenizer(whole, add_special_tokens=False, return_tensors="pt")["input_ids"]
    with torch.no_grad():
        return float(model.net(input_ids=ids, use_cache=False).logits[0, 0])
