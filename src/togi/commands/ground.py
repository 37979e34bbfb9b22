"""Grounded answers outside any recipe: first the documents that are relevant to a question, then the answer."""

import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

from togi.client.answers import Failure
from togi.client.client import Client
from togi.client.endpoint import Endpoint
from togi.client.rendering import unread_roles
from togi.client.requests import ChatRequest
from togi.client.store import AnswerStore
from togi.core.errors import InputError
from togi.core.protocols import Request
from togi.core.records import Message, SamplingParams
from togi.core.sampling import Recommended
from togi.core.seeds import derive
from togi.core.sources import ModelSource
from togi.core.tables import say_table
from togi.core.terminal import json_text, say
from togi.data.document_files import LONGEST, Found, Part, read_parts, shown_of
from togi.data.retrieval import Bm25, ByEmbedding, best
from togi.model.embed import SentenceEmbedder
from togi.model.load import LoadedModel, load
from togi.report.formatting import plural
from togi.rollout.local import Sampler
from togi.text.grounded import ANSWER, IDS, MAX_TOKENS, Relevant, asked, asked_again, read_relevant, role_left_out
from togi.text.render import render_prompt
from togi.text.safety import joined

CANNOT_TELL = (
    "note: the server's /tokenize gives no tokens of conversations, so it is unknown whether its template writes the "
    "system prompt and the documents, which a grounded answer needs"
)
ANY_ROLE = (
    "serve a model that was trained for it, or with a template that accepts any role (togi serve --template llama3, "
    "llama3-text, vikhr-nemo)"
)
MOST = 6
"""Documents shown with a question, as in the data of the card."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """The request: `most` parts of at most `longest` characters are shown. `embedder` selects them, or BM25 if it is
    None. `sampling` and the system prompt `safety` are for the answer, not for the ids."""

    documents: Path
    question: str
    most: int = MOST
    longest: int = LONGEST
    embedder: ModelSource | None = None
    max_tokens: int = MAX_TOKENS
    seed: int = 0
    sampling: Recommended | None = None
    safety: str = ""


def ground(model: ModelSource | Endpoint, cache: Path, wanted: Wanted, as_json: bool) -> None:
    """Answers a question from documents in two steps, and prints the documents that were shown and the relevant ones.

    Raises InputError for unreadable documents, a template without a role for documents, and a conversation that is
    longer than the model's context.
    """
    found = read_parts(wanted.documents, wanted.longest, whole=wanted.most)
    chosen = choose(found, wanted, cache)
    if not as_json:
        _tell_documents(found, chosen)
    with _voice(model, cache) as voice:
        answer = ask(voice, chosen, wanted, (lambda text: None) if as_json else _show)
    if as_json:
        say(json_text({"question": wanted.question, "documents": chosen.rows(), **answer.to_json()}))


# --- documents --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Chosen:
    """The parts shown with a question, each with its score if they were selected from more."""

    parts: list[Part]
    scores: list[float] = field(default_factory=list)

    def rows(self) -> list[dict[str, Any]]:
        """The documents by their ids, as JSON-like values."""
        return [self._row(number, part) for number, part in enumerate(self.parts)]

    def _row(self, number: int, part: Part) -> dict[str, Any]:
        place = {"file": part.file, "place": part.place, "part": part.part, "parts": part.parts}
        score = self.scores[number] if self.scores else None
        return {"doc_id": number, "title": part.shown.title, "content": part.shown.content, **place, "score": score}


def choose(found: Found, wanted: Wanted, cache: Path) -> Chosen:
    """All parts in their order if all may be shown; otherwise those that match the question best, the best first."""
    if len(found.parts) <= wanted.most:
        return Chosen(found.parts)
    texts = [f"{part.shown.title or ''}\n{part.shown.content}" for part in found.parts]
    if wanted.embedder is None:
        finder: Bm25 | ByEmbedding = Bm25(texts)
    else:
        finder = ByEmbedding(texts, SentenceEmbedder(wanted.embedder, cache, prefix=wanted.embedder.prefix))
    ranked = best(finder, wanted.question, wanted.most)
    return Chosen([found.parts[place] for place, _ in ranked], [score for _, score in ranked])


def _tell_documents(found: Found, chosen: Chosen) -> None:
    """Prints the mapping from ids to files and places."""
    many = "" if len(chosen.parts) == len(found.parts) else f", the {len(chosen.parts)} best matches are shown"
    other = "1 file of another kind is" if found.passed == 1 else f"{found.passed:,} files of other kinds are"
    passed = f"; {other} not read" if found.passed else ""
    say(f"{plural(found.documents, 'document')}, {plural(len(found.parts), 'part')}{many}{passed}")
    rows = [[str(number), part.file, _place(part), part.shown.title or "—"] for number, part in enumerate(chosen.parts)]
    say_table(("id", "file", "place", "title"), rows, right=[0])


def _place(part: Part) -> str:
    return part.place if part.parts == 1 else f"{part.place} (part {part.part} of {part.parts})"


# --- the two steps ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Said:
    """The output of a model; `whole` is False if the token limit cut it."""

    text: str
    whole: bool


class Voice(Protocol):
    """A model that answers a conversation, and streams its text to `show`. `check` raises InputError if it does not
    read all turns."""

    def check(self, messages: Sequence[Message]) -> None: ...

    def ask(self, messages: Sequence[Message], params: SamplingParams, show: Callable[[str], None]) -> Said: ...


@dataclass(frozen=True, slots=True)
class Answer:
    """The outputs of both steps, and the ids parsed from the first; None if there are none."""

    first: Said
    relevant: Relevant | None
    second: Said

    def to_json(self) -> dict[str, Any]:
        """The answer as JSON-like values; ids are null if they could not be parsed."""
        ids = self.relevant
        return {
            "said": self.first.text,
            "relevant_doc_ids": None if ids is None else list(ids.ids),
            "unknown_ids": [] if ids is None else list(ids.unknown),
            "repeated_ids": 0 if ids is None else ids.repeated,
            "answer": self.second.text,
            "cut": not self.second.whole,
        }


def ask(voice: Voice, chosen: Chosen, wanted: Wanted, show: Callable[[str], None]) -> Answer:
    """Runs both steps. The second one sees the unchanged output of the first, as in training. Its system prompt may be
    followed by the safety prompt; the first step, whose output is parsed, is always as in training."""
    first = asked(shown_of(chosen.parts), wanted.question)
    steps = (IDS, replace(ANSWER, **({} if wanted.sampling is None else wanted.sampling.values())))
    voice.check(first)
    ids, answer = (replace(step, max_tokens=wanted.max_tokens, seed=wanted.seed) for step in steps)
    said = voice.ask(first, ids, lambda text: None)
    relevant = read_relevant(said.text, len(chosen.parts))
    show(_helped(said, relevant) + "\n\n")
    second = voice.ask(asked_again(_safe(first, wanted.safety), said.text), answer, show)
    show("\n" if second.whole else f" […]\n(cut at {wanted.max_tokens} tokens; raise --max-tokens for more)\n")
    return Answer(said, relevant, second)


def _safe(first: Sequence[Message], safety: str) -> tuple[Message, ...]:
    """The first step with `safety` after its system prompt."""
    system, *rest = first
    return (replace(system, content=joined(system.content, safety)), *rest)


def _helped(said: Said, relevant: Relevant | None) -> str:
    """A line with the documents that the model names, and those that do not exist."""
    if relevant is None:
        return f"relevant documents: not readable in the model's output: {said.text.strip()[:200]!r}"
    told = ", ".join(map(str, relevant.ids)) or "none"
    unknown = f" (left out, because there are no such documents: {', '.join(relevant.unknown)})"
    return f"relevant documents: {told}{unknown if relevant.unknown else ''}"


def _show(text: str) -> None:
    say(text, nl=False)


# --- models -----------------------------------------------------------------------------------------------------------


@contextmanager
def _voice(model: ModelSource | Endpoint, cache: Path) -> Iterator[Voice]:
    if isinstance(model, ModelSource):
        yield Here(load(model, cache))
        return
    with (
        tempfile.TemporaryDirectory(prefix="togi-ground-") as folder,
        closing(AnswerStore(Path(folder) / "answers.sqlite")) as store,
        closing(Client(model, store, run="ground")) as client,
    ):
        yield There(client)


class Here:
    """A model in this process."""

    def __init__(self, model: LoadedModel) -> None:
        self.model = model
        self.sampler = Sampler(model.net, model.tokenizer, model.template.terminator, batch_rows=1)

    def check(self, messages: Sequence[Message]) -> None:
        """Raises InputError if the template leaves out the system prompt or the documents."""
        check_shown(self.model.template.name, self.model.template.prompt_text(messages), messages)

    def ask(self, messages: Sequence[Message], params: SamplingParams, show: Callable[[str], None]) -> Said:
        """Raises InputError if the context is too short."""
        ids = render_prompt(self.model.template, self.model.tokenizer, messages)
        seeds = (derive(params.seed, "ground", len(messages)),)
        number = self.sampler.add(Request(prompt_ids=tuple(ids), params=params, seeds=seeds, stream=True))
        text = ""
        whole = False
        for event in self.sampler.events(number):
            text += event.text
            show(event.text)
            whole = event.completion is not None and event.completion.stop != "length"
        return Said(text, whole)


@dataclass(frozen=True, slots=True)
class There:
    """A model on a server, which renders the conversation itself."""

    client: Client

    def check(self, messages: Sequence[Message]) -> None:
        """Raises InputError if the server's template leaves out the system prompt or the documents, or refuses them;
        prints a note if the server cannot tell."""
        try:
            unread = unread_roles(self.client.endpoint, messages)
        except InputError as refused:
            raise InputError(f"{refused}; a grounded answer needs this conversation: {ANY_ROLE}") from None
        if unread is None:
            say(CANNOT_TELL, err=True)
        elif unread:
            raise InputError(
                f"{self.client.endpoint.urls[0]}: the server's template does not write the turn of the role {unread[0]}"
                f", which a grounded answer needs: {ANY_ROLE}"
            )

    def ask(self, messages: Sequence[Message], params: SamplingParams, show: Callable[[str], None]) -> Said:
        """Raises InputError with the server's message if it refuses the conversation."""
        seed = None if params.temperature == 0 else params.seed
        (found,) = self.client.ask([ChatRequest(messages=tuple(messages), params=params, seed=seed)])
        if isinstance(found, Failure):
            raise InputError(f"{self.client.endpoint.urls[0]}: {found.message}")
        show(found.text)
        return Said(found.text, found.choices[0].finish != "length")


def check_shown(template: str, text: str, messages: Sequence[Message]) -> None:
    """Raises InputError if the rendered text lacks a turn: the template replaces the system prompt, or has no role for
    documents."""
    role = role_left_out(text, messages)
    if role is not None:
        raise InputError(
            f"template {template!r}: it does not write the turn of the role {role} unchanged, which a grounded "
            "answer needs: choose a model that was trained for it, or a template that accepts any role "
            "(--template llama3, llama3-text, vikhr-nemo)"
        )
