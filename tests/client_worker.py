"""Sends requests to a server, for tests that kill the client.

    python client_worker.py URL FOLDER COUNT CONCURRENCY

The store is in FOLDER; at the end the answers are written to FOLDER/answers.txt, one per line.
"""

import sys
from pathlib import Path

from client_asks import RUN, chats, endpoint, texts

from togi.client import pacing
from togi.client.client import Client
from togi.client.store import AnswerStore

if __name__ == "__main__":
    url, folder, count, concurrency = sys.argv[1:]
    pacing.FIRST_WAIT, pacing.FIRST_PAUSE = 0.01, 0.02
    made = endpoint(url, concurrency=int(concurrency))
    with AnswerStore(Path(folder) / "answers.sqlite") as store, Client(made, store, run=RUN) as client:
        found = texts(list(client.ask(chats(int(count), n=2))))
    Path(folder, "answers.txt").write_text("\n".join(found))
