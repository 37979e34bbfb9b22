"""What runs have spent on servers, and the file that says it."""

from pathlib import Path

from togi.client.accounts import Account, Spending
from togi.client.endpoint import Endpoint
from togi.client.store import AnswerStore

ANSWERS = "answers.sqlite"
"""The file in the store that keeps the answers of servers, and what runs have spent on them."""


def spent_words(endpoint: Endpoint, spending: Spending) -> str:
    """What was spent on one endpoint; empty where nothing was."""
    total = spending.tokens
    if not spending.calls:
        return ""
    money = endpoint.price.of(total)
    return f"{endpoint.name}: {spending.calls:,} calls, {total.total:,} tokens" + (
        f", {money:.4g} spent" if money else ""
    )


def spent_by(run: str, endpoints: list[Endpoint], store: Path) -> list[str]:
    """What a run has spent on each endpoint, killed processes included; nothing of those that it did not ask."""
    if not endpoints or not (store / ANSWERS).exists():
        return []
    with AnswerStore(store / ANSWERS) as answers:
        accounts = [Account(run, each.name, each.budget, each.price) for each in endpoints]
        found = [answers.spending(account) for account in accounts]
    return [words for each, spending in zip(endpoints, found, strict=True) if (words := spent_words(each, spending))]


def stored_answers(store: Path) -> dict[str, tuple[int, int]]:
    """How many answers are stored, and their bytes, by model@revision."""
    if not (store / ANSWERS).exists():
        return {}
    with AnswerStore(store / ANSWERS) as answers:
        return answers.models()


def forget_answers(store: Path) -> None:
    """Forgets all stored answers."""
    if (store / ANSWERS).exists():
        with AnswerStore(store / ANSWERS) as answers:
            answers.forget()
