"""Whether two networks are one: what was written somewhere else against what it was written from."""

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
"""How far log-probabilities of tokens may be off in the mean, by how weights are kept."""
TIES = 4
"""Two tokens whose log-probabilities differ by less than so many times that are a tie: either may come first."""
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
"""Texts in the scripts that togi's users write; how tokenizers cut them is compared too."""
ANSWER = "I do not know."
"""What reward models score as an answer to the probes."""


@dataclass(frozen=True, slots=True)
class Likeness:
    """Over `tokens` that the first network writes greedily: the mean and the largest difference of log-probabilities,
    how often the second one would have written another token (`others`), and how often where it was no tie."""

    tokens: int
    mean: float
    worst: float
    others: int
    wrong: int

    def trouble(self, kept: str) -> str | None:
        """What is wrong for weights that are `kept` so; None where the two are one."""
        allowed = ALLOWED[kept]
        if not self.mean <= allowed:
            return f"log-probabilities are off by {self.mean:.2g} in the mean, where {allowed:g} is rounding"
        if self.wrong:
            return f"{self.wrong} of {self.tokens} tokens of greedy answers are others, and no ties"
        return None


def same_tokens(one: Any, other: Any) -> None:
    """Raises InputError where two tokenizers cut a probe text otherwise."""
    for text in PROBES:
        ids, found = (each(text, add_special_tokens=False)["input_ids"] for each in (one, other))
        if ids != found:
            raise InputError(
                f"its tokenizer does not survive: {text!r} is {ids[:12]}... here and {found[:12]}... there"
            )


def likeness(model: LoadedModel, other: Any, kept: str, length: int = 24) -> Likeness:
    """Compares the network of `model` with another one on what it writes after each probe, `length` tokens."""
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
    """`ids` (1, T) and the `length` likeliest tokens after them, one by one, the end included if it comes."""
    cache = None
    fed = ids
    with torch.no_grad():
        for _ in range(length):
            out = net(input_ids=fed, past_key_values=cache, use_cache=True)
            cache, fed = out.past_key_values, out.logits[:, -1:].argmax(-1)
            ids = torch.cat([ids, fed], dim=1)
    return ids


def _scores(net: Any, ids: Tensor) -> Tensor:
    """Log-probabilities (T, V) of what follows each token."""
    with torch.no_grad():
        return net(input_ids=ids, use_cache=False).logits[0].float().log_softmax(-1)


def score_likeness(model: LoadedModel, again: LoadedModel) -> list[dict[str, Any]]:
    """What two readings of a reward model give for an answer to each probe: togi's of `model` (`here`), and the model
    library's of `again`, with its own tokenizer, template and head (`library`).

    Raises InputError where they are not the same up to rounding.
    """
    items = [((Message("user", text),), ANSWER) for text in PROBES]
    here = [_number(score) for score in ModelScorer(model).score(items)]
    found = [_library_score(again, text) for text in PROBES]
    if not nearly_equal(torch.tensor(found), torch.tensor(here)):
        raise InputError(f"what was written scores probes otherwise: {found} where the model gives {here}")
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
