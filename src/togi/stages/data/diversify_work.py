"""The work of `diversify`."""

import numpy as np

from togi.core.records import Prompt
from togi.core.settings import EmbedderRef
from togi.core.sources import ModelSource
from togi.data.diversify import farthest_points
from togi.data.duplicates import copies_by_cosine, copies_by_ngrams, remove_copies
from togi.data.features import HashedNgrams
from togi.model.embed import SentenceEmbedder
from togi.stages.context import Context
from togi.stages.data.diversify import Diversify
from togi.stages.endpoints import embedder


def run(settings: Diversify, context: Context) -> None:
    prompts: list[Prompt] = context.records(settings.input)
    context.count_in(len(prompts))
    copies = copies_by_ngrams([p.text for p in prompts], settings.max_jaccard, settings.ngram)
    kept, drops = remove_copies(prompts, copies, stage=context.name, reason="near_duplicate_ngrams")
    context.drop_all(drops)
    vectors_NW = _embed(settings, context, [p.text for p in kept])
    alike = copies_by_cosine(vectors_NW, settings.max_cosine)
    vectors_NW = vectors_NW[[copy is None for copy in alike]]
    kept, drops = remove_copies(kept, alike, stage=context.name, reason="near_duplicate_embedding")
    context.drop_all(drops)
    chosen = farthest_points(vectors_NW, settings.keep)
    taken = np.zeros(len(kept), dtype=bool)
    taken[chosen] = True
    for prompt, is_taken in zip(kept, taken, strict=True):
        if not is_taken:
            context.drop(prompt, "over_budget")
    if len(chosen) < settings.keep:
        context.alarm(
            "under_budget",
            f"only {len(chosen)} different records are left of {len(prompts)}, {settings.keep} were asked for: make "
            "more drafts upstream, or lower keep",
            value=len(chosen),
            threshold=settings.keep,
        )
    context.write("prompts", [kept[i] for i in chosen])


def _embed(settings: Diversify, context: Context, texts: list[str]) -> np.ndarray:
    chosen = settings.embedder
    if chosen is None:
        return HashedNgrams().embed(texts)
    if isinstance(chosen, EmbedderRef):
        return embedder(context, chosen).embed(texts)
    kind = "package" if chosen.path is None else "path"
    source = ModelSource(kind=kind, name=str(chosen.path or chosen.package))
    return SentenceEmbedder(source, context.cache, prefix=chosen.prefix).embed(texts)
