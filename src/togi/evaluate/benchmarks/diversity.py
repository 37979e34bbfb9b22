"""The columns of the benchmark `diversity`: how much a model's answers differ from one another and from other models'.

Answers are compared at the same length, so that a model whose answers never end neither gains nor loses: the k-th
answers of all subjects to a prompt are cut to the shortest of them. There are two kinds of figures, after Kirk et al.
(arXiv 2310.06452): over the answers to one prompt ("per prompt"), and over the first answers to all prompts ("across").
"""

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from togi.core.errors import InputError
from togi.core.protocols import Embedder
from togi.evaluate.alike import (
    answer_entropy,
    homogenisation,
    likeness,
    spread_over,
    spread_within,
    unit_vectors,
    vendi,
    vendi_within,
)
from togi.evaluate.distinct import Units
from togi.evaluate.diversity import bleu_words, drawn, self_bleu
from togi.evaluate.grams import Coded, distinct_across, distinct_within, self_bleu_within
from togi.evaluate.lengths import cut_to_shortest
from togi.evaluate.statistics import Floats, Jackknife
from togi.evaluate.table import Metric
from togi.text.compare import normalise

Texts = Mapping[str, Sequence[str]]
"""By subject: K answers to each prompt, in the order of the prompts."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """The result: columns, and one number per prompt and subject whose mean is the subject's figure (jackknife
    pseudo-values for a figure that is not a mean over prompts). `alike` is the similarity of two subjects' answers; the
    diagonal is the subject's own. `left_out` counts answers not compared because one subject's was empty; `draw` is the
    number of prompts that self-BLEU across prompts read."""

    columns: Sequence[Metric]
    values: Mapping[str, Mapping[str, Floats]]
    alike: Mapping[tuple[str, str], Floats]
    left_out: int
    draw: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Measure:
    """Settings of the measurement: `samples` answers to each prompt, the units of distinct-n and self-BLEU, the
    embedder, whether to `cut` answers to the same length, and the number of prompts that self-BLEU across prompts draws
    at most, with its seed. `questions` names the question of each prompt, if several prompts ask the same one."""

    samples: int
    units: Units
    embedder: Embedder
    seed: int
    cut: bool = True
    draw: int = 512
    questions: Sequence[Hashable] | None = None


def measure(texts: Texts, how: Measure) -> Found:
    """The diversity of all subjects' answers. Raises InputError if subjects have different numbers of answers."""
    counts = {name: len(given) for name, given in texts.items()}
    if len(dict.fromkeys(counts.values())) > 1 or any(count % how.samples for count in counts.values()):
        raise InputError(f"diversity: {counts} answers cannot be compared; needs {how.samples} to each prompt")
    read, kept_N = _compared(texts, cut=how.cut)
    values, vectors = {}, {}
    for name, given in read.items():
        rows = unit_vectors(how.embedder.embed(given), how.samples)
        vectors[name] = rows * kept_N.reshape(-1, how.samples, 1)
        values[name] = _columns(texts[name], given, kept_N, vectors[name], how)
    names = list(texts)
    alike = {
        (one, other): 1 - spread_within(vectors[one]) if one == other else likeness(vectors[one], vectors[other])
        for one in names
        for other in names
    }
    prompts = len(_first(kept_N, how.samples)[0])
    return Found(
        columns=_in_range(how, prompts), values=values, alike=alike, left_out=int((~kept_N).sum()),
        draw=min(how.draw, prompts),
    )  # fmt: skip


def _in_range(how: Measure, prompts: int) -> list[Metric]:
    """The columns, with the greatest value of those that the numbers of answers and prompts limit."""
    most = {OWN_VENDI: float(how.samples), VENDI: float(max(prompts, 1)), ENTROPY: float(np.log2(how.samples))}
    shown = [column for column in COLUMNS if how.questions is not None or column is not WORDINGS]
    return [replace(column, most=most[column]) if column in most else column for column in shown]


def _compared(texts: Texts, *, cut: bool) -> tuple[dict[str, list[str]], np.ndarray]:
    """The compared text of each answer, and which answers are compared: those for which no subject's is empty."""
    pairs = zip(*texts.values(), strict=True)
    together = [cut_to_shortest(each) if cut else [text.strip() for text in each] for each in pairs]
    kept_N = np.array([all(each) for each in together], dtype=bool)
    return {name: [each[place] for each in together] for place, name in enumerate(texts)}, kept_N


# --- the columns ------------------------------------------------------------------------------------------------------

