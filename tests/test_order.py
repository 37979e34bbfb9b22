"""Every file in the order of the tests exists."""

from order import HEAVIEST
from places import TESTS


def test_every_file_of_the_order_is_there():
    assert [name for name in HEAVIEST if not (TESTS / name).exists()] == []
    assert len(set(HEAVIEST)) == len(HEAVIEST)
