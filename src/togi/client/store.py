"""Every whole answer, kept in one SQLite file that many processes may use at once; and what each run has spent.

Work is committed in groups: all that waits at one moment is one transaction. A kill loses nothing that was committed.
A power cut may lose what was committed in the last second: WAL with `synchronous = NORMAL` syncs at checkpoints alone,
and the log is synced once a second beside them. The file does not live on network file systems.
"""

import hashlib
import logging
import os
import sqlite3
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from togi.client.accounts import Account, Spending, spending
from togi.core.errors import DamagedFile, InputError, StageError, TogiError

FORMAT = 1
PATIENCE = 60.0
"""Seconds to wait for another process that writes."""
HELD_WAIT = 0.02
SYNC_EVERY = 1.0
"""Seconds: the most that a power cut may lose."""
TABLES = """
CREATE TABLE IF NOT EXISTS answers (
    key BLOB NOT NULL, idx INTEGER NOT NULL, model TEXT NOT NULL, seal BLOB NOT NULL, body BLOB NOT NULL,
    PRIMARY KEY (key, idx));
CREATE TABLE IF NOT EXISTS accounts (
    run TEXT NOT NULL, model TEXT NOT NULL, calls INTEGER NOT NULL DEFAULT 0,
    open_input INTEGER NOT NULL DEFAULT 0, open_output INTEGER NOT NULL DEFAULT 0,
    done_input INTEGER NOT NULL DEFAULT 0, done_output INTEGER NOT NULL DEFAULT 0,
    PRIMARY KEY (run, model)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS batches (
    tag TEXT PRIMARY KEY, run TEXT NOT NULL, model TEXT NOT NULL, open_input INTEGER NOT NULL,
    open_output INTEGER NOT NULL, file TEXT NOT NULL DEFAULT '', batch TEXT NOT NULL DEFAULT '') WITHOUT ROWID;
"""

Work = Callable[[sqlite3.Connection], Any]
Name = tuple[bytes, int]
"""The key of a request's content, and its index."""

log = logging.getLogger(__name__)