DISTINCT = {n: Metric(name=f"distinct-{n}", higher_is_better=True, note="across prompts", most=1.0) for n in (1, 2, 3)}
BLEU = Metric(name="self-BLEU", higher_is_better=False, note="across prompts", most=100.0)
VENDI = Metric(
    name="Vendi score", higher_is_better=True, least=1.0, note="across prompts: effective number of different answers"
)
ALIKE = Metric(
    name="homogenisation", higher_is_better=False, least=-1.0, most=1.0,
    note="mean cosine similarity of answers to different prompts",
)  # fmt: skip
OWN_DISTINCT = Metric(name="distinct-2 per prompt", higher_is_better=True, most=1.0)
OWN_BLEU = Metric(name="self-BLEU per prompt", higher_is_better=False, most=100.0)
OWN_SPREAD = Metric(
    name="spread per prompt", higher_is_better=True, most=2.0,
    note="mean cosine distance between two answers to one prompt",
)  # fmt: skip
OWN_VENDI = Metric(
    name="Vendi score per prompt", higher_is_better=True, least=1.0, note="effective number of different answers"
)
ENTROPY = Metric(
    name="answer entropy (bits)", higher_is_better=True, least=0.0, note="of the different answers to one prompt, uncut"
)
WORDINGS = Metric(
    name="spread over wordings", note="mean cosine distance between answers to two wordings of one question", most=2.0
)
COLUMNS = (
    *(OWN_DISTINCT, OWN_BLEU, OWN_SPREAD, OWN_VENDI, ENTROPY, WORDINGS),
    *(*DISTINCT.values(), BLEU, VENDI, ALIKE),
)


def _columns(
    whole: Sequence[str], read: Sequence[str], kept_N: np.ndarray, vectors_PKD: Floats, how: Measure
) -> dict[str, Floats]:
    found = {
        **_per_prompt(read, kept_N, vectors_PKD, how),
        ENTROPY.name: answer_entropy(whole, how.samples),
        **_across(read, kept_N, vectors_PKD, how),
    }
    if how.questions is not None:
        found[WORDINGS.name] = spread_over(vectors_PKD, how.questions)
    return found


def _per_prompt(read: Sequence[str], kept_N: np.ndarray, vectors_PKD: Floats, how: Measure) -> dict[str, Floats]:
    kept: list[int] = np.flatnonzero(kept_N).tolist()
    prompts, owners = len(read) // how.samples, [at // how.samples for at in kept]

    def coded(split: Callable[[str], list[str]]) -> Coded:
        return Coded.of([split(read[at]) for at in kept], owners, prompts)

    return {
        OWN_DISTINCT.name: distinct_within(coded(_split(how.units)), 2),
        OWN_BLEU.name: self_bleu_within(coded(bleu_words(how.units))),
        OWN_SPREAD.name: spread_within(vectors_PKD),
        OWN_VENDI.name: vendi_within(vectors_PKD),
    }


def _across(read: Sequence[str], kept_N: np.ndarray, vectors_PKD: Floats, how: Measure) -> dict[str, Floats]:
    prompts = len(read) // how.samples
    place_Q, first_Q = _first(kept_N, how.samples)
    first: list[int] = first_Q.tolist()
    texts = [read[at] for at in first]
    coded = Coded.of([_split(how.units)(text) for text in texts], range(len(texts)), len(texts))
    found = {DISTINCT[n].name: _spread_out(distinct_across(coded, n), place_Q, prompts) for n in DISTINCT}
    chosen = drawn(len(texts), how.draw, how.seed)
    bleu = self_bleu([texts[i] for i in chosen], how.units) if len(chosen) > 2 else None
    found[BLEU.name] = _spread_out(bleu, place_Q[chosen], prompts)
    found[VENDI.name] = np.full(prompts, np.nan)
    if len(texts) > 1:
        score, added_Q = vendi(vectors_PKD.reshape(-1, vectors_PKD.shape[2])[first_Q])
        found[VENDI.name][place_Q] = score + added_Q
    found[ALIKE.name] = _spread_out(homogenisation(vectors_PKD[place_Q]), place_Q, prompts)
    return found


def _first(kept_N: np.ndarray, samples: int) -> tuple[np.ndarray, np.ndarray]:
    """The prompts with an answer to compare, and the index of the first such answer of each."""
    kept_PK = kept_N.reshape(-1, samples)
    place_Q = np.flatnonzero(kept_PK.any(axis=1))
    return place_Q, place_Q * samples + kept_PK[place_Q].argmax(axis=1)


def _spread_out(found: Jackknife | None, place_Q: np.ndarray, prompts: int) -> Floats:
    """A statistic of all prompts as one number per prompt; NaN for prompts that it did not read."""
    values_P = np.full(prompts, np.nan)
    if found is not None:
        values_P[place_Q] = found.pseudo_P
    return values_P


def _split(units: Units) -> Callable[[str], list[str]]:
    """Splits into words without case and punctuation, or into characters, also without spaces."""
    if units == "words":
        return lambda text: normalise(text).split()
    return lambda text: list(normalise(text).replace(" ", ""))
