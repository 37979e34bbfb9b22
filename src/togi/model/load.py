"""Models in: from a package, a hub or a folder to a network, its tokenizer and its chat template.

A folder saved by togi (`model.save`) also holds `togi.json`: the template, and whether it is a causal model or a
scorer.
"""

import importlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
)
from transformers.utils import logging as library_logging

from togi.core.errors import InputError
from togi.core.files import read_json
from togi.core.sources import ADAPTER_CONFIG, ModelSource, adapter_base
from togi.model.packages import package_folder
from togi.text.template import OWN, TEMPLATE_NAMES, Template, get_template

library_logging.disable_progress_bar()

CARD = "togi.json"
CLASSES = {"causal": AutoModelForCausalLM, "scorer": AutoModelForSequenceClassification}


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedModel:
    """A network of transformers (or one with an adapter around it), its fast tokenizer, its template and its name."""

    net: Any
    tokenizer: Any
    template: Template
    name: str

    @property
    def kind(self) -> str:
        """`causal`, or `scorer` for a network with a scalar head."""
        net = self.net.get_base_model() if isinstance(self.net, PeftModel) else self.net
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
    """Loads the model that `source` names; what has to be converted is kept in `cache`.

    An adapter's folder is loaded onto its base and merged. With `nf4` the decoder's linear layers are then frozen in 4
    bits, which needs bitsandbytes. Raises InputError, with what to do, for a missing folder,
    configuration, tokenizer or template, for weights that are pickles, and for a model of another kind.
    """
    place = _place(source, cache)
    revision = source.revision if source.kind == "hub" else "main"
    base = _base(place)
    if isinstance(place, Path) and base is not None:
        net = _with_adapter(place, base, cache, dtype, kind)
    else:
        net = read_network(place, dtype, kind, revision)
    tokenizer = _tokenizer(_tokenizer_place(place, cache), revision)
    template = _template(source, place, tokenizer)
    if nf4:
        quantised_library().quantise(net, device)
    net = net.to(device).eval()
    return LoadedModel(net=net, tokenizer=tokenizer, template=template, name=source.name)


def load_config(source: ModelSource, cache: Path) -> dict[str, Any]:
    """The configuration of a model, without its weights. Raises InputError as `load` does."""
    place = _place(source, cache)
    base = _base(place)
    if base is not None:
        place = base.name
    try:
        return AutoConfig.from_pretrained(place, revision=source.revision, trust_remote_code=False).to_dict()
    except (OSError, ValueError) as error:
        raise InputError(f"{place}: the model's configuration cannot be read: {error}") from error


def quantised_library() -> Any:
    """The module that knows 4 bits. Raises InputError where its library is not here."""
    try:
        return importlib.import_module("togi.model.quantised")
    except ImportError as error:
        raise InputError(
            f"lora.base: nf4 needs bitsandbytes, which cannot be imported ({error}): pip install 'togi[quantised]' "
            "or use base: as_loaded"
        ) from error


def load_tokenizer(source: ModelSource, cache: Path) -> tuple[Any, Template]:
    """The tokenizer and the template that `load` would give, without the weights. Raises InputError as it does."""
    place = _place(source, cache)
    revision = source.revision if source.kind == "hub" else "main"
    tokenizer = _tokenizer(_tokenizer_place(place, cache), revision)
    return tokenizer, _template(source, place, tokenizer)


def _tokenizer_place(place: Path | str, cache: Path) -> Path | str:
    """Where a model's tokenizer lies: an adapter may leave it to its base."""
    base = _base(place)
    if base is None or (Path(place) / "tokenizer_config.json").exists():
        return place
    return _place(base, cache)


def _base(place: Path | str) -> ModelSource | None:
    """What an adapter's folder lies upon; None for anything else."""
    return adapter_base(place) if isinstance(place, Path) else None


def _place(source: ModelSource, cache: Path) -> Path | str:
    """The folder of a model, or its id on the hub."""
    if source.kind == "package":
        return package_folder(source, cache)
    return source.name if source.kind == "hub" else check_folder(Path(source.name))


