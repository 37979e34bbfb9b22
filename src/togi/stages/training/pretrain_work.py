"""The work of `train.pretrain`: texts are written out as they are drawn, so that no corpus is held as tokens."""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

from togi.core.errors import InputError
from togi.core.records import Chat, Document
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
from togi.stages.seen_prompts import keep_learnt
from togi.stages.training.examples_work import Data, Example, window_of
from togi.stages.training.fit_work import TokenTask, fit
from togi.stages.training.pretrain import TrainPretrain
from togi.text.render import render_text
from togi.text.template import leading_text

Text = Document | Chat


def run(settings: TrainPretrain, context: Context) -> None:
    model = load_trainable(context, settings.init, settings)
    windows = Windows.of(settings, context, model)
    corpora, held_out = _read(settings, context, windows)
    chats = (text for texts in corpora.values() for text in texts if isinstance(text, Chat))
    keep_learnt(context, settings.init, (chat.messages for chat in chats))
    task = PretrainTask(settings, corpora, windows, model, Data([], held_out))
    fitted = fit(settings, context, model, task)
    context.counts["out"] = sum(len(texts) for texts in task.corpora.values())
    context.counts["pieces"] = sum(stream.pieces for stream in task.streams)
    context.counts["held_out"] = len(dict.fromkeys(window.id for window in held_out))
    context.counts["validation"] = len(held_out)
    context.summary |= {"step": fitted.step, "validation": fitted.validation, "ledger": ledger(task.streams)}
    keep_model(context, model, context.folder / MODEL_FOLDER, settings)


def rehearse(settings: TrainPretrain, context: Context) -> list[Rehearsed]:
    windows = Windows.of(settings, context, weightless(context, settings.init))
    corpora, held_out = _read(settings, context, windows)
    texts = (text for texts in corpora.values() for text in texts)
    cut = (window for text in texts for window in windows.cut(text))
    return example_rows(windows.model, chain(cut, held_out))


def _read(settings: TrainPretrain, context: Context, windows: "Windows") -> tuple[dict[str, list[Text]], list[Example]]:
    """The texts of each source by its name, and the windows of the held-out ones."""
    corpora: dict[str, list[Text]] = {}
    held: list[Text] = []
    for source in settings.sources:
        texts = []
        records = context.records(source.ref)
        context.count_in(len(records))
        for text in records:
            reason = windows.unusable(text)
            if reason is None:
                texts.append(text)
            else:
                context.drop(text, reason)
        random.Random(derive(context.seed, "held_out", source.ref.name)).shuffle(texts)
        count = max(1, round(settings.validation * len(texts))) if isinstance(settings.validation, float) else 0
        if count >= len(texts):
            raise InputError(
                f"stage {context.name}: {source.ref} has {len(texts)} texts to train on, {count} of them held out; it "
                "needs more"
            )
        held += texts[:count]
        corpora[source.ref.name] = texts[count:]
    if isinstance(settings.validation, DocumentsRef):
        records = context.records(settings.validation)
        context.count_in(len(records))
        held = [text for text in records if windows.unusable(text) is None]
    return corpora, [example for text in held for example in windows.cut(text)]


def _characters(text: Text) -> int:
    return len(text.text) if isinstance(text, Document) else sum(len(message.content) for message in text.messages)


