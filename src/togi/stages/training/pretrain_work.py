"""The work of `train.pretrain`: texts are stored on disk as tokens, and cut into windows as they are drawn."""

import random
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

import numpy as np

from togi.core.errors import InputError
from togi.core.records import Chat, Document, Message
from togi.core.seeds import derive
from togi.core.settings import DocumentsRef
from togi.data.mix import Cursor, Stream, ledger, next_stream, normalised
from togi.model.forest import Sequence as TokenSequence
from togi.model.load import LoadedModel
from togi.objectives.sft import SFT
from togi.stages.base import MODEL_FOLDER
from togi.stages.context import Context
from togi.stages.models import keep_model, load_trainable
from togi.stages.rehearsal_work import Rehearsed, example_rows, weightless
from togi.stages.seen_prompts import keep_marks
from togi.stages.system_turns import REPLACED, replacing
from togi.stages.training.dropped_work import dropped_warning, tell_dropped
from togi.stages.training.example_work import Example
from togi.stages.training.examples_work import Data, told_replaced, window_of
from togi.stages.training.fit_work import TokenTask, fit
from togi.stages.training.pretrain import TrainPretrain
from togi.stages.training.token_files_work import Stored, TokenFile
from togi.stages.training.tokens_work import kept, tokenised
from togi.text.render import render_text
from togi.text.template import leading_text

Text = Document | Chat


def run(settings: TrainPretrain, context: Context) -> None:
    model = load_trainable(context, settings.init, settings, in_parts=True)
    windows = Windows.of(settings, context, model)
    corpora, held_out, told = _read(settings, context, windows)
    mark_N = np.concatenate([texts.column("mark") for texts in corpora.values()])
    keep_marks(context, settings.init, mark_N[mark_N > 0])
    task = PretrainTask(settings, corpora, windows, model, Data([], held_out, told))
    fitted = fit(settings, context, model, task)
    context.counts["out"] = sum(len(texts) for texts in task.corpora.values())
    context.counts["pieces"] = sum(stream.pieces for stream in task.streams)
    context.counts["held_out"] = len(dict.fromkeys(window.id for window in held_out))
    context.counts["validation"] = len(held_out)
    context.summary |= {"step": fitted.step, "validation": fitted.validation, "ledger": ledger(task.streams)}
    keep_model(context, model, context.folder / MODEL_FOLDER, settings)
    tell_dropped(context)


def rehearse(settings: TrainPretrain, context: Context) -> list[Rehearsed]:
    windows = Windows.of(settings, context, weightless(context, settings.init))
    corpora, held_out, told = _read(settings, context, windows)
    for name, message in told:
        context.alarm(name, message)
    return example_rows(windows.model, chain(windows.pieces(chain(*corpora.values())), held_out))


def border(settings: TrainPretrain, context: Context, model: LoadedModel) -> "TextBorder":
    """The converter from texts to tokens. Raises the InputErrors of `Windows.of`."""
    return TextBorder(Windows.of(settings, context, model))


def _read(
    settings: TrainPretrain, context: Context, windows: "Windows"
) -> tuple[dict[str, Stored], Sequence[Example], list[tuple[str, str]]]:
    """The texts of each source by name, the windows of the held-out texts, and warnings."""
    to_tokens = TextBorder(windows)
    files = [_file(settings, context, source.ref, to_tokens) for source in settings.sources]
    corpora: dict[str, Stored] = {}
    held: list[np.ndarray] = []
    before = 0
    for source, file in zip(settings.sources, files, strict=True):
        order = array("q", range(len(file)))
        random.Random(derive(context.seed, "held_out", source.ref.name)).shuffle(order)
        order_N = np.asarray(order, np.uint32)
        count = max(1, round(settings.validation * len(file))) if isinstance(settings.validation, float) else 0
        if count >= len(file):
            raise InputError(
                f"stage {context.name}: {source.ref} has {len(file)} texts, of which {count} are held out, so none are "
                "left to train on; add texts"
            )
        held.append(before + order_N[:count])
        corpora[source.ref.name] = Stored([file], order_N[count:])
        before += len(file)
    held_out = Stored(files, np.concatenate(held))
    if isinstance(settings.validation, DocumentsRef):
        held_out = Stored([_file(settings, context, settings.validation, to_tokens)])
    told = [*told_replaced(context, to_tokens), *dropped_warning(settings, context)]
    if not len(held_out):
        return corpora, (), told
    vocabulary = len(windows.model.tokenizer)
    return corpora, kept(context, "held_out", held_out, windows.length, windows.pieces(held_out), vocabulary), told


def _file(settings: TrainPretrain, context: Context, ref: Any, border: "TextBorder") -> TokenFile:
    file = tokenised(settings, context, ref, border)
    context.count_in(file.more["records"])
    return file


