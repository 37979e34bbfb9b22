"""Stores every complete answer, and the spending of each run, in one SQLite file that many processes may share.

Writes are committed in groups: everything that waits at one moment forms one transaction. A kill loses nothing that
was committed. A power cut may lose the commits of the last second: WAL with `synchronous = NORMAL` syncs only at
checkpoints, and togi also syncs the log once a second. The file must not be on a network file system.
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
"""Seconds to wait while another process writes."""
HELD_WAIT = 0.02
SYNC_EVERY = 1.0
"""Seconds between syncs: a power cut loses at most this much."""
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

    Only the thread that created the store may read it or call `write`; another thread writes through its own
    `StoreWriter`. Raises DamagedFile if the file is not a store or damaged, InputError if a newer togi wrote it or it
    cannot be opened, and StageError if another process holds it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        self._writer = StoreWriter(path)
        self._db = self._writer.db

    # --- reading ------------------------------------------------------------------------------------------------------

    def get(self, name: Name) -> bytes | None:
        """A stored answer, or None. A damaged answer is logged and counts as absent."""
        return self._read(lambda db: read_answer(db, name))

    def spending(self, account: Account) -> Spending:
        """The spending of a run on a model."""
        return self._read(lambda db: spending(db, account))

    def count(self) -> int:
        """The number of stored answers."""
        return self._read(lambda db: db.execute("SELECT count(*) FROM answers").fetchone()[0])

    def models(self) -> dict[str, tuple[int, int]]:
        """The number of answers and their size in bytes, by model@revision in alphabetical order."""
        sizes = "SELECT model, count(*), sum(length(body)) FROM answers GROUP BY model"
        return {model: (count, size) for model, count, size in self._read(lambda db: db.execute(sizes).fetchall())}

    def _read(self, work: Work) -> Any:
        try:
            return work(self._db)
        except sqlite3.Error as error:
            raise meaning(self.path, error) from None

    # --- writing ------------------------------------------------------------------------------------------------------

    def write(self, work: Work) -> Any:
        """Runs `work` as one transaction and returns its result."""
        return self._writer.commit([work])[0]

    def forget(self, model: str | None = None) -> int:
        """Deletes the answers of one model@revision, or all answers and all batches in progress, and returns the
        number of deleted answers. The spending of runs is kept.

        Raises StageError if the file cannot be shrunk: another process holds it, or the disk is full.
        """

        def work(db: sqlite3.Connection) -> int:
            if model is not None:
                return db.execute("DELETE FROM answers WHERE model = ?", (model,)).rowcount
            db.execute("DELETE FROM batches")
            return db.execute("DELETE FROM answers").rowcount

        count = self.write(work)
        try:
            self._db.execute("VACUUM")
        except sqlite3.Error as error:
            raise meaning(self.path, error) from None
        return count

    def close(self) -> None:
        """Closes the store; merges the log into the file if no other process has it open."""
        self._writer.close()

    def __enter__(self) -> "AnswerStore":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class StoreWriter:
    """One thread's connection to the file at `path`. Commits work in groups."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.db = self._open()

    def commit(self, works: Sequence[Work]) -> list[Any]:
        """Runs all of `works` as one transaction and returns their results.

        Raises StageError if the disk is full, another process holds the file or a number is too large for it,
        DamagedFile if it is damaged.
        """
        try:
            self.db.execute("BEGIN IMMEDIATE")
            results = [work(self.db) for work in works]
            self.db.execute("COMMIT")
        except (sqlite3.Error, OverflowError) as error:
            raise meaning(self.path, error) from None
        finally:
            if self.db.in_transaction:  # an error, of whatever kind
                self.db.execute("ROLLBACK")
        return results

    def sync(self) -> None:
        """Syncs the log, so that a power cut loses no commit. May be called from any thread."""
        try:
            handle = os.open(f"{self.path}-wal", os.O_RDONLY)
        except FileNotFoundError:
            return
        try:
            os.fsync(handle)
        finally:
            os.close(handle)

    def close(self) -> None:
        """Closes the connection."""
        self.db.close()

    def _open(self) -> sqlite3.Connection:
        """Opens the file. Waits while another process creates the file's log, which SQLite itself does not."""
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
        """Creates the tables in a new file; refuses a file of a newer togi."""
        found = db.execute("PRAGMA user_version").fetchone()[0]
        if found > FORMAT:
            raise InputError(
                f"{self.path}: written by a newer togi (format {found}, this one reads {FORMAT}); update togi, or move "
                "the file away to ask again"
            )
        if found < FORMAT:
            db.executescript(f"BEGIN IMMEDIATE; {TABLES} PRAGMA user_version = {FORMAT}; COMMIT")


def is_held(error: sqlite3.Error) -> bool:
    """Whether another process holds the file."""
    return getattr(error, "sqlite_errorname", "").startswith(("SQLITE_BUSY", "SQLITE_LOCKED"))


def meaning(path: Path, error: sqlite3.Error | OverflowError) -> TogiError:
    """Converts an error of SQLite to one with a clear message."""
    if isinstance(error, OverflowError):
        return StageError(f"{path}: a number is too large to be stored ({error}); please report this as a bug")
    name = getattr(error, "sqlite_errorname", "")
    if name.startswith("SQLITE_FULL"):
        return StageError(f"{path}: the disk is full; free some space and run the same command again")
    if is_held(error):
        return StageError(f"{path}: another process has held it for {PATIENCE:.0f} s; run the same command again")
    if name.startswith(("SQLITE_NOTADB", "SQLITE_CORRUPT")):
        return DamagedFile(f"{path}: damaged: {error}; move it away to ask for its answers again")
    return InputError(f"{path}: cannot be used: {error}")


def read_answer(db: sqlite3.Connection, name: Name) -> bytes | None:
    """A stored answer; None if it is absent or damaged."""
    found = db.execute("SELECT seal, body FROM answers WHERE key = ? AND idx = ?", name).fetchone()
    if found is None:
        return None
    if found[0] == _seal(name, found[1]) and _is_unicode(found[1]):
        return found[1]
    log.warning("answer %s:%d is damaged; asking for it again", name[0].hex()[:16], name[1])
    return None


def _is_unicode(body: bytes) -> bool:
    """Whether an answer is valid Unicode; older versions of togi stored halves of surrogate pairs too."""
    try:
        body.decode()
    except UnicodeDecodeError:
        return False
    return True


def keep_answer(db: sqlite3.Connection, name: Name, model: str, body: bytes) -> bytes:
    """Stores an answer and returns the stored one, which is another process's answer if that came first."""
    before = read_answer(db, name)
    if before is not None:
        return before
    row = (*name, model, _seal(name, body), body)
    db.execute("INSERT OR REPLACE INTO answers (key, idx, model, seal, body) VALUES (?, ?, ?, ?, ?)", row)
    return body


def _seal(name: Name, body: bytes) -> bytes:
    """An 8-byte checksum of a row's name and body, to detect damage."""
    return hashlib.blake2b(b"%b%d:%b" % (name[0], name[1], body), digest_size=8).digest()
