"""The format of tokenised examples on disk, and its writer.

A folder holds six files. A token takes 2 bytes for its id, or 4 if the vocabulary has more than 65,536 tokens, and one
bit that tells whether it is scored. A sequence takes 8 bytes for its end, an example a row (ROW) and its id.
`tokens.json` holds the counts and the files' hashes.
"""

import json
import math
import shutil
from array import array
from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from togi.core.files import read_sealed, write_sealed
from togi.core.hashing import file_hash
from togi.core.records import Message
from togi.core.seeds import digest
from togi.model.forest import num_tokens
from togi.stages.seen_prompts import mark
from togi.stages.training.example_work import Example

MANIFEST = "tokens.json"
IDS, MARKS, ENDS, ROWS, NAMES, SYSTEMS = "ids.bin", "marks.bin", "ends.bin", "rows.bin", "names.bin", "systems.jsonl"
FILES = (IDS, MARKS, ENDS, ROWS, NAMES, SYSTEMS)
ROW = np.dtype(
    [
        ("sequence", "<u8"),  # index of its first sequence; ENDS begins with a 0
        ("name", "<u8"),  # offset of its id in NAMES
        ("prompt", "<u8"),  # a hash; examples with the same one stay on one side of a split
        ("mark", "<u8"),  # the prompt's mark among those trained on (`seen_prompts.mark`), 0 without messages
        ("system", "<u8"),  # a hash of its system turn, 0 without one
        ("margin", "<f8"),  # NaN without one
        ("count", "<u4"),  # number of sequences
        ("letters", "<u4"),  # bytes of its id
        ("size", "<u4"),  # tokens that the model computes
        ("scored", "<u4"),  # tokens that carry loss
    ]
)
COUNTS = {"examples": int, "tokens": int, "type": str, "files": dict}
"""The entries of every manifest."""


class TokenWriter:
    """Writes examples into a folder. Call `flush` regularly and `finish` at the end: until then, added examples stay in
    memory, at about 4 bytes per token. Raises OSError if the disk is full."""

    def __init__(self, folder: Path, vocabulary: int) -> None:
        self.tokens = self.examples = 0
        self._folder = folder
        self._type = "<u2" if vocabulary <= 1 << 16 else "<u4"
        self._files: dict[str, BinaryIO] = {name: (folder / name).open("wb") for name in FILES}
        self._ids: array[int] = array("H" if self._type == "<u2" else "I")
        self._marks = bytearray()
        self._ends: array[int] = array("Q", [0])
        self._rows: list[tuple[Any, ...]] = []
        self._sequences = self._letters = 0
        self._systems: dict[int, None] = {}

    def add(self, example: Example) -> None:
        """Adds an example whose prompt is messages, or a text that identifies it."""
        said = () if isinstance(example.prompt, str) else tuple(example.prompt)
        name = example.id.encode("utf-8", "surrogatepass")
        scored = sum(sum(each.scored) for each in example.group)
        margin = math.nan if example.margin is None else example.margin
        keys = (prompt_key(example.prompt), int(mark(said), 16) if said else 0, self._system(said))
        sizes = (len(example.group), len(name), num_tokens(example.group), scored)
        self._rows.append((self._sequences, self._letters, *keys, margin, *sizes))
        self._files[NAMES].write(name)
        for sequence in example.group:
            self._ids.extend(sequence.ids)
            self._marks.extend(sequence.scored)
            self.tokens += len(sequence.ids)
            self._ends.append(self.tokens)
        self.examples, self._sequences = self.examples + 1, self._sequences + len(example.group)
        self._letters += len(name)

    def _system(self, said: Sequence[Message]) -> int:
        """A hash of the system turn that messages begin with; 0 if there is none. Each text is written only once."""
        if not said or said[0].role != "system":
            return 0
        text = said[0].content
        key = _number(["system", text])
        self._note_system(key, text)
        return key

    def _note_system(self, key: int, text: str) -> None:
        if key not in self._systems:
            self._systems[key] = None
            self._files[SYSTEMS].write(f"{json.dumps([key, text])}\n".encode())

    def take(self, folder: Path) -> None:
        """Adds everything that another writer wrote into `folder`, with the same result as adding its examples."""
        self.flush()
        told = read_sealed(folder / MANIFEST, COUNTS)
        rows = np.fromfile(folder / ROWS, ROW)
        rows["sequence"] += self._sequences
        rows["name"] += self._letters
        ends = np.fromfile(folder / ENDS, "<u8")[1:] + np.uint64(self.tokens)
        self._put(ROWS, rows)
        self._put(ENDS, ends)
        self._marks += np.unpackbits(np.fromfile(folder / MARKS, np.uint8))[: told["tokens"]].tobytes()
        for name in (IDS, NAMES):
            with (folder / name).open("rb") as file:
                shutil.copyfileobj(file, self._files[name])
        with (folder / SYSTEMS).open(encoding="utf-8") as lines:
            for line in lines:
                self._note_system(*json.loads(line))
        self.tokens, self.examples = self.tokens + told["tokens"], self.examples + told["examples"]
        self._sequences, self._letters = self._sequences + len(ends), self._letters + told["files"][NAMES][0]

    def flush(self) -> None:
        """Writes what is in memory. Bits that do not fill a byte stay."""
        whole = len(self._marks) // 8 * 8
        self._put(IDS, np.asarray(self._ids, self._type))
        self._put(MARKS, np.packbits(np.frombuffer(self._marks[:whole], np.uint8)))
        self._put(ENDS, np.asarray(self._ends, "<u8"))
        self._put(ROWS, np.asarray(self._rows, ROW))
        del self._ids[:], self._marks[:whole], self._ends[:], self._rows[:]

    def finish(self, more: dict[str, Any], besides: Sequence[str] = ()) -> None:
        """Closes the files and writes the manifest, which includes `more` and the hashes of the files `besides`."""
        self.flush()
        self._put(MARKS, np.packbits(np.frombuffer(self._marks, np.uint8)))
        self.close()
        files = {
            name: [path.stat().st_size, file_hash(path)] for name in (*FILES, *besides) if (path := self._folder / name)
        }
        counts = {"examples": self.examples, "tokens": self.tokens, "type": self._type}
        write_sealed(self._folder / MANIFEST, {**counts, "files": files, **more})

    def close(self) -> None:
        """Closes the files."""
        for file in self._files.values():
            file.close()

    def _put(self, name: str, values: np.ndarray) -> None:
        self._files[name].write(values.tobytes())


def prompt_key(prompt: Any) -> int:
    """The hash of a prompt: the same for equal messages, and for equal texts."""
    if isinstance(prompt, str):
        return _number(["text", prompt])
    return _number([[each.role, each.content, each.train, dict(each.extra)] for each in prompt])


def _number(value: Any) -> int:
    return int(digest(value)[:16], 16)
