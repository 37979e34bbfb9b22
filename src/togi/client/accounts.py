"""The budget of a run for a model and its spending so far, kept across kills.

Before a request is sent, the tokens of its longest possible answer are reserved; the usage of the answer settles the
reservation. The reservation of a request that never got an answer stays forever, so a kill can never cause a budget to
be exceeded. Each run and model has one row.
"""

import sqlite3
from dataclasses import dataclass

from togi.client.endpoint import FREE, NO_BOUND, NO_TOKENS, Budget, Price, Tokens


@dataclass(frozen=True, slots=True)
class Account:
    """The owner of a budget: the id of the run, and the name of the model in its recipe."""

    run: str
    model: str
    budget: Budget = NO_BOUND
    price: Price = FREE


@dataclass(frozen=True, slots=True)
class Spending:
    """The spending of a run on a model: `done` as counted by the server, `open` reserved for requests that are in
    flight or were lost. `calls` counts the requests sent."""

    calls: int = 0
    open: Tokens = NO_TOKENS
    done: Tokens = NO_TOKENS

    @property
    def tokens(self) -> Tokens:
        """All tokens that count against the budget."""
        return self.open + self.done


def spending(db: sqlite3.Connection, account: Account) -> Spending:
    """The spending of the account's run on its model so far."""
    row = db.execute(
        "SELECT calls, open_input, open_output, done_input, done_output FROM accounts WHERE run = ? AND model = ?",
        (account.run, account.model),
    ).fetchone()
    return Spending() if row is None else Spending(row[0], Tokens(row[1], row[2]), Tokens(row[3], row[4]))


def reserve(db: sqlite3.Connection, account: Account, tokens: Tokens) -> bool:
    """Reserves `tokens` for one call. Returns False and reserves nothing if they exceed what is left."""
    if not fits(account, spending(db, account).tokens + tokens):
        return False
    db.execute(
        "INSERT INTO accounts (run, model, calls, open_input, open_output) VALUES (?, ?, 1, ?, ?) "
        "ON CONFLICT DO UPDATE SET calls = calls + 1, open_input = open_input + excluded.open_input, "
        "open_output = open_output + excluded.open_output",
        (account.run, account.model, tokens.input, tokens.output),
    )
    return True


def fits(account: Account, tokens: Tokens) -> bool:
    """Whether a total of `tokens` is within the budget."""
    budget = account.budget
    return (budget.tokens is None or tokens.total <= budget.tokens) and (
        budget.money is None or account.price.of(tokens) <= budget.money
    )


def settle(db: sqlite3.Connection, account: Account, reserved: Tokens, used: Tokens) -> None:
    """Replaces the reservation of a call by the tokens that it used."""
    db.execute(
        "UPDATE accounts SET open_input = open_input - ?, open_output = open_output - ?, done_input = done_input + ?, "
        "done_output = done_output + ? WHERE run = ? AND model = ?",
        (reserved.input, reserved.output, used.input, used.output, account.run, account.model),
    )
