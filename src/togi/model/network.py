"""From a model's folder to a network: the one place where the model library and peft read files that others wrote.

Whatever they raise is an InputError here, and what they pass over in silence (weights that are missing, and would be
random numbers) is one too.
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
from togi.model.headers import some
from togi.model.inspect import Facts

library_logging.disable_progress_bar()

T = TypeVar("T")
CLASSES = {"causal": AutoModelForCausalLM, "scorer": AutoModelForSequenceClassification}
ATTENTIONS = {"full_attention", "sliding_attention", "chunked_attention"}
STORED = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
LAYER = re.compile(r"\.\d+\.")


@contextmanager
def _quietly() -> Iterator[None]:
    """Without the library's reports, which go to the terminal: what matters in them is an error here."""
    before = library_logging.get_verbosity()
    library_logging.set_verbosity(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        library_logging.set_verbosity(before)


def foreign(call: Callable[[], T], where: str) -> T:
    """What a call of the libraries gives that reads a folder. Raises InputError, with `where`, for all it raises."""
    with _quietly():
        return run_stranger(call, InputError, where)


def read_config(folder: Path) -> Any:
    """The library's configuration of a model folder. Raises InputError where it cannot be made."""
    options = {"trust_remote_code": False, "local_files_only": True}
    return foreign(
        lambda: AutoConfig.from_pretrained(folder, **options), f"{folder}: the model's configuration cannot be read"
    )


def build(facts: Facts, dtype: torch.dtype, kind: str, *, meta: bool = False, encoder: bool = False) -> Any:
    """The network of a whole model's folder, of `kind` causal or scorer; with `meta` without memory for its weights,
    which are then known by their headers alone. With `encoder` it is a scorer that reads a text from both sides.

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
    else:
        call = lambda: cls.from_pretrained(facts.folder, trust_remote_code=False, **options)  # noqa: E731
    net, report = foreign(call, f"{facts.folder}: the model cannot be loaded")
    if headless:  # `with_adapter` makes sure that it is there
        report["missing_keys"] = [name for name in report["missing_keys"] if not name.startswith("score.")]
    _check_report(facts.folder, report)
    return net


def _brings_head(facts: Facts) -> bool:
    """Whether an adapter lies on the model that holds a scalar head of its own, as peft saves reward models."""
    saved = [read_object(folder / ADAPTER_CONFIG).get("modules_to_save") for folder in facts.adapters]
    return any(isinstance(names, list) and "score" in names for names in saved)


def _is_scorer(config: Any) -> bool:
    return any(name.endswith("ForSequenceClassification") for name in config.architectures or [])


def _stored(facts: Facts) -> Iterable[tuple[str, Any]]:
    return () if facts.weights is None else facts.weights.items()


def _empty(folder: Path, library: Any, config: Any, dtype: torch.dtype) -> Any:
    """The network of a configuration, without memory for its weights."""
    plain = type(config).from_dict({k: v for k, v in config.to_dict().items() if k != "quantization_config"})
    with torch.device("meta"):
        return foreign(lambda: library.from_config(plain, dtype=dtype), f"{folder}: the model cannot be built")


def _class_of(folder: Path, config: Any, kind: str, encoder: bool) -> Any:
    """The library's class. Raises InputError where it has none, and for an architecture that is not supported."""
    known = CLASSES[kind]._model_mapping
    found = known.get(type(config), None)  # asked for its keys, it imports the code of all architectures
    cls = found[0] if isinstance(found, list | tuple) else found
    if not encoder:
        check_architecture(folder, config, cls)
    if cls is None:
        what = "language model" if kind == "causal" else "model with a scalar head"
        raise InputError(f"{folder}: {config.model_type} has no {what} in transformers")
    return cls


def check_kind(folder: Path, config: Any, kind: str) -> None:
    """Raises InputError where a causal model is asked of a scorer's weights or the other way round: the library would
    fill the missing head with random numbers."""
    names, scorer = config.architectures or [], _is_scorer(config)
    if names and scorer != (kind == "scorer"):
        what = "a scorer; to score with it, declare it with kind: reward" if scorer else "no scorer"
        raise InputError(f"{folder}: holds {names[0]}, which is {what}; a {kind} model is needed here")
    if scorer and config.num_labels != 1:
        raise InputError(f"{folder}: its head gives {config.num_labels} numbers; a scorer gives one")


def is_encoder(config: Any) -> bool:
    """Whether a configuration is of an encoder alone, which reads a text from both sides."""
    encoder = config.model_type in MODEL_FOR_MASKED_LM_MAPPING_NAMES
    return encoder and not getattr(config, "is_encoder_decoder", False)


def check_architecture(folder: Path, config: Any, cls: Any) -> None:
    """Raises InputError for what is no decoder with attention alone, by its name and the reason."""
    text = config.get_text_config()
    why = ""
    if getattr(config, "is_encoder_decoder", False):
        why = "it has an encoder beside its decoder"
    elif is_encoder(config):
        why = "it is an encoder, which reads a text from both sides"
    elif getattr(cls, "_is_stateful", False):
        why = "it keeps a recurrent state, which cannot branch at the end of a shared prompt"
    elif odd := sorted(set(getattr(text, "layer_types", None) or ()) - ATTENTIONS):
        why = f"it has layers of type {', '.join(odd)}, whose state cannot branch at the end of a shared prompt"
    if why:
        raise InputError(
            f"{folder}: {config.model_type} models are not supported: {why}. togi trains and samples decoder-only "
            "models whose layers attend (Llama, Qwen, Gemma, Mistral and their like)"
        )


def _check_report(folder: Path, report: dict[str, Any]) -> None:
    """Raises InputError for weights that the library would make up, or leave aside."""
    if found := sorted(report["mismatched_keys"]):
        name, stored, wanted = found[0]
        raise InputError(
            f"{folder}: {len(found)} weights have other shapes than config.json says: {name} is {list(stored)}, wanted "
            f"{list(wanted)}; config.json and the weights are of different models: download both again"
        )
    if missing := sorted(report["missing_keys"]):
        raise InputError(
            f"{folder}: {len(missing)} weights are missing ({some(missing)}), and would be random numbers; download "
            "the weights again, or save the whole model"
        )
    if layers := sorted(name for name in report["unexpected_keys"] if LAYER.search(name)):
        raise InputError(
            f"{folder}: {len(layers)} weights are of layers that config.json does not have ({some(layers)}); "
            "config.json and the weights are of different models: download both again"
        )
