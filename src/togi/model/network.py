"""Builds a network from a model's folder: the only place where the model library and peft read files of other origin.

All their errors become InputError, and so do faults that they silently ignore (such as missing weights, which would be
random numbers).
"""

import logging
import re
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification
from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES
from transformers.utils import logging as library_logging

from togi.core.errors import InputError
from togi.core.outside import read_object
from togi.core.sources import ADAPTER_CONFIG
from togi.core.strangers import run_stranger
from togi.model.copied import STORED, from_files, is_converted
from togi.model.headers import some
from togi.model.inspect import Facts

library_logging.disable_progress_bar()

T = TypeVar("T")
CLASSES = {"causal": AutoModelForCausalLM, "scorer": AutoModelForSequenceClassification}
ATTENTIONS = {"full_attention", "sliding_attention", "chunked_attention"}
LAYER = re.compile(r"\.\d+\.")


@contextmanager
def _quietly() -> Iterator[None]:
    """Silences the library's reports to the terminal; their important parts become errors here."""
    before = library_logging.get_verbosity()
    library_logging.set_verbosity(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        library_logging.set_verbosity(before)


def foreign(call: Callable[[], T], where: str) -> T:
    """The result of a library call that reads a folder. Converts all its errors to InputError, prefixed by `where`."""
    with _quietly():
        return run_stranger(call, InputError, where)


def read_config(folder: Path) -> Any:
    """The library's configuration of a model folder. Raises InputError if it cannot be read."""
    options = {"trust_remote_code": False, "local_files_only": True}
    return foreign(
        lambda: AutoConfig.from_pretrained(folder, **options), f"{folder}: the model's configuration cannot be read"
    )


def build(facts: Facts, dtype: torch.dtype, kind: str, *, meta: bool = False, encoder: bool = False) -> Any:
    """The network of a whole model's folder, of `kind` causal or scorer. With `meta` its weights take no memory, and
    are checked by their headers only. With `encoder` it is a scorer with bidirectional attention.

    Raises InputError for an architecture that cannot be trained or sampled here, for a model of another kind, and for
    weights that do not fit the configuration.
    """
    config = read_config(facts.folder)
    headless = kind == "scorer" and _brings_head(facts) and not _is_scorer(config)
    if headless:
        config.num_labels = 1
    else:
        check_kind(facts.folder, config, kind)
    cls = _class_of(facts.folder, config, kind, encoder)
    if meta and (facts.weights is None or facts.quantised is not None):
        return _empty(facts.folder, CLASSES[kind], config, dtype)
    options: dict[str, Any] = {"config": config, "dtype": dtype, "output_loading_info": True}
    options |= {"ignore_mismatched_sizes": True, "use_safetensors": True, "local_files_only": True}
    if meta:
        weights = {name: torch.empty(s.shape, dtype=STORED.get(s.dtype), device="meta") for name, s in _stored(facts)}
        call = lambda: cls.from_pretrained(None, state_dict=weights, device_map={"": "meta"}, **options)  # noqa: E731
    elif is_converted(facts, config, dtype):
        call = lambda: from_files(cls, facts.folder, options)  # noqa: E731
    else:
        call = lambda: cls.from_pretrained(facts.folder, trust_remote_code=False, **options)  # noqa: E731
    net, report = foreign(call, f"{facts.folder}: the model cannot be loaded")
    if headless:  # `with_adapter` checks that the adapter has the head
        report["missing_keys"] = [name for name in report["missing_keys"] if not name.startswith("score.")]
    _check_report(facts.folder, report)
    return net


def linear_names(net: torch.nn.Module) -> list[str]:
    """Full names of the linear layers of a network, its output head included."""
    return [name for name, module in net.named_modules() if isinstance(module, torch.nn.Linear)]


def linear_layers(facts: Facts) -> list[str]:
    """Full names of the linear layers of a causal model, without reading its weights. Raises InputError if the library
    cannot build the network."""
    return linear_names(_empty(facts.folder, CLASSES["causal"], read_config(facts.folder), torch.float32))


def _brings_head(facts: Facts) -> bool:
    """Whether an adapter of the model contains a scalar head, as in peft's reward models."""
    saved = [read_object(folder / ADAPTER_CONFIG).get("modules_to_save") for folder in facts.adapters]
    return any(isinstance(names, list) and "score" in names for names in saved)


def _is_scorer(config: Any) -> bool:
    return any(name.endswith("ForSequenceClassification") for name in config.architectures or [])


def _stored(facts: Facts) -> Iterable[tuple[str, Any]]:
    return () if facts.weights is None else facts.weights.items()


def _empty(folder: Path, library: Any, config: Any, dtype: torch.dtype) -> Any:
    """The network for a configuration, without memory for its weights."""
    plain = type(config).from_dict({k: v for k, v in config.to_dict().items() if k != "quantization_config"})
    with torch.device("meta"):
        return foreign(lambda: library.from_config(plain, dtype=dtype), f"{folder}: the model cannot be built")


def _class_of(folder: Path, config: Any, kind: str, encoder: bool) -> Any:
    """The library's class. Raises InputError if it has none, or the architecture is not supported."""
    known = CLASSES[kind]._model_mapping
    found = known.get(type(config), None)  # not by its keys(), which imports the code of all architectures
    cls = found[0] if isinstance(found, list | tuple) else found
    if not encoder:
        check_architecture(folder, config, cls)
    if cls is None:
        what = "language model" if kind == "causal" else "model with a scalar head"
        raise InputError(f"{folder}: {config.model_type} has no {what} in transformers")
    return cls


def check_kind(folder: Path, config: Any, kind: str) -> None:
    """Raises InputError if the weights are a scorer's but `kind` is causal, or the other way round: the library would
    fill the missing head with random numbers."""
    names, scorer = config.architectures or [], _is_scorer(config)
    if names and scorer != (kind == "scorer"):
        what = "a scorer; to score with it, declare it with kind: reward" if scorer else "not a scorer"
        raise InputError(f"{folder}: contains {names[0]}, which is {what}; a {kind} model is needed here")
    if scorer and config.num_labels != 1:
        raise InputError(f"{folder}: its head gives {config.num_labels} numbers; a scorer gives one")


def is_encoder(config: Any) -> bool:
    """Whether a configuration is of an encoder-only model, with bidirectional attention."""
    encoder = config.model_type in MODEL_FOR_MASKED_LM_MAPPING_NAMES
    return encoder and not getattr(config, "is_encoder_decoder", False)


def check_architecture(folder: Path, config: Any, cls: Any) -> None:
    """Raises InputError, with the reason, for any architecture but a decoder whose layers all are attention layers."""
    text = config.get_text_config()
    why = ""
    if getattr(config, "is_encoder_decoder", False):
        why = "it has an encoder in addition to its decoder"
    elif is_encoder(config):
        why = "it is an encoder, with bidirectional attention"
    elif getattr(cls, "_is_stateful", False):
        why = "it keeps a recurrent state, which cannot branch at the end of a shared prompt"
    elif odd := sorted(set(getattr(text, "layer_types", None) or ()) - ATTENTIONS):
        why = f"it has layers of type {', '.join(odd)}, whose state cannot branch at the end of a shared prompt"
    if why:
        raise InputError(
            f"{folder}: {config.model_type} models are not supported: {why}. togi trains and samples decoder-only "
            "models with attention layers (Llama, Qwen, Gemma, Mistral and similar ones)"
        )


def _check_report(folder: Path, report: dict[str, Any]) -> None:
    """Raises InputError for weights that the library would make up or ignore."""
    if found := sorted(report["mismatched_keys"]):
        name, stored, wanted = found[0]
        raise InputError(
            f"{folder}: {len(found)} weights have shapes that differ from config.json: {name} is {list(stored)}, "
            f"expected {list(wanted)}; config.json and the weights are of different models: download both again"
        )
    if missing := sorted(report["missing_keys"]):
        raise InputError(
            f"{folder}: {len(missing)} weights are missing ({some(missing)}) and would be random numbers; download "
            "the weights again, or save the whole model"
        )
    if layers := sorted(name for name in report["unexpected_keys"] if LAYER.search(name)):
        raise InputError(
            f"{folder}: {len(layers)} weights are of layers that config.json does not have ({some(layers)}); "
            "config.json and the weights are of different models: download both again"
        )
