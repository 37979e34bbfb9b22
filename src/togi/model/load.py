"""Loads a model from a package, a hub or a folder: its network, tokenizer and chat template.

A folder saved by togi (`model.save`) also contains `togi.json`: the template, and whether it is a causal model or a
scorer.
"""

import importlib.util
import logging
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoTokenizer

from togi.core.errors import InputError, RecipeError
from togi.core.outside import read_object
from togi.core.sources import CARD, ModelSource
from togi.model.adapter import beneath, lora_library
from togi.model.card import Origin
from togi.model.inspect import Facts, inspect_model, located
from togi.model.mapped import MappedWeights
from togi.model.network import STORED, build, foreign, read_config
from togi.model.packages import package_folder
from togi.model.tokens import add_tokens, give_rows
from togi.text.template import OWN, TEMPLATE_NAMES, Template, file_template, get_template

log = logging.getLogger(__name__)

MODALITY = re.compile("image|video|audio|boi|eoi|boa|eoa")


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedModel:
    """A network of transformers (possibly with an adapter), its fast tokenizer, its template and its name; a model to
    be trained also has its `origin`. `new_tokens` are tokens whose rows are still untrained. `skipped` is the id that a
    loaded scorer passes over at the end of a text, as the library does: its pad token. `whole` gives the whole tensor
    of a weight of `net`, of which this process may have only a part. With `read`, the weights of `net` take no memory
    yet; once they are sharded, `read(net)` reads this process's part of them."""

    net: Any
    tokenizer: Any
    template: Template
    name: str
    new_tokens: tuple[str, ...] = ()
    origin: Origin | None = None
    skipped: int | None = None
    whole: Callable[[Tensor], Tensor] = lambda weight: weight
    read: Callable[[Any], None] | None = None

    @property
    def kind(self) -> str:
        """`causal`, or `scorer` for a network with a scalar head."""
        net = beneath(self.net)
        return "scorer" if type(net).__name__.endswith("ForSequenceClassification") else "causal"


def load(
    source: ModelSource,
    cache: Path,
    *,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    kind: str = "causal",
    nf4: bool = False,
) -> LoadedModel:
    """Loads the model that `source` names; converted weights are stored in `cache`.

    An adapter's folder is loaded onto its base and merged. With `nf4` the decoder's linear layers are then frozen in 4
    bits, which needs bitsandbytes. Raises InputError, with advice, if a folder is missing or damaged, and if weights
    are pickled, do not fit the configuration or are not finite. The same holds for a model of another kind, and for a
    tokenizer that produces ids without embeddings.
    """
    return load_inspected(source, inspect(source, cache), dtype=dtype, device=device, kind=kind, nf4=nf4)


def load_inspected(
    source: ModelSource,
    facts: Facts,
    *,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    kind: str = "causal",
    nf4: bool = False,
) -> LoadedModel:
    """`load` for a model whose facts are known: its files are not inspected again."""
    _told(facts)
    net = _assembled(facts, dtype, kind)
    read = MappedWeights(facts.folder).let_go if nf4 else lambda weight: None  # plain weights stay in memory
    _refuse_not_finite(facts, net.named_parameters(), read)
    tokenizer = load_tokenizer_of(facts)
    check_vocabulary(source.name, net, tokenizer)
    new = add_tokens(tokenizer, source.tokens)
    give_rows(net, tokenizer, new)
    template = _template(source, facts, tokenizer)
    if getattr(net, "is_loaded_in_4bit", False):
        quantised_library().adopt(net)
    if nf4:
        quantised_library().quantise(net, device, read)
    net = net.to(device).eval()
    skipped = net.config.get_text_config().pad_token_id if kind == "scorer" else None
    return LoadedModel(
        net=net, tokenizer=tokenizer, template=template, name=source.name, new_tokens=new, skipped=skipped
    )


def load_unread(source: ModelSource, facts: Facts, *, dtype: torch.dtype, device: torch.device) -> LoadedModel | None:
    """`load_inspected` for a process that will keep only its part of the weights; see `LoadedModel.read`, which raises
    InputError for weights that are not finite. None if the weights can only be read whole."""
    parts = importlib.import_module("togi.model.parts")  # loads all that the library needs for networks
    net = None if source.tokens else parts.without_weights(facts, dtype, device)
    if net is None:
        return None
    _told(facts)
    tokenizer = load_tokenizer_of(facts)
    check_vocabulary(source.name, net, tokenizer)

    def read(net: Any) -> None:
        parts.read_parts(net, facts.folder, device)
        _refuse_not_finite(facts, parts.own_parts(net), lambda weight: None)

    template = _template(source, facts, tokenizer)
    return LoadedModel(net=net.eval(), tokenizer=tokenizer, template=template, name=source.name, read=read)


def inspect(source: ModelSource, cache: Path, *, weights: bool = True) -> Facts:
    """The facts of a model (`inspect_model`); a package's weights are first converted, if they have not been yet."""
    folder = package_folder(source, cache) if source.kind == "package" else None
    return inspect_model(source, weights=weights, folder=folder)


def _told(facts: Facts) -> Facts:
    for note in facts.notes:
        log.warning("%s", note)
    return facts


def load_config(source: ModelSource, cache: Path) -> dict[str, Any]:
    """The configuration of a model, without its weights. Raises InputError as `load` does."""
    return read_config(inspect(source, cache, weights=False).folder).to_dict()


def load_tokenizer(source: ModelSource, cache: Path, kind: str = "causal") -> tuple[Any, Template]:
    """The tokenizer and the template that `load` would return, without the weights.

    The network is built without memory for weights, and checked against the headers of the weight files. Raises
    InputError as `load` does, except for weights that are not finite.
    """
    facts = _told(inspect(source, cache, weights=False))
    net = _assembled(facts, torch.float32, kind, meta=True)
    tokenizer = load_tokenizer_of(facts)
    check_vocabulary(source.name, net, tokenizer)
    add_tokens(tokenizer, source.tokens)
    return tokenizer, _template(source, facts, tokenizer)


