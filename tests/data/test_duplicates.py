import numpy as np
import pytest
from stored import load

from togi.data.duplicates import Copies, copies_by_cosine, copies_by_ngrams
from togi.data.features import HashedNgrams
from togi.data.minhash import Layout, band_keys, estimated, low_bytes, signatures
from togi.text.compare import jaccard, normalise, shingles
from togi.text.ngrams import Codes, character_ngrams

VECTOR = load("dedup_rouge.json")


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize(("threshold", "kept"), VECTOR["kept"].items())
def test_greedy_cosine_as_stored(threshold: str, kept: list[int], dtype: type) -> None:
    copies = copies_by_cosine(np.array(VECTOR["embeddings"], dtype=dtype), float(threshold))
    assert np.flatnonzero(copies.kept).tolist() == kept


@pytest.mark.parametrize("threshold", VECTOR["kept"])
def test_cosines_of_copies_are_the_stored_ones(threshold: str) -> None:
    copies = copies_by_cosine(np.array(VECTOR["embeddings"]), float(threshold))
    pairs = [(i, j) for i, j in enumerate(copies.of.tolist()) if j >= 0]
    assert len(pairs) == len(VECTOR["embeddings"]) - len(VECTOR["kept"][threshold])
    assert [copies.similarity[i] for i, _ in pairs] == pytest.approx(
        [VECTOR["cosine"][i][j] for i, j in pairs], abs=1e-6
    )


def of(copies: Copies) -> list[int | None]:
    """The index of the kept item that each item copies; None for kept items."""
    return [None if each < 0 else each for each in copies.of.tolist()]


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
    monkeypatch.setattr("togi.data.duplicates.TILE", 5)
    copies = copies_by_cosine(vectors, 0.8)
    assert of(copies) == plain_greedy(vectors, 0.8)
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    told = [(i, other) for i, other in enumerate(of(copies)) if other is not None]
    assert all(copies.similarity[i] == pytest.approx(unit[i] @ unit[j], abs=1e-6) for i, j in told)


def test_half_precision_is_computed_in_single() -> None:
    vectors = np.random.default_rng(0).normal(size=(60, 4))
    halves = vectors.astype(np.float16)
    assert of(copies_by_cosine(halves, 0.8)) == plain_greedy(halves.astype(np.float64), 0.8)


def test_an_order_decides_which_of_two_copies_stays() -> None:
    vectors = np.array([[1.0, 0.0], [1.0, 0.1], [0.0, 1.0]])
    assert of(copies_by_cosine(vectors, 0.9, np.array([2, 1, 0]))) == [1, None, None]
    texts = ["How do I bake bread at home?", "How do I bake bread at home", "Where do rivers begin?"]
    assert of(copies_by_ngrams(texts, 0.9)) == [None, 0, None]
    assert of(copies_by_ngrams(texts, 0.9, order=np.array([1, 2, 0]))) == [1, None, None]


def test_strictly_more_than_the_threshold_and_zeros() -> None:
    vectors = np.array([[1.0, 0.0], [1.0, 0.0], [0.0, 0.0], [0.0, 0.0]])
    assert of(copies_by_cosine(vectors, 1.0)) == [None] * 4
    assert of(copies_by_cosine(vectors, 0.99)) == [None, 0, None, None]
    assert of(copies_by_cosine(np.zeros((0, 4)), 0.5)) == []


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
    found = copies_by_ngrams(texts, threshold)
    assert of(found) == copies and any(copy is not None for copy in copies)
    told = [(i, other) for i, other in enumerate(copies) if other is not None]
    assert all(found.similarity[i] == pytest.approx(jaccard(sets[i], sets[j])) for i, j in told)


def test_bands_miss_few_pairs_and_stay_small() -> None:
    for threshold in (0.11, 0.2, 0.5, 0.6, 0.7, 0.8, 0.95):
        layout = Layout.at(threshold)
        assert (1 - threshold**layout.rows) ** layout.bands < 1e-3
        assert 8 * layout.bands + layout.permutations <= 768  # bytes a row: 2 numbers a band, 1 byte a permutation


def test_many_equal_and_almost_equal_texts_are_copies_of_the_first() -> None:
    texts = ["The quick brown fox jumps over the lazy dog near the river."] * 300
    texts += [f"{texts[0]} {i}" for i in range(300)]
    found = copies_by_ngrams(texts, 0.7)
    assert found.of[0] == -1 and (found.of[1:] == 0).all()
    assert (found.similarity[1:300] == 1).all() and (found.similarity[300:] < 1).all()
    assert of(copies_by_ngrams(texts[:3], 1.0)) == [None, None, None]  # no similarity is above 1


def test_a_signature_estimates_the_similarity() -> None:
    rng = np.random.default_rng(5)
    texts = ["".join(rng.choice(list("abcdefghij"), size=400))]
    texts += [texts[0][cut:] + "".join(rng.choice(list("klmnop"), size=cut)) for cut in (0, 20, 60, 120, 250)]
    found = signatures(character_ngrams(Codes.of([normalise(text) for text in texts]), 5), 4096)
    kept = low_bytes(found)
    true = [jaccard(shingles(texts[0], 5), shingles(text, 5)) for text in texts]
    assert estimated(kept, kept[0]) == pytest.approx(np.array(true), abs=0.04)  # five standard deviations
    assert estimated(kept, kept[0]) != pytest.approx(np.array(true[::-1]), abs=0.04)
    keys = band_keys(found, Layout(1024, 4))
    assert (keys[0] == keys[1]).all()
    share = (found[:, 0] == found[:, 2]).reshape(1024, 4).all(axis=1)
    assert ((keys[0] == keys[2]) == share).all()  # bands are equal exactly if all their values are


def test_copies_in_languages_without_spaces() -> None:
    texts = ["パンの焼き方を教えてください。", "ﾊﾟﾝの焼き方を教えてください！", "明日の天気はどうですか。", "a", "A!"]
    assert of(copies_by_ngrams(texts, 0.6, n=3)) == [None, 0, None, None, 3]


def test_texts_that_differ_in_symbols_alone_are_no_copies() -> None:
    texts = ["😀", "😡", "C#", "C++", "!!", "??"]
    assert of(copies_by_ngrams(texts, 0.6)) == [None] * 6
    assert of(copies_by_cosine(HashedNgrams().embed(texts), 0.9)) == [None] * 6


def test_rows_out_of_the_order_are_compared_with_nothing() -> None:
    texts = ["bake bread", "bake bread", "rain", "bake bread", "rain"]
    order = np.array([3, 1, 4])
    assert of(copies_by_ngrams(texts, 0.6, order=order)) == [None, 3, None, None, None]
    assert of(copies_by_cosine(HashedNgrams().embed(texts), 0.9, order)) == [None, 3, None, None, None]


def test_a_text_without_ngrams_is_a_row_of_zeros() -> None:
    vectors = HashedNgrams().embed(["", " \n"])
    assert not vectors.any() and of(copies_by_cosine(vectors, 0.5)) == [None, None]


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