@dataclass(frozen=True, slots=True)
class Windows:
    """Texts as sequences of at most `length` rows in which every token but the first carries loss. Documents begin with
    `opening`, whose ids are `bos`."""

    model: LoadedModel
    length: int
    opening: str
    bos: tuple[int, ...]
    eos: int

    @classmethod
    def of(cls, settings: TrainPretrain, context: Context, model: LoadedModel) -> "Windows":
        """Raises InputError where the tokenizer has no end-of-text token, or a step has no room for a window."""
        tokenizer = model.tokenizer
        if tokenizer.eos_token_id is None:
            raise InputError(f"stage {context.name}: {model.name}'s tokenizer has no eos token to end documents with")
        opening = leading_text(tokenizer) if settings.bos else ""
        bos = tokenizer(opening, add_special_tokens=False)["input_ids"]
        length = window_of(settings.max_length, context, model)
        if length > settings.batch_tokens:
            raise InputError(
                f"stage {context.name}: without max_length a window is the model's context, {length} tokens, which is "
                f"more than a step has (batch_tokens: {settings.batch_tokens}); set max_length or raise batch_tokens"
            )
        return cls(model, length, opening, tuple(bos), int(tokenizer.eos_token_id))

    def unusable(self, text: Text) -> str | None:
        """Why a text is not read, None if it is."""
        if not isinstance(text, Document):
            return None
        if not text.text.strip():
            return "empty"
        return "two_bos" if self.opening and text.text.startswith(self.opening) else None

    def ids(self, text: Text) -> tuple[int, ...]:
        """A whole text, ended by one end-of-text token."""
        tokenizer = self.model.tokenizer
        if isinstance(text, Document):
            ids = (*self.bos, *tokenizer(text.text, add_special_tokens=False)["input_ids"])
        else:
            ids = tuple(render_text(self.model.template, tokenizer, text.messages))
        return ids if ids[-1] == self.eos else (*ids, self.eos)

    def cut(self, text: Text) -> list[Example]:
        """The windows of a text. Each begins with the last token of the one before, which it does not score again, so
        that every token is predicted once."""
        ids = self.ids(text)
        starts = range(0, max(len(ids) - 1, 1), self.length - 1)
        parts = [ids[start : start + self.length] for start in starts]
        return [
            Example(id=text.id, prompt=text.id, group=(TokenSequence(part, (False,) + (True,) * (len(part) - 1)),))
            for part in parts
        ]


class Mixture:
    """Draws windows, each from the source furthest behind its share, until a step has its tokens."""

    def __init__(
        self,
        settings: TrainPretrain,
        corpora: Mapping[str, Sequence[Text]],
        windows: Windows,
        streams: Sequence[Stream],
    ) -> None:
        self.corpora = corpora
        self.windows = windows
        self.streams = streams
        self.batch_tokens = settings.batch_tokens
        self.tokens = settings.tokens or (settings.steps or 0) * settings.batch_tokens
        self.total_steps = -(-self.tokens // settings.batch_tokens)
        self._cut: dict[str, tuple[str, list[Example]]] = {}

    def take(self, step: int) -> list[Example]:
        """Windows up to the step's share of all tokens; the last one may go beyond, and the next step has less, but
        never none. The last step ends where all tokens do."""
        goal = min((step + 1) * self.batch_tokens, self.tokens)
        taken: list[Example] = []
        while not taken or sum(stream.tokens for stream in self.streams) < goal:
            stream = next_stream(self.streams)
            parts = self._parts(stream)
            taken.append(parts[stream.part])
            stream.drew(len(taken[-1].group[0].ids), last=stream.part + 1 == len(parts))
        return taken

    def _parts(self, stream: Stream) -> list[Example]:
        """The windows of the text that a source is at; kept until the next one's turn."""
        text = self.corpora[stream.name][stream.cursor.item()]
        if self._cut.get(stream.name, ("",))[0] != text.id:
            self._cut[stream.name] = (text.id, self.windows.cut(text))
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
        corpora: Mapping[str, Sequence[Text]],
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
        """Of the windows of each source's longest text: texts become tokens only as they are drawn."""
        texts = [max(texts, key=_characters) for texts in self.corpora.values()]
        return max(len(window.group[0].ids) for text in texts for window in self.windows.cut(text))

    def source(self, settings: TrainPretrain, seed: int) -> Mixture:
        self.streams = [
            Stream(name, self.shares[name], Cursor(len(texts), derive(seed, name)))
            for name, texts in self.corpora.items()
        ]
        return Mixture(settings, self.corpora, self.windows, self.streams)
