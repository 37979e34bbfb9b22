"""The spending on servers in words: what is spent only grows, and what is reserved stands apart."""

import pytest

from togi.client.accounts import Spending
from togi.client.endpoint import Endpoint, Price, Tokens
from togi.stages.spent import spent_words

JUDGE = Endpoint(name="judge", urls=("http://a/v1",), model="m")
PRICED = Endpoint(name="judge", urls=("http://a/v1",), model="m", price=Price(input=1.0, output=2.0))


@pytest.mark.parametrize(
    ("endpoint", "spending", "told"),
    [
        (JUDGE, Spending(), ""),
        (JUDGE, Spending(2, open=Tokens(1000, 500)), "judge: 2 calls, 0 tokens (at most 1,500 more reserved)"),
        (JUDGE, Spending(2, Tokens(500, 250), Tokens(1000, 10)), "judge: 2 calls, 1,010 tokens (at most 750 more res"),
        (JUDGE, Spending(2, done=Tokens(2000, 20)), "judge: 2 calls, 2,020 tokens"),
        (PRICED, Spending(2, Tokens(1, 1), Tokens(10**6, 0)), "judge: 2 calls, 1,000,000 tokens, 1 spent (at most 2"),
    ],
)
def test_reservations_are_not_told_as_spent(endpoint, spending, told):
    found = spent_words(endpoint, spending)
    assert found.startswith(told) and (told != "" or found == "")
    assert ("reserved" in found) is (spending.open.total > 0)
