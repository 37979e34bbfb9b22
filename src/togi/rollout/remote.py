"""An engine on a server that accepts the weights of a policy: vLLM, SGLang, or togi's own.

Every sample is its own request with its own seed, so the server needs no notion of the seeds of a group. Its ids are
read as in the embedded engine: they end where their decoded text contains the terminator.
"""

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from typing import Any

from togi.client.live import LiveClient
from togi.client.wire_samples import Sampled, SampleRequest, Weights
from togi.core.errors import StageError
from togi.core.protocols import Event, Request, Tokenizer
from togi.core.records import Completion
from togi.rollout.terminator import Decoder, Ending, StopMatcher

Write = Callable[[Iterable[tuple[str, Any]]], Weights]
"""Writes weights to a folder that the server can read."""


class RemoteEngine:
    """The `Engine` that samples through `client`. Sampling applies only temperature. The server starts on a request at
    once, and works while the caller does something else. `foreign` counts samples from weights other than those last
    published, if the server reports the version of its weights. If several engines use one server, only the one with
    `orders` sends it the weights.
    """

    repeatable = False

    def __init__(
        self, client: LiveClient, tokenizer: Tokenizer, terminator: str, write: Write, *, orders: bool = True
    ) -> None:
        self.client = client
        self.foreign = 0
        self._orders = orders
        self._write = write
        self._decoder = Decoder(tokenizer)
        self._watch = StopMatcher(self._decoder, terminator)
        found = tokenizer(terminator, add_special_tokens=False)["input_ids"]
        self._end_id = int(found[0]) if len(found) == 1 else None
        self._requests: dict[int, tuple[Request, list[Future[Sampled]]]] = {}
        self._next = 0

    def add(self, request: Request) -> int:
        """Requests every sample of a request; returns its id."""
        asked = [self.client.sample(self._request(request, seed)) for seed in request.seeds]
        name, self._next = self._next, self._next + 1
        self._requests[name] = request, asked
        return name

    def events(self, request: int) -> Iterator[Event]:
        """Yields the samples of a request in order; waits for each. Raises StageError if a sample fails."""
        asked, futures = self._requests.get(request, (None, []))
        for index, future in enumerate(futures):
            assert asked is not None
            yield Event(request, index, completion=self._completion(asked, self.client.wait(future)))
        self._requests.pop(request, None)

    def cancel(self, request: int) -> None:
        """Drops a request. An unknown or finished request is no error."""
        for future in self._requests.pop(request, (None, []))[1]:
            future.cancel()

    def publish(self, weights: Iterable[tuple[str, Any]]) -> None:
        """Makes the server load these weights. Raises StageError if it does not, RuntimeError while requests run."""
        if self._requests:
            raise RuntimeError("publish was called while requests are running")
        found = self._write(weights)
        if self._orders:
            self.client.take(found)
        self.client.weights = found
        self.foreign = 0

    def close(self) -> None:
        """Drops all requests and closes the connection."""
        for name in list(self._requests):
            self.cancel(name)
        self.client.close()

    def _request(self, request: Request, seed: int) -> SampleRequest:
        return SampleRequest(
            prompt=request.prompt_ids,
            temperature=request.params.temperature,
            max_tokens=request.params.max_tokens,
            seed=seed,
            terminator=self._watch.terminator,
            end_id=self._end_id,
        )

    def _completion(self, request: Request, found: Sampled) -> Completion:
        """The sample as the embedded engine would return it."""
        self.foreign += found.weights not in (None, self.client.weights and self.client.weights.mark)
        ids, most = found.ids[: request.params.max_tokens], request.params.max_tokens
        context = self._decoder.context(request.prompt_ids)
        ended, length = self._ending(context, ids)
        if ended is None and length < most:
            raise StageError(
                f"model {self.client.endpoint.name}: the server ended an answer after {length} tokens "
                f"({found.finish}), but the answer does not contain {self._watch.terminator!r} and may have {most}. "
                "Raise the server's context (--max-model-len, --context-length), and serve the model that the policy "
                "starts from"
            )
        how = ended or Ending("length", self._watch.text(context, ids))
        logprobs = found.logprobs[:length]
        return Completion(
            text=how.text, stop=how.stop, token_ids=ids[:length], logprobs=logprobs, sampled_logprobs=logprobs
        )

    def _ending(self, context: tuple[int, ...], ids: tuple[int, ...]) -> tuple[Ending | None, int]:
        """How the ids end, and the number of ids that belong to the answer."""
        for length in range(1, len(ids) + 1):
            if (found := self._watch.ending(context, ids[:length])) is not None:
                return found, length
        return None, len(ids)
