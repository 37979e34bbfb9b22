"""A model out of togi: merged safetensors, the adapter alone, or GGUF. Each is read back and compared with the model
before it is called done."""

import logging
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

import torch

from togi.core.errors import InputError, RecipeError
from togi.core.outside import read_object
from togi.core.records import Message, Prompt, SamplingParams
from togi.core.sources import ADAPTER_CONFIG, CARD, ModelSource
from togi.core.tables import say_table
from togi.core.terminal import json_text, say
from togi.model.card import README, stored_dtype
from togi.model.gguf_write import GgufType, write_gguf
from togi.model.likeness import Likeness, likeness, same_tokens
from togi.model.load import LoadedModel, inspect, load, read_network
from togi.model.packages import convert_gguf
from togi.model.save import check_saved, save_model
from togi.rollout.generator import ModelGenerator

log = logging.getLogger(__name__)

Format = Literal["merged", "adapter", "gguf"]
KEPT = {torch.float32: "f32", torch.float16: "f16", torch.bfloat16: "bf16"}
QUESTION = "Who are you, and what can you do?"
LONGEST = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """What to write and where: `kept` is how a GGUF keeps matrices (None: as they are stored); `kind` is causal or
    reward; `question` is put to every form of the model, None to put none."""

    folder: Path
    format: Format
    kept: GgufType | None
    kind: str
    question: str | None


def export(source: ModelSource, cache: Path, wanted: Wanted, as_json: bool) -> None:
    """Writes a model into a new folder and says how near it is to what it was written from.

    Raises RecipeError for what cannot be written so, InputError where what was written is not the model.
    """
    _refuse(source, wanted)
    model = load(source, cache, kind="causal" if wanted.kind == "causal" else "scorer")
    stored = stored_dtype(inspect(source, cache))
    work = {"merged": _merged, "adapter": _adapter, "gguf": _gguf}[wanted.format]
    report = work(_Job(source, cache, model, stored, wanted))
    if as_json:
        say(json_text(report, indent=1))
    else:
        _tell(report, wanted)


@dataclass(frozen=True, slots=True)
class _Job:
    source: ModelSource
    cache: Path
    model: LoadedModel
    stored: torch.dtype
    wanted: Wanted

    def again(self, folder: Path) -> LoadedModel:
        """The model of a folder that was just written."""
        return load(ModelSource(kind="path", name=str(folder)), self.cache, kind=self.model.kind)


def _refuse(source: ModelSource, wanted: Wanted) -> None:
    folder = wanted.folder
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise RecipeError(f"command line: {folder} is there already; name a new folder")
    if wanted.kept is not None and wanted.format != "gguf":
        raise RecipeError("command line: --type goes with --format gguf; other formats keep weights as they are stored")
    if wanted.format == "gguf" and wanted.kind != "causal":
        raise RecipeError("command line: a reward model cannot be written as GGUF; use --format merged")
    if wanted.format == "adapter" and not (source.kind == "path" and (Path(source.name) / ADAPTER_CONFIG).is_file()):
        raise RecipeError(
            f"command line: {source.name} holds no adapter: it was merged, or trained whole; train with "
            "`lora: {save: adapter}` (or both, whose adapter lies in output/adapter), or use --format merged"
        )


# --- the formats ------------------------------------------------------------------------------------------------------


def _merged(job: _Job) -> dict[str, Any]:
    _save(job, job.wanted.folder)
    again = job.again(job.wanted.folder)
    forms = [("merged", again)]
    return _report(job, forms, KEPT[job.stored], _files(job.wanted.folder))


def _save(job: _Job, folder: Path) -> None:
    """Saves the whole model; what togi said of it before is said of it again."""
    saved = save_model(job.model, folder, dtype=job.stored)
    source = Path(job.source.name)
    for name in (CARD, README) if job.source.kind == "path" and not (source / ADAPTER_CONFIG).is_file() else ():
        if (source / name).is_file():
            shutil.copyfile(source / name, folder / name)
    if wrong := check_saved(saved, folder):
        raise InputError(f"{folder}: was written, but {wrong[0]}")


def _adapter(job: _Job) -> dict[str, Any]:
    source, folder = Path(job.source.name), job.wanted.folder
    shutil.copytree(source, folder)
    forms = [("adapter", load(ModelSource(kind="path", name=str(folder), beside=str(source.parent)), job.cache))]
    return _report(job, forms, "f32", _files(folder))


