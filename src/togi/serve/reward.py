"""The scores of a reward model over HTTP: one raw logit per item. Each request is its own batch, so a score does not
depend on other clients' requests."""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import Any, Protocol, TypeVar

from fastapi import FastAPI, Response
from fastapi.responses import JSONResponse

from togi.core.errors import GraderError, InputError
from togi.core.protocols import Scorer, Tokenizer
from togi.core.records import Message
from togi.serve.app import SENT, Served, error, new_app
from togi.serve.bodies import ClassifyBody, ScoreBody
from togi.serve.limits import Counts
from togi.serve.texts import longest_text

T = TypeVar("T")
Item = tuple[tuple[Message, ...], str]


class IdScorer(Scorer, Protocol):
    """A `Scorer` that also scores token ids, or raises InputError if it cannot. `text` returns the text of a
    conversation, `score_and_count` scores with the number of tokens that it reads of each."""

    def score_ids(self, texts: Sequence[Sequence[int]]) -> Sequence[float | GraderError]: ...
    def text(self, messages: tuple[Message, ...], answer: str) -> str: ...
    def score_and_count(self, items: Sequence[Item]) -> tuple[list[float | GraderError], list[int]]: ...


def reward_app(served: Served, scorer: IdScorer, tokenizer: Tokenizer) -> FastAPI:
    """The app that serves `scorer`."""
    thread = ThreadPoolExecutor(1, "scorer")  # one batch after the other

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        await asyncio.to_thread(thread.shutdown)

    app = new_app(served, lambda: True, lifespan)
    routes = _Routes(served, scorer, tokenizer, thread, app.state.counts)
    app.add_api_route("/v1/scores", routes.scores, methods=["POST"], response_model=None, responses=SENT)
    app.add_api_route("/classify", routes.classify, methods=["POST"], response_model=None, responses=SENT)
    return app


class _Routes:
    def __init__(
        self, served: Served, scorer: IdScorer, tokenizer: Tokenizer, thread: ThreadPoolExecutor, counts: Counts
    ) -> None:
        self.served = served
        self.scorer = scorer
        self.tokenizer = tokenizer
        self.thread = thread
        self.counts = counts
        self.most = None if served.limit is None else longest_text(tokenizer, served.limit)

    async def scores(self, body: ScoreBody) -> Response:
        """POST /v1/scores {model, items: [{messages}, {text} or {ids}]} -> {model, scores, errors, usage}, scores and
        errors in the order of `items`. A score is null if its item has an error."""
        self.served.check_name(body.model)
        found, tokens = await self._in_thread(lambda: self._scored(body))
        scores = [None if isinstance(each, GraderError) else each for each in found]
        errors = [str(each) if isinstance(each, GraderError) else None for each in found]
        used = {"prompt_tokens": tokens, "completion_tokens": 0, "total_tokens": tokens}
        self.counts.used(self.served.name, used)
        return JSONResponse({"model": self.served.name, "scores": scores, "errors": errors, "usage": used})

    async def classify(self, body: ClassifyBody) -> Response:
        """POST /classify -> {embedding: [score], meta_info}, or a list of them for several texts; embedding[0] is the
        raw logit. A text that is too long fails the whole request, since the answer has no field for errors."""
        self.served.check_name(body.model)
        given: Any = body.input_ids if body.text is None else body.text
        single = isinstance(given, str) or (bool(given) and isinstance(given[0], int))
        if given == []:
            raise InputError("text, input_ids: the list is empty; give at least one text")
        texts, found = await self._in_thread(lambda: self._scored_ids([given] if single else given))
        read = sum(map(len, texts))
        self.counts.used(self.served.name, {"prompt_tokens": read, "completion_tokens": 0})
        wrong = next((each for each in found if isinstance(each, GraderError)), None)
        if wrong is not None:
            return error(400, str(wrong))
        answers: list[Any] = [
            {"embedding": [score], "meta_info": {"prompt_tokens": len(ids)}}
            for ids, score in zip(texts, found, strict=True)
        ]
        return JSONResponse(answers[0] if single else answers)

    async def _in_thread(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self.thread, work)

    def _scored(self, body: ScoreBody) -> tuple[Sequence[float | GraderError], int]:
        """The scores of a request, and the number of tokens read."""
        if body.items[0].messages is None:
            texts, scores = self._scored_ids([item.ids if item.text is None else item.text for item in body.items])
            return scores, sum(map(len, texts))
        turns = [[turn.message for turn in item.messages or ()] for item in body.items]
        return self._scored_talks([(tuple(each[:-1]), each[-1].content) for each in turns])

    def _scored_talks(self, items: Sequence[Item]) -> tuple[Sequence[float | GraderError], int]:
        """The scores of conversations, and the number of tokens read. As in `_scored_ids`, not all are read."""
        texts = [self.scorer.text(*item) if self._may_not_fit(item) else "" for item in items]
        kept = [item for item, text in zip(items, texts, strict=True) if not self._cannot_fit(text)]
        found, counts = self.scorer.score_and_count(kept) if kept else ([], [])
        scores = iter(found)
        return [self._too_long(text) if self._cannot_fit(text) else next(scores) for text in texts], sum(counts)

    def _may_not_fit(self, item: Item) -> bool:
        """Whether the text of a conversation must be seen before it is scored; else it is rendered only once."""
        messages, answer = item
        return self.most is not None and len(answer) + sum(len(each.content) for each in messages) > self.most

    def _scored_ids(self, texts: Sequence[Any]) -> tuple[list[list[int]], Sequence[float | GraderError]]:
        """The ids of texts, and their scores. A text whose length alone shows that it is too long is not read."""
        ids = [[] if self._cannot_fit(each) else self._ids(each) for each in texts]
        kept = [each for each in ids if each]
        scores = iter(self.scorer.score_ids(kept) if kept else ())
        return ids, [next(scores) if each else self._too_long(texts[place]) for place, each in enumerate(ids)]

    def _cannot_fit(self, text: str | Sequence[int]) -> bool:
        return isinstance(text, str) and self.most is not None and len(text) > self.most

    def _too_long(self, text: str) -> GraderError:
        return GraderError(
            f"{self.served.name}: a text has {len(text):,} characters, but {self.served.limit:,} tokens can hold "
            f"{self.most:,} at most"
        )

    def _ids(self, text: str | Sequence[int] | None) -> list[int]:
        """The ids of a text. No special tokens are added, because a rendered text contains them already."""
        found = self.tokenizer(text, add_special_tokens=False)["input_ids"] if isinstance(text, str) else text
        if not found:
            raise InputError("each text needs at least one token")
        self.served.check_ids(found)
        return list(found)