class AnswerStore:
    """The stored answers of all recipes, and the accounts of runs.

    Reading, and writing through `write`, is for the thread that made the store; another thread writes through a
    `StoreWriter` of its own. Raises DamagedFile for a file that is no store, InputError for one of a newer togi or one
    that cannot be opened.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        self._writer = StoreWriter(path)
        self._db = self._writer.db

    # --- reading ------------------------------------------------------------------------------------------------------

    def get(self, name: Name) -> bytes | None:
        """A stored answer. A damaged one counts as absent, which is logged."""
        try:
            return read_answer(self._db, name)
        except sqlite3.Error as error:
            raise meaning(self.path, error) from None

    def spending(self, account: Account) -> Spending:
        """What a run has spent on a model."""
        return spending(self._db, account)

    def count(self) -> int:
        """How many answers there are."""
        return self._db.execute("SELECT count(*) FROM answers").fetchone()[0]

    def models(self) -> dict[str, tuple[int, int]]:
        """Answers and their bytes by model@revision, in alphabetical order."""
        found = self._db.execute("SELECT model, count(*), sum(length(body)) FROM answers GROUP BY model")
        return {model: (count, size) for model, count, size in found}

    # --- writing ------------------------------------------------------------------------------------------------------

    def write(self, work: Work) -> Any:
        """Does `work` as one transaction and returns its result."""
        return self._writer.commit([work])[0]

    def forget(self, model: str | None = None) -> int:
        """Forgets the answers of one model@revision, or all of them and the batches under way, and returns how many
        answers there were. What runs have spent stays known."""

        def work(db: sqlite3.Connection) -> int:
            if model is not None:
                return db.execute("DELETE FROM answers WHERE model = ?", (model,)).rowcount
            db.execute("DELETE FROM batches")
            return db.execute("DELETE FROM answers").rowcount

        count = self.write(work)
        self._db.execute("VACUUM")
        return count

    def close(self) -> None:
        """Folds the log into the file, if nobody else has it open."""
        self._writer.close()

    def __enter__(self) -> "AnswerStore":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class StoreWriter:
    """A connection of one thread to the file at `path`, which commits work in groups."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.db = self._open()

    def commit(self, works: Sequence[Work]) -> list[Any]:
        """Does all of `works` as one transaction, or none, and returns their results.

        Raises StageError if the disk is full or the file is held by another process, DamagedFile if it is damaged.
        """
        try:
            self.db.execute("BEGIN IMMEDIATE")
            results = [work(self.db) for work in works]
            self.db.execute("COMMIT")
        except sqlite3.Error as error:
            if self.db.in_transaction:
                self.db.execute("ROLLBACK")
            raise meaning(self.path, error) from None
        return results

    def sync(self) -> None:
        """Makes what was committed safe from a power cut. May be called from any thread."""
        try:
            handle = os.open(f"{self.path}-wal", os.O_RDONLY)
        except FileNotFoundError:
            return
        try:
            os.fsync(handle)
        finally:
            os.close(handle)

    def close(self) -> None:
        """Lets go of the file."""
        self.db.close()

    def _open(self) -> sqlite3.Connection:
        """A connection to the file. SQLite does not wait for another process that makes the file's log: this does."""
        end = time.monotonic() + PATIENCE
        while True:
            try:
                db = sqlite3.connect(self.path, timeout=PATIENCE, isolation_level=None, check_same_thread=False)
                db.execute("PRAGMA journal_mode = WAL")
                db.execute("PRAGMA synchronous = NORMAL")
                self._prepare(db)
                return db
            except sqlite3.Error as error:
                if not is_held(error) or time.monotonic() > end:
                    raise meaning(self.path, error) from None
                time.sleep(HELD_WAIT)

    def _prepare(self, db: sqlite3.Connection) -> None:
        """Makes the tables of a new file; refuses a file of a newer togi."""
        found = db.execute("PRAGMA user_version").fetchone()[0]
        if found > FORMAT:
            raise InputError(
                f"{self.path}: answers of a newer togi (format {found}, this one reads {FORMAT}); update togi, or move "
                "the file away to ask again"
            )
        if found < FORMAT:
            db.executescript(f"BEGIN IMMEDIATE; {TABLES} PRAGMA user_version = {FORMAT}; COMMIT")


def is_held(error: sqlite3.Error) -> bool:
    """Whether another process holds the file."""
    return getattr(error, "sqlite_errorname", "").startswith(("SQLITE_BUSY", "SQLITE_LOCKED"))


def meaning(path: Path, error: sqlite3.Error) -> TogiError:
    """What an error of SQLite means to a user."""
    name = getattr(error, "sqlite_errorname", "")
    if name.startswith("SQLITE_FULL"):
        return StageError(f"{path}: the disk is full; free some space and run the same command again")
    if is_held(error):
        return StageError(f"{path}: another process has held it for {PATIENCE:.0f} s; run the same command again")
    if name.startswith(("SQLITE_NOTADB", "SQLITE_CORRUPT")):
        return DamagedFile(f"{path}: damaged: {error}; move it away to ask again for what it held")
    return InputError(f"{path}: cannot be used: {error}")


def read_answer(db: sqlite3.Connection, name: Name) -> bytes | None:
    """A stored answer; None if it is absent or damaged."""
    found = db.execute("SELECT seal, body FROM answers WHERE key = ? AND idx = ?", name).fetchone()
    if found is None:
        return None
    if found[0] != _seal(name, found[1]):
        log.warning("answer %s:%d is damaged; it is asked for again", name[0].hex()[:16], name[1])
        return None
    return found[1]


def keep_answer(db: sqlite3.Connection, name: Name, model: str, body: bytes) -> bytes:
    """Stores an answer and returns what is stored now: the answer of another process where that was sooner."""
    before = read_answer(db, name)
    if before is not None:
        return before
    row = (*name, model, _seal(name, body), body)
    db.execute("INSERT OR REPLACE INTO answers (key, idx, model, seal, body) VALUES (?, ?, ?, ?, ?)", row)
    return body


def _seal(name: Name, body: bytes) -> bytes:
    """What tells a damaged row: 8 bytes over its name and body."""
    return hashlib.blake2b(b"%b%d:%b" % (name[0], name[1], body), digest_size=8).digest()
