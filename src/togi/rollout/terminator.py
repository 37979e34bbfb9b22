"""Detects the end of an answer: searches the decoded text for terminators and stop strings, whatever tokens spell them.

Text is decoded only when the newest token can have completed a pattern, and then only the last few tokens, so the cost
of a token does not grow with the answer. A character with missing bytes is held back.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from togi.core.protocols import Tokenizer
from togi.core.records import Stop

HOLE = "\ufffd"
"""The replacement character, which decoders write for bytes that do not form a character (yet)."""

CONTEXT = 4
"""Prompt tokens decoded before an answer, since some tokenizers drop a space before the very first token."""

MOST_BYTES = 4
"""The bytes of the longest character; a hole that this many tokens do not complete is final."""

MARGIN = 8
"""Tokens decoded in addition to one per character of the longest pattern."""


@dataclass(frozen=True, slots=True)
class Ending:
    """How an answer ended and its text: with the terminator, without the stop string."""

    stop: Stop
    text: str


class Decoder:
    """Decodes literally: keeps special tokens and spaces. Caches the texts of single tokens."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        self._pieces: dict[int, str] = {}

    def decode(self, ids: Sequence[int]) -> str:
        """The literal text of `ids`."""
        return self.tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False)

    def piece(self, token: int) -> str:
        """The text of one token alone."""
        found = self._pieces.get(token)
        if found is None:
            found = self._pieces[token] = self.decode([token])
        return found

    def whole_from(self, ids: Sequence[int], at: int) -> int:
        """The last index up to `at` where decoding may begin: not inside a character, nor inside a run of byte tokens,
        which some decoders drop entirely if one character in it is broken."""
        while at > 0 and HOLE in self.piece(ids[at]):
            at -= 1
        return at

    def context(self, ids: Sequence[int]) -> tuple[int, ...]:
        """The last tokens of a prompt, which are needed to decode the text after it."""
        return tuple(ids[self.whole_from(ids, max(len(ids) - CONTEXT, 0)) :])

    def after(self, context: Sequence[int], ids: Sequence[int]) -> str:
        """The text of `ids` as it reads after `context`."""
        before = self.decode(context)
        whole = self.decode([*context, *ids])
        return whole[len(before) :] if whole.startswith(before) else self.decode(ids)


class StopMatcher:
    """Looks for a terminator and stop strings in an answer that grows token by token."""

    def __init__(
        self, decoder: Decoder, terminator: str, stop: Sequence[str] = (), end_ids: Sequence[int] = ()
    ) -> None:
        self.decoder = decoder
        self.terminator = terminator
        self.stop = tuple(stop)
        self.end_ids = frozenset(end_ids)
        self.patterns = (terminator, *self.stop)
        self.longest = max(len(pattern) for pattern in self.patterns)
        self._last = tuple({pattern[-1]: None for pattern in self.patterns})
        self._may_end: dict[int, bool] = {}

    def ending(self, context: Sequence[int], ids: Sequence[int]) -> Ending | None:
        """How the answer ended with the last of `ids`, or None. Call it after every token. `context` is the end of the
        prompt."""
        token = ids[-1]
        may_end = self._may_end.get(token)
        if may_end is None:
            may_end = self._may_end[token] = self._can_complete(token)
        if may_end and any(pattern in self._tail(context, ids) for pattern in self.patterns):
            found = self._first(self.decoder.after(context, ids))
            if found is not None:
                return found
        if token in self.end_ids:
            return Ending("stop_string", self.text(context, ids[:-1]))
        return None

    def text(self, context: Sequence[int], ids: Sequence[int]) -> str:
        """The text of an answer that no pattern ended, without the bytes of an unfinished last character."""
        text = ""
        for dropped in range(min(MOST_BYTES, len(ids) + 1)):
            text = self.decoder.after(context, ids[: len(ids) - dropped])
            if not text.endswith(HOLE):
                break
        return text

    def _can_complete(self, token: int) -> bool:
        piece = self.decoder.piece(token)
        # a space may vanish when a token is decoded alone, and a hole may be part of any character
        return HOLE in piece or any(last in piece or last == " " for last in self._last)

    def _tail(self, context: Sequence[int], ids: Sequence[int]) -> str:
        size = self.longest + MARGIN
        while True:
            if size >= len(ids):
                return self.decoder.after(context, ids)
            tail = self.decoder.decode(ids[self.decoder.whole_from(ids, len(ids) - size) :])
            if len(tail) >= self.longest + MARGIN // 2:
                return tail
            size *= 2

    def _first(self, text: str) -> Ending | None:
        ends = [(at + len(p), i) for i, p in enumerate(self.patterns) if (at := text.find(p)) >= 0]
        if not ends:
            return None
        end, which = min(ends)
        if which == 0:
            return Ending("terminator", text[:end])
        return Ending("stop_string", text[: end - len(self.patterns[which])])


class TextStream:
    """Returns the text of a growing answer in pieces; holds back text that may become a terminator or stop string."""

    def __init__(self, watch: StopMatcher, context: Sequence[int]) -> None:
        self.watch = watch
        self._window = list(context)
        self._known = len(self._window)
        self._pending = ""
        self._given = 0

    def feed(self, token: int) -> str:
        """The text that is certain after this token and was not returned before."""
        self._window.append(token)
        decode = self.watch.decoder.decode
        text, sure = decode(self._window), len(self._window)
        if text.endswith(HOLE):  # the last tokens may be bytes of one character; the text before them is certain
            sure = max(sure - (MOST_BYTES - 1), self._known)
            whole, text = text, decode(self._window[:sure])
            if not whole.startswith(text):
                return ""
        before = decode(self._window[: self._known])
        if len(text) <= len(before):
            return ""
        self._pending += text[len(before) :]
        known = self.watch.decoder.context(self._window[:sure])
        self._window, self._known = [*known, *self._window[sure:]], len(known)
        return self._give(len(self._pending) - self._held())

    def finish(self, ending: Ending) -> str:
        """The rest of the text, without the terminator."""
        text = ending.text
        if ending.stop == "terminator":
            text = text[: len(text) - len(self.watch.terminator)]
        return text[self._given :]

    def _held(self) -> int:
        """The number of last characters that begin a pattern."""
        longest = min(self.watch.longest - 1, len(self._pending))
        for size in range(longest, 0, -1):
            end = self._pending[-size:]
            if any(pattern.startswith(end) for pattern in self.watch.patterns):
                return size
        return 0

    def _give(self, count: int) -> str:
        piece, self._pending = self._pending[:count], self._pending[count:]
        self._given += len(piece)
        return piece
