"""What a run may spend on a model, and has spent, across kills.

Before a request is sent its longest possible answer is reserved; the answer's usage settles that. What was sent and
never answered stays reserved for good, so a budget is never passed, whatever is killed. All this is one row per run
and model.
"""

import sqlite3
from dataclasses import dataclass

from togi.client.endpoint import FREE, NO_BOUND, NO_TOKENS, Budget, Price, Tokens


@dataclass(frozen=True, slots=True)
class Account:
    """Whose budget: the id of the run, and the name of the model in its recipe."""

    run: str
    model: str
    budget: Budget = NO_BOUND
    price: Price = FREE


@dataclass(frozen=True, slots=True)
class Spending:
    """What a run has spent on a model: `done` as the server counted it, `open` reserved for requests that are under way
    or were lost. `calls` counts requests that were sent."""

    calls: int = 0
    open: Tokens = NO_TOKENS
    done: Tokens = NO_TOKENS

    @property
    def tokens(self) -> Tokens:
        """All that counts against the budget."""
        return self.open + self.done


def spending(db: sqlite3.Connection, account: Account) -> Spending:
    """What the account's run has spent on its model so far."""
    row = db.execute(
        "SELECT calls, open_input, open_output, done_input, done_output FROM accounts WHERE run = ? AND model = ?",
        (account.run, account.model),
    ).fetchone()
    return Spending() if row is None else Spending(row[0], Tokens(row[1], row[2]), Tokens(row[3], row[4]))


def reserve(db: sqlite3.Connection, account: Account, tokens: Tokens) -> bool:
    """Reserves `tokens` for one call; false, and nothing reserved, where they do not fit into what is left."""
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
    """Whether that many tokens are within the budget."""
    budget = account.budget
    return (budget.tokens is None or tokens.total <= budget.tokens) and (
        budget.money is None or account.price.of(tokens) <= budget.money
    )


def settle(db: sqlite3.Connection, account: Account, reserved: Tokens, used: Tokens) -> None:
    """Puts what a call used in the place of what was reserved for it."""
    db.execute(
        "UPDATE accounts SET open_input = open_input - ?, open_output = open_output - ?, done_input = done_input + ?, "
        "done_output = done_output + ? WHERE run = ? AND model = ?",
        (reserved.input, reserved.output, used.input, used.output, account.run, account.model),
    )
