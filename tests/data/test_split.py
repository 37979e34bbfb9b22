"""Parts of a split: sizes by the largest remainder, and groups that stay whole."""

from collections import Counter

from togi.core.records import Chat, Completion, Document, Message, Pair, Prompt, Sample
from togi.data.split import deal, part_sizes, prompt_key


def test_shares_are_filled_by_the_largest_remainder_and_hold_every_record():
    assert part_sizes({"train": 0.9, "test": 0.1}, 103) == {"test": 10, "train": 93}
    assert part_sizes({"a": 0.5, "b": 0.3, "c": 0.2}, 9) == {"a": 4, "b": 3, "c": 2}  # 4.5, 2.7, 1.8
    thirds = {"a": 1 / 3, "b": 1 / 3, "c": 1 / 3}
    assert sum(part_sizes(thirds, 10).values()) == 10
    assert part_sizes({"b": 4, "a": 3}, 100) == {"a": 3, "b": 4}


def test_the_order_in_which_parts_are_named_changes_nothing():
    one, other = part_sizes({"x": 0.25, "y": 0.75}, 41), part_sizes({"y": 0.75, "x": 0.25}, 41)
    assert list(one.items()) == list(other.items())
    assert deal([1] * 41, one, 3) == deal([1] * 41, other, 3)


def test_single_records_fill_each_part_exactly_and_differently_by_seed():
    found = [deal([1] * 50, {"test": 5, "train": 45}, seed) for seed in range(40)]
    assert all(Counter(each) == {"test": 5, "train": 45} for each in found)
    tested = Counter(i for each in found for i, name in enumerate(each) if name == "test")
    assert len(tested) > 45  # over the seeds nearly every record is in the test part: no position is favoured


def test_groups_stay_whole_and_what_no_count_has_room_for_is_left_over():
    groups = [7] * 40
    found = deal(groups, {"test": 28, "train": 252}, 1)
    assert Counter(found) == {"test": 4, "train": 36}
    assert Counter(deal([1] * 10, {"a": 3, "b": 4}, 1)) == {"a": 3, "b": 4, None: 3}
    assert deal([5, 1], {"a": 3}, 1) == [None, "a"]
    assert None not in deal([5, 5], {"a": 5, "b": 5}, 1)
    assert None not in deal([6, 3, 1], {"a": 5, "b": 5}, 1)  # shares: no part has room for 6, yet none is left out


def test_the_prompt_of_every_kind_is_what_its_user_says():
    asked, said = (Message("system", "s"), Message("user", "Why is it?")), (Message("assistant", "So."),)
    prompt = Prompt(id="p", messages=asked)
    alike = [
        prompt,
        Prompt(id="q", messages=(Message("user", "why is it"),)),
        Sample(id="s", prompt=prompt, completion=Completion(text="No.", stop="length")),
        Pair(id="a", prompt=asked, chosen=said, rejected=said),
        Chat(id="c", messages=(*asked, *said, Message("user", "And then?"), *said)),
    ]
    assert len({prompt_key(record) for record in alike}) == 1
    others = [Document(id="d", text="a"), Document(id="d", text="b"), Prompt(id="p", messages=(Message("user", "c"),))]
    assert len({prompt_key(record) for record in (*others, prompt)}) == 4
    sums = [Prompt(id="s", messages=(Message("user", f"3 {sign} 4?"),)) for sign in "+-*/<"]
    assert len({prompt_key(record) for record in sums}) == 5
    assert prompt_key(others[1]) != prompt_key(Prompt(id="x", messages=(Message("user", "a b"),)))
