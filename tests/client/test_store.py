"""The response store and its accounts: many processes, damage, newer files; Retry-After."""

import resource
import sqlite3
import subprocess
import sys
import time
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path

import pytest

from togi.client.accounts import Account, reserve, settle
from togi.client.endpoint import Budget, Price, Tokens
from togi.client.pacing import Pace, retry_after
from togi.client.store import AnswerStore, keep_answer
from togi.core.errors import DamagedFile, InputError, TogiError

KEY = b"k" * 32
WRITER = """
import sys
from pathlib import Path
from togi.client.accounts import Account, reserve
from togi.client.endpoint import Budget, Tokens
from togi.client.store import AnswerStore, keep_answer
account, own = Account("run", "m", Budget(tokens=1000)), sys.argv[2].encode()
with AnswerStore(Path(sys.argv[1])) as store:
    for index in range(300):
        kept = store.write(lambda db: keep_answer(db, (b"k" * 32, index), "m@", own))
        store.write(lambda db: reserve(db, account, Tokens(1, 1)))
"""


def test_many_processes_write_at_once_and_the_first_answer_stays(tmp_path: Path) -> None:
    path = tmp_path / "answers.sqlite"
    running = [subprocess.Popen([sys.executable, "-c", WRITER, str(path), name]) for name in ("a", "b", "c")]
    assert [process.wait(120) for process in running] == [0, 0, 0]
    with AnswerStore(path) as store:
        assert store.count() == 300
        assert {store.get((KEY, index)) for index in range(300)} <= {b"a", b"b", b"c"}
        assert store.spending(Account("run", "m")).tokens.total == 1000, "900 reservations of 2, of which 500 fit"
        assert store.write(lambda db: keep_answer(db, (KEY, 0), "m@", b"late")) == store.get((KEY, 0)) != b"late"


def test_a_damaged_answer_counts_as_absent_and_is_written_anew(tmp_path: Path) -> None:
    path = tmp_path / "answers.sqlite"
    with AnswerStore(path) as store:
        store.write(lambda db: keep_answer(db, (KEY, 1), "m@", b"answer"))
    with sqlite3.connect(path) as db:
        db.execute("UPDATE answers SET body = ?", (b"answex",))
    db.close()
    with AnswerStore(path) as store:
        assert store.get((KEY, 1)) is None
        assert store.write(lambda db: keep_answer(db, (KEY, 1), "m@", b"answer")) == b"answer"
        assert store.get((KEY, 1)) == b"answer"


def test_a_file_that_is_no_store_or_of_a_newer_togi(tmp_path: Path) -> None:
    other, newer = tmp_path / "other", tmp_path / "newer"
    other.write_bytes(b"no database at all, but long enough to be read as one" * 20)
    with pytest.raises(DamagedFile, match=f"{other}: damaged"):
        AnswerStore(other)
    AnswerStore(newer).close()
    with sqlite3.connect(newer) as db:
        db.execute("PRAGMA user_version = 99")
    db.close()
    with pytest.raises(InputError, match="written by a newer togi"):
        AnswerStore(newer)


@pytest.mark.parametrize("read", ["count", "models"])
def test_counting_the_answers_of_a_damaged_file_is_an_error_of_togi(tmp_path: Path, read: str) -> None:
    path = tmp_path / "answers.sqlite"
    with AnswerStore(path) as store:
        for index in range(200):
            store.write(lambda db, index=index: keep_answer(db, (KEY, index), "m@", b"answer" * 100))
    data = bytearray(path.read_bytes())
    data[4096:] = b"\xff" * (len(data) - 4096)  # all pages but the first
    path.write_bytes(data)
    with AnswerStore(path) as store, pytest.raises(DamagedFile, match=f"{path}: damaged"):
        getattr(store, read)()


def test_a_store_that_cannot_be_opened(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    with pytest.raises(InputError, match="cannot be used"):
        AnswerStore(tmp_path / "folder")


def test_answers_are_forgotten_by_model_and_what_was_spent_stays(tmp_path: Path) -> None:
    account = Account("run", "m")
    with AnswerStore(tmp_path / "answers.sqlite") as store:
        for index, model in enumerate(("a@1", "a@2", "b@")):
            store.write(lambda db, index=index, model=model: keep_answer(db, (KEY, index), model, b"x"))
        store.write(lambda db: reserve(db, account, Tokens(3, 4)))
        assert list(store.models()) == ["a@1", "a@2", "b@"]
        assert store.forget("a@1") == 1 and store.count() == 2
        assert store.forget() == 2 and store.count() == 0
        assert store.spending(account).tokens == Tokens(3, 4)


def test_a_file_that_cannot_be_shrunk_is_one_line(tmp_path: Path) -> None:
    """VACUUM writes the file anew; here files may not grow so far, as on a full disk."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    with AnswerStore(tmp_path / "answers.sqlite") as store:
        for index, (model, size) in enumerate((("a@1", 1), ("b@", 400_000))):
            body = b"x" * size
            store.write(lambda db, index=index, model=model, body=body: keep_answer(db, (KEY, index), model, body))
    with AnswerStore(tmp_path / "answers.sqlite") as store:
        resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, limits[1]))
        try:
            with pytest.raises(TogiError, match=r"answers\.sqlite: "):
                store.forget("a@1")
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        assert list(store.models()) == ["b@"]


def test_a_budget_in_money_and_another_run_has_its_own(tmp_path: Path) -> None:
    price = Price(input=1.0, output=10.0)
    account = Account("run", "m", Budget(money=100e-6), price)
    with AnswerStore(tmp_path / "answers.sqlite") as store:
        assert store.write(lambda db: reserve(db, account, Tokens(10, 8)))  # costs 90
        assert not store.write(lambda db: reserve(db, account, Tokens(1, 1)))  # costs 11
        assert store.write(lambda db: reserve(db, account, Tokens(10, 0)))  # costs 10
        store.write(lambda db: settle(db, account, Tokens(10, 8), Tokens(10, 1)))
        assert store.write(lambda db: reserve(db, account, Tokens(0, 6)))
        assert price.of(store.spending(account).tokens) == pytest.approx(90e-6)
        assert store.write(lambda db: reserve(db, Account("other", "m", account.budget, price), Tokens(100, 0)))


def test_retry_after_holds_seconds_or_a_date() -> None:
    later = datetime.now(UTC) + timedelta(seconds=90)
    assert retry_after({"retry-after": "2.5"}) == 2.5
    assert retry_after({"retry-after": "-3"}) == 0.0
    assert retry_after({"retry-after": format_datetime(later, usegmt=True)}) == pytest.approx(90, abs=3)
    assert retry_after({"retry-after": "Thu, 01 Jan 1970 00:00:00 GMT"}) == 0.0
    assert [retry_after({"retry-after": said}) for said in ("", "soon", "nan", "inf")] == [None] * 4
    assert retry_after({}) is None


def test_a_limit_per_minute_is_kept_by_even_spacing() -> None:
    pace, now = Pace(60), time.monotonic()
    waits = [pace.wait() for _ in range(3)] + [pace.wait(5), pace.wait()]
    assert waits == pytest.approx([0.0, 1.0, 2.0, 3.0, 8.0], abs=0.2 + time.monotonic() - now)
    assert Pace(None).wait(10**9) == 0.0