def bare_tokenizer(source: ModelSource) -> tuple[Any, Template]:
    """The tokenizer and template in a folder or of a hub's model, without inspecting a model. Raises InputError if they
    cannot be read."""
    facts = Facts(folder=located(source, weights=False), adapters=(), config={}, weights=None)
    tokenizer = load_tokenizer_of(facts)
    return tokenizer, _template(source, facts, tokenizer)


def read_network(folder: Path, dtype: torch.dtype, kind: str) -> Any:
    """The network in a whole model's folder, without tokenizer and template. Raises InputError if it cannot be loaded
    or is of another kind."""
    return build(inspect_model(ModelSource(kind="path", name=str(folder))), dtype, kind)


def quantised_library() -> Any:
    """The module for weights in 4 bits. Raises InputError if its library is not installed."""
    try:
        return importlib.import_module("togi.model.quantised")
    except ImportError as error:
        raise InputError(
            f"lora.base: nf4 needs bitsandbytes, which cannot be imported ({error}): pip install 'togi[quantised]' "
            "or use base: as_loaded"
        ) from error


def _assembled(facts: Facts, dtype: torch.dtype, kind: str, *, meta: bool = False) -> Any:
    """The network of the whole model, with its adapters merged, the innermost first."""
    net = build(facts, dtype, kind, meta=meta)
    for folder in facts.adapters:
        net = lora_library().with_adapter(net, folder, meta=meta)
    return net


def _refuse_not_finite(facts: Facts, weights: Iterable[tuple[str, Tensor]], read: Callable[[Tensor], None]) -> None:
    """Raises InputError for weights that are NaN or infinite, since every result would be too. Calls `read` with each
    weight after checking it."""
    for name, weight in weights:
        known = weight.dtype in STORED.values() and weight.numel()
        if known and not torch.stack(torch.aminmax(weight.detach())).isfinite().all():
            raise InputError(
                f"{facts.top}: weight {name} contains numbers that are not "
                "finite (NaN or infinity), so the model is broken; use an earlier checkpoint, or download it again"
            )
        read(weight)


def load_tokenizer_of(facts: Facts) -> Any:
    """The fast tokenizer of a model on this machine. Raises InputError if there is none."""
    folder = facts.tokenizer
    if folder is None:
        raise InputError(f"{facts.top}: it has no tokenizer; save the tokenizer of the model into the same folder")
    _check_sentencepiece(folder)
    tokenizer = foreign(
        lambda: AutoTokenizer.from_pretrained(folder, trust_remote_code=False, local_files_only=True),
        f"{folder}: the tokenizer cannot be loaded",
    )
    if not tokenizer.is_fast:
        raise InputError(f"{folder}: its tokenizer has no fast version (tokenizer.json), which togi needs for offsets")
    return tokenizer


def _check_sentencepiece(folder: Path) -> None:
    """Raises InputError if only a sentencepiece file holds the tokenizer, and a package that reads it is missing."""
    file = folder / "tokenizer.model"
    if (folder / "tokenizer.json").exists() or not file.is_file():
        return
    with file.open("rb") as handle:
        if handle.read(1) != b"\n":  # the first field of sentencepiece's format; others are text
            return
    readers = {"sentencepiece": "sentencepiece", "protobuf": "google.protobuf"}
    missing = [package for package, module in readers.items() if not _installed(module)]
    if missing:
        raise InputError(
            f"{file}: a sentencepiece tokenizer without tokenizer.json, which {' and '.join(missing)} would read: pip "
            f"install {' '.join(missing)}, or save the tokenizer with a tokenizer.json"
        )


def _installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # not even the package that contains it
        return False


def check_vocabulary(name: str, net: Any, tokenizer: Any) -> None:
    """Raises InputError if the tokenizer produces ids without embeddings; more embeddings than ids are fine.
    Placeholders for images and audio, which never occur in a text, do not count."""
    rows = int(net.get_input_embeddings().weight.shape[0])
    unwritten = [str(token) for key, token in tokenizer.special_tokens_map.items() if MODALITY.search(key)]
    token, largest = max(tokenizer.get_vocab().items(), key=lambda item: (item[0] not in unwritten, item[1]))
    if largest >= rows:
        raise InputError(
            f"{name}: the model has {rows} rows of embeddings, but its tokenizer has ids up to {largest} ({token!r}): "
            f"call model.resize_token_embeddings({largest + 1}) of transformers and save both to one folder, or use "
            "the tokenizer that the model was trained with"
        )


def _template(source: ModelSource, facts: Facts, tokenizer: Any) -> Template:
    """The template that the source names, else the one saved with the model, else the tokenizer's own."""
    if source.template_file:
        return file_template(Path(source.template_file), tokenizer, source.terminator)
    if source.template is not None:
        return get_template(source.template, tokenizer)
    card = facts.top / CARD
    if card.exists():
        return _saved_template(card)
    if tokenizer.chat_template:
        return get_template(OWN, tokenizer)
    names = ", ".join(name for name in TEMPLATE_NAMES if name != OWN)
    raise InputError(
        f"{source.name}: it has no chat template; set `template:` to one of {names}, or to a file: {{file: FILE}}"
    )


def _saved_template(card: Path) -> Template:
    try:
        return Template.from_json(read_object(card)["template"])
    except (KeyError, TypeError, ValueError, AttributeError, RecipeError) as error:
        raise InputError(
            f"{card}: it contains no valid template ({error}); save the model again, or set `template` in the recipe"
        ) from error
