import numpy as np
import pytest
from stored import load

from togi.core.records import Document
from togi.data.duplicates import _bands, copies_by_cosine, copies_by_ngrams, remove_copies
from togi.data.features import HashedNgrams
from togi.text.compare import jaccard, shingles

VECTOR = load("dedup_rouge.json")


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize(("threshold", "kept"), VECTOR["kept"].items())
def test_greedy_cosine_as_stored(threshold: str, kept: list[int], dtype: type) -> None:
    copies = copies_by_cosine(np.array(VECTOR["embeddings"], dtype=dtype), float(threshold))
    assert [i for i, copy in enumerate(copies) if copy is None] == kept


def plain_greedy(vectors: np.ndarray, threshold: float) -> list[int | None]:
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    copies: list[int | None] = []
    for i in range(len(unit)):
        kept = [j for j, copy in enumerate(copies) if copy is None]
        copies.append(next((j for j in kept if unit[j] @ unit[i] > threshold), None))
    return copies


def test_blocks_do_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    vectors = np.random.default_rng(0).normal(size=(60, 4))
    monkeypatch.setattr("togi.data.duplicates.BLOCK", 7)
    assert copies_by_cosine(vectors, 0.8) == plain_greedy(vectors, 0.8)


def test_strictly_more_than_the_threshold_and_zeros() -> None:
    vectors = np.array([[1.0, 0.0], [1.0, 0.0], [0.0, 0.0], [0.0, 0.0]])
    assert copies_by_cosine(vectors, 1.0) == [None] * 4
    assert copies_by_cosine(vectors, 0.99) == [None, 0, None, None]
    assert copies_by_cosine(np.zeros((0, 4)), 0.5) == []


def drafts(count: int) -> list[str]:
    rng = np.random.default_rng(1)
    line = "how many red green cars cats run over the old bridge near a small town in spring every day now"
    words = line.split()
    texts = [" ".join(rng.choice(words, size=8)) for _ in range(count)]
    return texts + [f"{text} {rng.choice(words)}" for text in texts[: count // 2]]


@pytest.mark.parametrize("threshold", [0.4, 0.6, 0.8])
def test_minhash_finds_what_comparing_all_finds(threshold: float) -> None:
    texts = drafts(120)
    sets = [shingles(text, 4) for text in texts]
    copies: list[int | None] = []
    for grams in sets:
        kept = [j for j, copy in enumerate(copies) if copy is None]
        copies.append(next((j for j in kept if jaccard(sets[j], grams) > threshold), None))
    assert copies_by_ngrams(texts, threshold) == copies
    assert any(copy is not None for copy in copies)


def test_bands_miss_few_pairs() -> None:
    assert [_bands(t) for t in (0.5, 0.6, 0.8, 0.95)] == [128, 64, 64, 16]


def test_copies_in_languages_without_spaces() -> None:
    texts = ["パンの焼き方を教えてください。", "ﾊﾟﾝの焼き方を教えてください！", "明日の天気はどうですか。", "a", "A!"]
    assert copies_by_ngrams(texts, 0.6, n=3) == [None, 0, None, None, 3]


def test_remove_copies_counts() -> None:
    records = [Document(id=str(i), text="x") for i in range(3)]
    kept, drops = remove_copies(records, [None, 0, None], stage="diversify")
    assert [r.id for r in kept] == ["0", "2"]
    assert [(d.id, d.stage, d.reason) for d in drops] == [("1", "diversify", "near_duplicate")]


def test_hashed_ngrams() -> None:
    embedder = HashedNgrams()
    texts = ["How do I bake bread?", "how do I bake  BREAD", "How do I bake a cake?", "明日の天気はどうですか。", ""]
    vectors = embedder.embed(texts)
    assert vectors.shape == (5, 1024) and vectors.dtype == np.float32
    assert np.allclose(np.linalg.norm(vectors[:4], axis=1), 1, atol=1e-6)
    cosine = vectors @ vectors.T
    assert cosine[0, 1] > 0.999 > cosine[0, 2] > 0.4 > cosine[0, 3]
    assert np.array_equal(embedder.embed(texts[::-1])[::-1], vectors)
    assert vectors[0].nonzero()[0][:3].tolist() == [60, 64, 84]  # the same on every machine
