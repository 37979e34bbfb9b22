"""The models of a recipe in a plan: their sizes and parameter counts."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from togi.core.errors import InputError
from togi.core.outside import read_object
from togi.core.settings import Ref
from togi.core.sources import ModelSource, lineage
from togi.model.folders import converted_folder
from togi.model.inspect import context_of, inspect_model
from togi.model.sizes import Shape
from togi.stages.cost import Cost, Known


def outside(source: ModelSource, store: Path) -> Known:
    """A declared model, if it is on this machine or the recipe names its shape. Raises InputError for a damaged
    folder."""
    if source.shape:
        return _shaped(source)
    if source.kind == "endpoint":
        return Known(why=f"{source.name} is on a server")
    folder = converted_folder(source, store) if source.kind == "package" else None
    away = folder is not None and not folder.exists()
    if away or lineage(source)[-1].kind == "hub":
        return Known(why=f"the sizes of {source.name} are unknown until it is on this machine")
    facts = inspect_model(source, folder=folder, bare=True)
    try:
        shape = Shape.of(facts.config)
    except InputError as error:
        return Known(why=str(error))
    return Known(shape=shape, context=facts.context, tokenizer=facts.tokenizer, template=source.template)


def _shaped(source: ModelSource) -> Known:
    """A model whose configuration comes with the recipe. Raises InputError with the file if it is not a
    configuration."""
    config = read_object(Path(source.shape))
    try:
        shape = Shape.of(config)
    except InputError as error:
        raise InputError(f"{source.shape}: {error}") from None
    return Known(shape=shape, context=context_of(config.get("text_config") or config), template=source.template)


def parameters(inputs: Sequence[Mapping[str, "str | ModelSource"]], store: Path) -> dict[str, dict[str, int]]:
    """The parameter counts of the declared models that stages read, by name, if their sizes are known."""
    models = {Ref(ref).name: at for each in inputs for ref, at in each.items() if isinstance(at, ModelSource)}
    known = {name: outside(source, store).shape for name, source in models.items()}
    found = {name: shape.counts for name, shape in known.items() if shape is not None}
    return {name: {**asdict(counts), "total": counts.total} for name, counts in found.items()}


def expected(known: Sequence[Known], model: Known, cost: Cost) -> tuple[float, int] | None:
    """Mean and largest number of tokens of records that do not exist yet, as the recipe expects them, with a note in
    `cost`; None if neither the recipe nor the model bounds the longest record."""
    longest = [_longest(came, model) for came in known]
    if None in longest or not known:
        return None
    rows = [came.records or 1 for came in known]
    mean = sum(n * ((came.tokens or 0) + came.added) for n, came in zip(rows, known, strict=True)) / sum(rows)
    added = max(came.added for came in known)
    if not any(came.tokens for came in known):
        cost.notes.append(f"length: at most {added} tokens, because nothing is written yet")
        return mean, max(most for most in longest if most is not None)
    note = "length: as the recipe expects it"
    cost.notes.append(note + (f", with at most {added} tokens of answers that do not exist yet" if added else ""))
    return mean, max(most for most in longest if most is not None)


def _longest(came: Known, model: Known) -> int | None:
    if came.longest is None:
        return model.context
    return min(came.longest + came.added, model.context or came.longest + came.added)
