"""Models in and out: from a package, a hub or a folder to a network, its tokenizer and its chat template, and back.

A folder saved by togi also holds `togi.json`: the template, and whether it is a causal model or a scorer.
"""

import copy
import importlib
import logging
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
)
from transformers.utils import logging as library_logging

from togi.core.errors import InputError, StageError
from togi.core.files import read_json, write_json
from togi.core.records import Message
from togi.core.sources import ADAPTER_CONFIG, ModelSource, adapter_base
from togi.model.folders import atomic_folder
from togi.model.packages import package_folder
from togi.text.render import render_chat
from togi.text.template import OWN, TEMPLATE_NAMES, Template, get_template

log = logging.getLogger(__name__)
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
        net = _network(place, revision, dtype, kind)
    tokenizer = _tokenizer(_tokenizer_place(place, cache), revision)
    template = _template(source, place, tokenizer)
    if nf4:
        _quantised().quantise(net, device)
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


def _quantised() -> Any:
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


def _network(place: Path | str, revision: str, dtype: torch.dtype, kind: str) -> Any:
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
    net = _network(_place(base, cache), base.revision, dtype, kind)
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


def save_model(model: LoadedModel, folder: Path) -> LoadedModel:
    """Saves the network, its tokenizer and its template, whole or not at all, and reads them back to compare.

    An adapter is merged into the network first, for good: use the model that is returned. Raises StageError if what was
    read back computes something else than what was to be saved, OSError if the disk is full.
    """
    if isinstance(model.net, PeftModel):
        model = replace(model, net=merged(model.net))
    if model.kind == "scorer":
        _keep_last_token(model)
    tokenizer = copy.deepcopy(model.tokenizer)
    tokenizer.chat_template = model.template.bind(tokenizer).to_jinja()
    with atomic_folder(folder) as temporary:
        model.net.save_pretrained(temporary)
        tokenizer.save_pretrained(temporary)
        # a folder's place says nothing about the model, and would make equal models differ
        name = Path(model.name).name if Path(model.name).is_absolute() else model.name
        card = {"format": 1, "kind": model.kind, "name": name, "template": model.template.to_json()}
        write_json(temporary / CARD, card)
        check_saved(model, temporary)
    return model


def merged(net: PeftModel) -> Any:
    """The network with its adapter merged into it, for good; quantised layers become plain ones."""
    if getattr(net.get_base_model(), "is_loaded_in_4bit", False):
        return _quantised().merge_quantised(net)
    return net.merge_and_unload()  # type: ignore[operator]


def _keep_last_token(model: LoadedModel) -> None:
    """Removes the pad id from a scorer's configuration where its conversations end with that very token: the library
    would read the token before. Without a pad id it reads the right one, and refuses to pad."""
    config = model.net.config.get_text_config()
    turns = [Message("user", "a"), Message("assistant", "b")]
    if (
        config.pad_token_id is not None
        and render_chat(model.template, model.tokenizer, turns).ids[-1] == config.pad_token_id
    ):
        log.warning("%s: conversations end with the pad token, so the saved scorer has no pad token", model.name)
        config.pad_token_id = model.net.config.pad_token_id = None


def _outputs(net: Any, ids: Tensor) -> Tensor:
    """What the network gives for ids (1, T): logits, or the score of a scorer."""
    with torch.no_grad():
        return net(input_ids=ids.to(net.device)).logits.detach().cpu()


def check_saved(model: LoadedModel, folder: Path) -> None:
    """Reads a saved network back and compares every weight, and the outputs on a probe.

    Raises StageError if they differ.
    """
    again = CLASSES[model.kind].from_pretrained(folder, dtype=model.net.dtype, use_safetensors=True).eval()
    stored = dict(again.named_parameters())
    for name, weight in model.net.named_parameters():
        if name not in stored or not torch.equal(stored[name], weight.detach().to(stored[name].device)):
            raise StageError(
                f"{folder}: weight {name} is not what was saved; the model would not load as it was trained"
            )
    width = model.net.config.get_text_config().vocab_size
    ids = torch.tensor([[(7919 * (i + 1)) % width for i in range(24)]])
    device = model.net.device
    trained = _outputs(model.net, ids)
    if device.type != "cpu":  # which may not hold both: the trained one gives way for as long as the other is asked
        model.net.to("cpu")
    read = _outputs(again.to(device), ids)
    if device.type != "cpu":
        again.to("cpu")
        model.net.to(device)
    if not torch.allclose(trained, read, rtol=1e-4, atol=1e-4 * float(trained.abs().max())):
        raise StageError(
            f"{folder}: after saving and loading, outputs on a probe differ by {(trained - read).abs().max():.3g}; the "
            "configuration does not describe the network that was trained"
        )