@dataclass(frozen=True, slots=True)
class Windows:
    """Texts as sequences of at most `length` tokens, in which every token except the first carries loss. Documents
    begin with `opening`, whose ids are `bos`."""

    model: LoadedModel
    length: int
    opening: str
    bos: tuple[int, ...]
    eos: int

    @classmethod
    def of(cls, settings: TrainPretrain, context: Context, model: LoadedModel) -> "Windows":
        """Raises InputError if the tokenizer has no end-of-text token, or if a window is larger than a step."""
        tokenizer = model.tokenizer
        if tokenizer.eos_token_id is None:
            raise InputError(f"stage {context.name}: {model.name}'s tokenizer has no eos token to end documents with")
        opening = leading_text(tokenizer) if settings.bos else ""
        bos = tokenizer(opening, add_special_tokens=False)["input_ids"]
        length = window_of(settings.max_length, context, model)
        if length > settings.batch_tokens:
            raise InputError(
                f"stage {context.name}: without max_length a window is the context, {length} tokens, which is "
                f"larger than a step (batch_tokens: {settings.batch_tokens}); set max_length or raise batch_tokens"
            )
        return cls(model, length, opening, tuple(bos), int(tokenizer.eos_token_id))

    def unusable(self, text: Text) -> str | None:
        """Why a text is dropped; None if it is used."""
        if not isinstance(text, Document):
            return None
        if not text.text.strip():
            return "empty"
        return "two_bos" if self.opening and text.text.startswith(self.opening) else None

    def ids(self, text: Text) -> tuple[int, ...]:
        """The ids of a whole text, ending with one end-of-text token."""
        tokenizer = self.model.tokenizer
        if isinstance(text, Document):
            ids = (*self.bos, *tokenizer(text.text, add_special_tokens=False)["input_ids"])
        else:
            ids = tuple(render_text(self.model.template, tokenizer, text.messages))
        return ids if ids[-1] == self.eos else (*ids, self.eos)

    def whole(self, text: Text) -> Example:
        """A text as one sequence, in which no token carries loss yet."""
        ids = self.ids(text)
        prompt = text.id if isinstance(text, Document) else text.messages
        return Example(id=text.id, prompt=prompt, group=(TokenSequence(ids, (False,) * len(ids)),))

    def pieces(self, texts: Iterable[Example]) -> Iterator[Example]:
        """Yields the windows of whole texts. Each begins with the last token of the previous one, which is not scored
        again, so every token is predicted exactly once."""
        for text in texts:
            ids = text.group[0].ids
            for start in range(0, max(len(ids) - 1, 1), self.length - 1):
                part = ids[start : start + self.length]
                marks = (False,) + (True,) * (len(part) - 1)
                yield Example(id=text.id, prompt=text.id, group=(TokenSequence(part, marks),))


@dataclass(slots=True)
class TextBorder:
    """Turns texts into whole sequences of tokens, regardless of the window length. `counts` counts chats whose system
    turn the template replaces."""

    windows: Windows
    counts: Counter[str] = field(default_factory=Counter)
    replaces: Callable[[Sequence[Message]], bool] = field(init=False)

    def __post_init__(self) -> None:
        self.replaces = replacing(self.model.template)

    @property
    def model(self) -> LoadedModel:
        return self.windows.model

    @property
    def key(self) -> Any:
        """The settings that determine a text's tokens."""
        return [self.windows.opening, self.windows.bos, self.windows.eos]

    def __call__(self, text: Text, /) -> Example | str:
        found = self.windows.unusable(text) or self.windows.whole(text)
        if isinstance(text, Chat) and self.replaces(text.messages):
            self.counts[REPLACED] += 1
        return found


class Mixture:
    """Draws the windows of each step, each from the source that is furthest behind its share."""

    def __init__(
        self,
        settings: TrainPretrain,
        corpora: Mapping[str, Stored],
        windows: Windows,
        streams: Sequence[Stream],
    ) -> None:
        self.corpora = corpora
        self.windows = windows
        self.streams = streams
        self.batch_tokens = settings.batch_tokens
        self.tokens = settings.tokens or (settings.steps or 0) * settings.batch_tokens
        self.total_steps = -(-self.tokens // settings.batch_tokens)
        self._cut: dict[str, tuple[int, list[Example]]] = {}

    def take(self, step: int) -> list[Example]:
        """The windows of a step, up to its cumulative number of tokens. The last window may exceed it; the next step
        then gets fewer tokens, but at least one window. The last step ends at the total number of tokens."""
        goal = min((step + 1) * self.batch_tokens, self.tokens)
        taken: list[Example] = []
        while not taken or sum(stream.tokens for stream in self.streams) < goal:
            stream = next_stream(self.streams)
            parts = self._parts(stream)
            taken.append(parts[stream.part])
            stream.drew(len(taken[-1].group[0].ids), last=stream.part + 1 == len(parts))
        return taken

    def _parts(self, stream: Stream) -> list[Example]:
        """The windows of a source's current text, cached until it moves to the next."""
        item = stream.cursor.item()
        if self._cut.get(stream.name, (-1,))[0] != item:
            self._cut[stream.name] = (item, list(self.windows.pieces([self.corpora[stream.name][item]])))
        return self._cut[stream.name][1]

    def metrics(self) -> dict[str, float]:
        return {
            f"{what}/{name}": row[what] for name, row in ledger(self.streams).items() for what in ("tokens", "epochs")
        }

    def state(self) -> dict[str, Any]:
        return {stream.name: stream.state() for stream in self.streams}

    def restore(self, state: Mapping[str, Any]) -> None:
        for stream in self.streams:
            stream.restore(state[stream.name])


class PretrainTask(TokenTask):
    """Cross entropy of all tokens of a mixture."""

    def __init__(
        self,
        settings: TrainPretrain,
        corpora: Mapping[str, Stored],
        windows: Windows,
        model: LoadedModel,
        data: Data,
    ) -> None:
        super().__init__(data, model)
        self.corpora = corpora
        self.windows = windows
        self.shares = dict(zip(corpora, normalised([source.share for source in settings.sources]), strict=True))
        self.streams: list[Stream] = []

    def objective(self, step: int) -> SFT:
        return SFT()

    def longest(self) -> int:
        """The length of a window, or of the longest text if all are shorter."""
        return min(self.windows.length, max(texts.longest() for texts in self.corpora.values()))

    def source(self, settings: TrainPretrain, seed: int) -> Mixture:
        self.streams = [
            Stream(name, self.shares[name], Cursor(len(texts), derive(seed, name)))
            for name, texts in self.corpora.items()
        ]
        return Mixture(settings, self.corpora, self.windows, self.streams)
