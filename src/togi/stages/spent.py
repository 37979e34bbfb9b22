"""The spending of runs on servers, and the file that records it."""

from pathlib import Path

from togi.client.accounts import Account, Spending
from togi.client.endpoint import Endpoint
from togi.client.store import AnswerStore

ANSWERS = "answers.sqlite"
"""The file in the store with the answers of servers, and the spending of runs on them."""


def spent_words(endpoint: Endpoint, spending: Spending) -> str:
    """The spending on one endpoint, in words; empty if there was none. The reservation for unanswered requests is a
    separate number: the most that they can cost. It shrinks with each answer."""
    if not spending.calls:
        return ""
    money = endpoint.price.of(spending.done)
    spent = f", {money:.4g} spent" if money else ""
    reserved = f" (at most {spending.open.total:,} more reserved)" if spending.open.total else ""
    return f"{endpoint.name}: {spending.calls:,} calls, {spending.done.total:,} tokens{spent}{reserved}"


def spent_by(run: str, endpoints: list[Endpoint], store: Path) -> list[str]:
    """The spending of a run on each endpoint, including killed processes, without endpoints that it did not use."""
    if not endpoints or not (store / ANSWERS).exists():
        return []
    with AnswerStore(store / ANSWERS) as answers:
        accounts = [Account(run, each.name, each.budget, each.price) for each in endpoints]
        found = [answers.spending(account) for account in accounts]
    return [words for each, spending in zip(endpoints, found, strict=True) if (words := spent_words(each, spending))]


def stored_answers(store: Path) -> dict[str, tuple[int, int]]:
    """The number of stored answers and their bytes, by model@revision."""
    if not (store / ANSWERS).exists():
        return {}
    with AnswerStore(store / ANSWERS) as answers:
        return answers.models()


def forget_answers(store: Path) -> None:
    """Removes all stored answers."""
    if (store / ANSWERS).exists():
        with AnswerStore(store / ANSWERS) as answers:
            answers.forget()
