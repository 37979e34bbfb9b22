"""Mixing by token share: how far the realised shares may deviate, epochs, and resuming."""

import random

import pytest

from togi.core.errors import InputError
from togi.data.mix import Cursor, Stream, furthest_behind, ledger, next_stream, normalised, whole_parts


def streams(shares: list[float], sizes: list[int]) -> list[Stream]:
    return [
        Stream(f"s{i}", share, Cursor(size, seed=i))
        for i, (share, size) in enumerate(zip(normalised(shares), sizes, strict=True))
    ]


def draw(found: list[Stream], lengths: list[list[int]], count: int) -> list[tuple[str, int]]:
    drawn = []
    for _ in range(count):
        stream = next_stream(found)
        item = stream.cursor.item()
        drawn.append((stream.name, item))
        stream.drew(lengths[int(stream.name[1:])][item], last=True)
    return drawn


@pytest.mark.parametrize("shares", [[0.6, 0.4], [0.775, 0.225], [5, 3, 1, 1], [1]])
def test_the_tokens_of_every_source_stay_near_their_share_at_every_moment(shares):
    generator = random.Random(0)
    sizes = [50 // (i + 1) for i in range(len(shares))]
    lengths = [[generator.randint(1, 400) for _ in range(size)] for size in sizes]
    found = streams(shares, sizes)
    for _ in range(500):
        draw(found, lengths, 1)
        total = sum(s.tokens for s in found)
        for stream in found:
            assert abs(stream.tokens - stream.share * total) <= max(len(shares) - 1, 0) * 400


def test_a_source_that_runs_out_begins_its_next_epoch_in_another_order():
    cursor = Cursor(6, seed=1)
    epochs = []
    for _ in range(3):
        epochs.append([])
        for _ in range(6):
            epochs[-1].append(cursor.item())
            cursor.advance()
    assert all(sorted(epoch) == list(range(6)) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]
    assert cursor.epochs == 3


def test_whole_parts_add_up():
    assert whole_parts([0.25] * 4, 10) == [3, 3, 2, 2]
    assert whole_parts([0.55, 0.45], 10) == [6, 4] and whole_parts([0.1, 0.2, 0.7], 1) == [0, 0, 1]
    for amount in range(1, 200):
        assert sum(whole_parts(normalised([1, 2, 4]), amount)) == amount


def test_a_mixture_goes_on_where_it_was():
    lengths = [[7, 3, 9], [2, 8, 4, 6]]
    whole, first = streams([0.7, 0.3], [3, 4]), streams([0.7, 0.3], [3, 4])
    expected = draw(whole, lengths, 40)
    begun = draw(first, lengths, 17)
    second = streams([0.7, 0.3], [3, 4])
    for fresh, old in zip(second, first, strict=True):
        fresh.restore(old.state())
    assert begun + draw(second, lengths, 23) == expected
    assert ledger(second) == ledger(whole)


def test_the_pieces_of_an_item_are_drawn_before_the_next_one():
    (stream,) = streams([1], [2])
    first = stream.cursor.item()
    stream.drew(10, last=False)
    assert (stream.cursor.item(), stream.part) == (first, 1)
    stream.drew(5, last=True)
    assert stream.cursor.item() != first and stream.part == 0
    assert ledger([stream])["s0"] == {"tokens": 15, "share": 1.0, "asked": 1.0, "pieces": 2, "epochs": 0.5}


def test_the_first_draw_is_of_the_largest_share_and_shares_must_be_positive():
    assert furthest_behind([0.2, 0.5, 0.3], [0, 0, 0]) == 1
    with pytest.raises(InputError, match="above 0"):
        normalised([0.5, 0.0])