def _gguf(job: _Job) -> dict[str, Any]:
    wanted = job.wanted
    kept = wanted.kept or KEPT[job.stored]
    with _beside(wanted.folder) as room:
        _save(job, room / "merged")
        merged = job.again(room / "merged")
        target = room / "out" / f"{wanted.folder.resolve().name}-{kept}.gguf"
        target.parent.mkdir()
        notes = write_gguf(room / "merged", job.model, target, kept)  # type: ignore[arg-type]
        log.info("reading %s back with transformers; this takes a minute or two", target.name)
        convert_gguf(target, room / "back")
        back = job.again(room / "back")
        same_tokens(job.model.tokenizer, back.tokenizer)
        report = _report(job, [("merged", merged), ("gguf", back)], kept, [target.name])
        wanted.folder.mkdir(parents=True, exist_ok=True)
        target.rename(wanted.folder / target.name)
    return report | {"notes": notes}


@contextmanager
def _beside(folder: Path) -> Iterator[Path]:
    """A folder for what is only needed on the way, on the same disk."""
    folder.resolve().parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".togi-export-", dir=folder.resolve().parent) as room:
        yield Path(room)


def _files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


# --- how near it is ---------------------------------------------------------------------------------------------------


def _report(job: _Job, forms: Sequence[tuple[str, LoadedModel]], kept: str, files: Sequence[str]) -> dict[str, Any]:
    """Compares every form with the model. Raises InputError where the last one is another model."""
    causal = job.wanted.kind == "causal"
    report: dict[str, Any] = {"model": job.source.name, "folder": str(job.wanted.folder), "files": list(files)}
    report["kept"] = kept
    if not causal:  # `check_saved` has compared its scores on a probe
        return report
    found = {}
    for name, form in forms:
        near = likeness(job.model, form.net, kept if name != "merged" else KEPT[job.stored])
        found[name] = asdict(near)
    report["likeness"] = found
    last = Likeness(**found[forms[-1][0]])
    if (trouble := last.trouble(kept)) is not None:
        raise InputError(f"what was written as {job.wanted.format} ({kept}) is not the model: {trouble}")
    if job.wanted.question is not None:
        report["question"] = job.wanted.question
        report["answers"] = dict(_answers(job, forms))
    return report


def _answers(job: _Job, forms: Sequence[tuple[str, LoadedModel]]) -> Iterator[tuple[str, str]]:
    """What each form, and the base where it is at hand, answers greedily under the trained model's template."""
    if (base := _base(job)) is not None:
        yield "base", _answer(job, base)
    for name, form in (("trained", job.model), *forms):
        yield name, _answer(job, form.net)


def _answer(job: _Job, net: Any) -> str:
    talk = ModelGenerator(net, job.model.tokenizer, job.model.template, batch_rows=1)
    assert job.wanted.question is not None
    messages = (Message("user", job.wanted.question),)
    params = SamplingParams(temperature=0.0, max_tokens=LONGEST)
    (((answer,),)) = talk.generate([Prompt(id="question", messages=messages)], params)
    return answer.text


def _base(job: _Job) -> Any:
    """The network that the model was trained from, by what its card says; None where it is not at hand."""
    card = Path(job.source.name) / CARD
    said = (read_object(card).get("base") or {}) if job.source.kind == "path" and card.is_file() else {}
    name = said.get("name")
    if not isinstance(name, str):
        return None
    if not _installed(name):
        return None
    folder = inspect(ModelSource(kind="package", name=name), job.cache).folder
    return read_network(folder, torch.float32, "causal").eval()


def _installed(name: str) -> bool:
    try:
        metadata.version(name)
    except metadata.PackageNotFoundError:
        return False
    return True


def _tell(report: dict[str, Any], wanted: Wanted) -> None:
    for name in report["files"]:
        say(f"wrote {wanted.folder / name}")
    for note in report.get("notes", ()):
        say(note)
    if "likeness" in report:
        rows = [
            [name, f"{near['mean']:.2g}", f"{near['worst']:.2g}", f"{near['others']} of {near['tokens']}"]
            for name, near in report["likeness"].items()
        ]
        say_table(
            ["against the model", "log-probability off, mean", "worst", "other tokens (ties)"], rows, right=(1, 2, 3)
        )
    if "answers" in report:
        say_table([report["question"], "greedy answer"], [[name, text] for name, text in report["answers"].items()])
