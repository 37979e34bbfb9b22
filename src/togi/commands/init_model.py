"""The model of a recipe that `togi init` writes: inspected as `togi check` does, so that the recipe fits it."""

import json
import os
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path

from togi.core.errors import InputError
from togi.core.files import read_cache
from togi.core.sources import HUB_ID, PACKAGE, ModelSource, missing_path, no_model_folder
from togi.model.inspect import inspect_model, located
from togi.model.package_files import files_of, pieces_of

LONGEST = 1024  # tokens of the longest example, if the model's context allows it
PLAIN = "chatml"  # the template of a model without one
OWN = "tokenizer"  # a package's own template
KEY = b"tokenizer.chat_template"  # precedes the template in a GGUF
HEADER = 1 << 25  # bytes at the beginning of a GGUF that are searched for it


def model_entry(model: str, beside: Path) -> tuple[dict[str, str], int]:
    """The `models:` entry for a recipe in the folder `beside`, with a template if the model has none, and the largest
    number of tokens of an example. Raises InputError if there is no such model, or it is one that `togi check`
    refuses."""
    package = model.removeprefix(PACKAGE)
    if not Path(model).exists() and not HUB_ID.fullmatch(model) and _installed(package):
        return {"package": package, "template": _template_of(package)}, LONGEST
    if model.startswith(PACKAGE):
        raise InputError(f"--model: the package {package!r} is not installed: pip install {package}")
    if Path(model).is_file():
        raise InputError(f"--model: {model}: {no_model_folder(Path(model))}")
    entry = place_of(model, beside, "model", "a model folder, a model's id on the hub (owner/name), or a package")
    kind, name = ("path", model) if "path" in entry else ("hub", model)
    facts = inspect_model(ModelSource(kind=kind, name=name), weights=kind == "path")
    own = _own_template(facts.top) or _own_template(facts.tokenizer or facts.folder)
    longest = min(LONGEST, facts.context or LONGEST)
    return {**entry, **({} if own is not None else {"template": PLAIN})}, longest


def place_of(name: str, beside: Path, option: str, wanted: str) -> dict[str, str]:
    """Where a model or data is, as an entry of a recipe in the folder `beside`: its path, or its id on the hub. Raises
    InputError, which names the `option` and what it takes, for anything else."""
    if Path(name).exists():
        return {"path": os.path.relpath(name, beside)}
    if missing := missing_path(name):
        raise InputError(f"--{option}: {missing}")
    if HUB_ID.fullmatch(name):
        return {"hub": name}
    raise InputError(f"--{option}: found {name!r}, which does not exist; give {wanted}")


def _installed(name: str) -> bool:
    try:
        metadata.version(name)
    except (metadata.PackageNotFoundError, ValueError):
        return False
    return True


def _template_of(package: str) -> str:
    """The template for the weights in a package: their own if they have one. Raises InputError if it has no weights."""
    with pieces_of(ModelSource(kind="package", name=package), files_of(package))[0].open("rb") as handle:
        return OWN if KEY in handle.read(HEADER) else PLAIN


def _own_template(folder: Path) -> str | None:
    """The source of a model's own chat template; of several, all of them."""
    path = folder / "chat_template.jinja"
    if path.exists():
        return path.read_text(encoding="utf-8", errors="replace")
    found = (read_cache(folder / "tokenizer_config.json") or {}).get("chat_template")
    return None if found is None else json.dumps(found)


def template_note(entry: Mapping[str, str], beside: Path, special: Sequence[str]) -> str:
    """What to do if the template of the model `entry` does not write a part of the data; "" if it does. No built-in
    template writes `special`; the template in a package is not read."""
    if "template" not in entry:
        kind, name = ("hub", entry["hub"]) if "hub" in entry else ("path", str(beside / entry["path"]))
        source = _own_template(located(ModelSource(kind=kind, name=name), weights=False)) or ""
        called = "the model's own chat template does not write them"
    else:
        source, called = "", f"the template {entry['template']} does not write them"
    missing = [key for key in special if key not in source]
    if not missing or entry.get("template") == "tokenizer":
        return ""
    return (
        f"the data has {', '.join(missing)}, and {called}, nor does any built-in template, so the model cannot learn "
        "them. Save a chat template that does, such as chat_template.jinja of an instruct model of the same family, "
        "beside the recipe, and write `template: {file: chat_template.jinja}` in the model's entry; or "
        "remove them from the data"
    )