def check_folder(folder: Path) -> Path:
    """The folder, if it can be loaded from. Raises InputError, with what to do, if it cannot."""
    if not folder.is_dir():
        raise InputError(f"{folder}: there is no such model folder")
    if (folder / ADAPTER_CONFIG).exists():
        return folder
    if not (folder / "config.json").exists():
        raise InputError(f"{folder}: no config.json in it, so it is not a model folder of transformers")
    if not any(folder.glob("*.safetensors")):
        pickles = sorted(p.name for pattern in ("*.bin", "*.pt", "*.pth", "*.ckpt") for p in folder.glob(pattern))
        found = f"only {pickles[0]}, a pickle, which can run any code when it is read" if pickles else "no weights"
        raise InputError(f"{folder}: {found}; togi reads *.safetensors: convert it with save_pretrained first")
    return folder


def read_network(place: Path | str, dtype: torch.dtype, kind: str, revision: str = "main") -> Any:
    """The network of a folder or hub id alone. Raises InputError where it cannot be loaded or is of another kind."""
    options: dict[str, Any] = {"revision": revision, "trust_remote_code": False}
    try:
        config = AutoConfig.from_pretrained(place, **options)
        _check_kind(place, config, kind)
        return CLASSES[kind].from_pretrained(place, config=config, dtype=dtype, use_safetensors=True, **options)
    except (OSError, ValueError) as error:
        raise InputError(f"{place} (revision {revision}): the model cannot be loaded: {error}") from error


def _check_kind(place: Path | str, config: Any, kind: str) -> None:
    """Raises InputError where a causal model is asked of a scorer's weights or the other way round: the library would
    fill the missing head with random numbers."""
    names = config.architectures or []
    scorer = any(name.endswith("ForSequenceClassification") for name in names)
    if names and scorer != (kind == "scorer"):
        raise InputError(
            f"{place}: holds {names[0]}, which is {'a' if scorer else 'no'} scorer; a {kind} model is needed"
        )
    if scorer and config.num_labels != 1:
        raise InputError(f"{place}: its head gives {config.num_labels} numbers; a scorer gives one")


def _with_adapter(place: Path, base: ModelSource, cache: Path, dtype: torch.dtype, kind: str) -> Any:
    """The base of an adapter's folder with the adapter merged."""
    if not any(place.glob("adapter_model.safetensors")):
        raise InputError(f"{place}: an {ADAPTER_CONFIG} without adapter_model.safetensors; save the adapter again")
    net = read_network(_place(base, cache), dtype, kind, base.revision)
    return PeftModel.from_pretrained(net, str(place)).merge_and_unload()  # type: ignore[operator]


def _tokenizer(place: Path | str, revision: str) -> Any:
    if isinstance(place, Path) and not any(
        (place / name).exists() for name in ("tokenizer.json", "tokenizer_config.json")
    ):
        raise InputError(f"{place}: no tokenizer in it; save the tokenizer of the model into the same folder")
    try:
        tokenizer = AutoTokenizer.from_pretrained(place, revision=revision, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise InputError(f"{place} (revision {revision}): the tokenizer cannot be loaded: {error}") from error
    if not tokenizer.is_fast:
        raise InputError(f"{place}: its tokenizer has no fast version (tokenizer.json), which togi needs for offsets")
    return tokenizer


def _template(source: ModelSource, place: Path | str, tokenizer: Any) -> Template:
    """The template that is asked for by name, else the one saved with the model, else the tokenizer's own."""
    if source.template is not None:
        return get_template(source.template, tokenizer)
    card = place / CARD if isinstance(place, Path) else None
    if card is not None and card.exists():
        return Template.from_json(read_json(card)["template"])
    if tokenizer.chat_template:
        return get_template(OWN, tokenizer)
    raise InputError(
        f"{source.name}: no chat template comes with it; name one of {', '.join(TEMPLATE_NAMES)}: `template:`"
    )
