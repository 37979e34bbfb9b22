"""Exports a model: merged safetensors, only the adapter, or GGUF. Each export is read back and compared with the model
before it is moved to its folder."""

import logging
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch

from togi.commands.bases import base_of
from togi.commands.descent import Descent
from togi.commands.model_card import Trained, write_cards
from togi.commands.new_folder import beside, place, refuse_place
from togi.core.errors import InputError, RecipeError
from togi.core.outside import read_object
from togi.core.records import Message, Prompt, SamplingParams
from togi.core.sampling import Recommended
from togi.core.sources import ADAPTER_CONFIG, CARD, HUB_ID, ModelSource
from togi.core.tables import say_table
from togi.core.terminal import json_text, say
from togi.model.card import README, stored_dtype
from togi.model.gguf_splits import scaled_positions
from togi.model.gguf_write import GgufType, write_gguf
from togi.model.likeness import likeness, same_tokens, score_likeness
from togi.model.load import LoadedModel, inspect, load
from togi.model.packages import convert_gguf
from togi.model.reward_model import check_scalar_head
from togi.model.save import check_saved, recommend, save_model
from togi.report.model_card import llama_options
from togi.rollout.generator import ModelGenerator
from togi.serve.shapes import text_of
from togi.stages.seen_prompts import FILE as LEARNT
from togi.stages.seen_prompts import file_of

log = logging.getLogger(__name__)

Format = Literal["merged", "adapter", "gguf"]
KEPT = {torch.float32: "f32", torch.float16: "f16", torch.bfloat16: "bf16"}
TYPES = {name: kind for kind, name in KEPT.items()}
MOST_LEARNT = 1 << 20
"""Bytes of the largest file with hashes of prompts that an export copies: some 50,000 prompts."""
LONGEST = 64
"""Length in tokens of the greedy answers shown side by side."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """The requested export: `kept` is the type of the matrices in a GGUF (None: the stored type); `kind` is causal or
    reward; `question` is asked of every form of the model (None: no question); `trained` is the run that made the
    model, for its card; `sampling` is recommended in place of that of its recipe."""

    folder: Path
    format: Format
    kept: GgufType | None
    kind: str
    question: str | None
    trained: Trained | None = None
    sampling: Recommended | None = None

    @property
    def recommended(self) -> Recommended | None:
        """The sampling settings to store, if any."""
        return self.sampling or (None if self.trained is None else self.trained.sampling)


@dataclass(frozen=True, slots=True, kw_only=True)
class Form:
    """One form of the exported model: the type of its weights, and a function that loads it. At most one form is in
    memory next to the model."""

    name: str
    kept: str
    load: Callable[[], LoadedModel]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Written:
    """The contents of the temporary folder `out`: the forms in the order of their making, the requested one last, and
    notes."""

    forms: Sequence[Form]
    notes: Sequence[str] = ()


def export(source: ModelSource, cache: Path, wanted: Wanted, as_json: bool) -> None:
    """Writes a model into a new folder and reports its difference from the original.

    Raises RecipeError for an unsupported export, InputError if the export differs from the model; then nothing is left
    behind.
    """
    _refuse(source, wanted)
    wanted = _of_its_kind(source, cache, wanted)
    trained = wanted.trained
    descent = None if trained is None else Descent(trained.run, trained.stage, trained.recipe)
    kind = "causal" if wanted.kind == "causal" else "scorer"
    model = load(source, cache, kind=kind)
    if kind == "scorer":
        check_scalar_head(model)
    stored = stored_dtype(inspect(source, cache))
    with beside(wanted.folder) as room:
        job = _Job(source, cache, model, KEPT[stored], wanted, room, descent)
        written = {"merged": _merged, "adapter": _adapter, "gguf": _gguf}[wanted.format](job)
        written = replace(written, notes=[*written.notes, *_recommended(job), *_learnt(job)])
        if trained is not None and descent is not None:
            facts = replace(trained, sampling=wanted.recommended)
            write_cards(facts, descent, model, Path(source.name), wanted.format, job.out)
        report = _report(job, written)
        place(job.out, wanted.folder)
    if as_json:
        say(json_text(report, indent=1))
    else:
        _tell(report)


def _of_its_kind(source: ModelSource, cache: Path, wanted: Wanted) -> Wanted:
    """`wanted`, changed to a reward model if the configuration shows one. (The kind of a model on a hub is known only
    after its download.) Raises RecipeError as `_refuse` does."""
    named = inspect(source, cache).config.get("architectures") or []
    if not any(str(each).endswith("ForSequenceClassification") for each in named):
        return wanted
    found = replace(wanted, kind="reward")
    _refuse(source, found)
    return found


@dataclass(frozen=True, slots=True)
class _Job:
    source: ModelSource
    cache: Path
    model: LoadedModel
    stored: str
    wanted: Wanted
    room: Path
    descent: Descent | None

    @property
    def out(self) -> Path:
        """The temporary folder that becomes the user's folder."""
        return self.room / "out"

    def form(self, name: str, kept: str, folder: Path) -> Form:
        """The form of the model in `folder`."""
        beside = str(Path(self.source.name).parent)  # where to look for an adapter's base
        source = ModelSource(kind="path", name=str(folder), beside=beside)
        return Form(name=name, kept=kept, load=lambda: load(source, self.cache, kind=self.model.kind))


def _refuse(source: ModelSource, wanted: Wanted) -> None:
    refuse_place(wanted.folder)
    if wanted.kept is not None and wanted.format != "gguf":
        raise RecipeError("command line: --type goes with --format gguf; other formats keep weights as they are stored")
    if wanted.format == "gguf" and wanted.kind != "causal":
        raise RecipeError("command line: a reward model cannot be written as GGUF; use --format merged")
    if wanted.sampling is not None and wanted.kind != "causal":
        raise RecipeError("command line: --sampling: a reward model writes no answers; leave it out")
    if wanted.format == "adapter" and not (source.kind == "path" and (Path(source.name) / ADAPTER_CONFIG).is_file()):
        raise RecipeError(f"command line: {source.name} has no adapter: {_where_adapter(source, wanted)}")


def _where_adapter(source: ModelSource, wanted: Wanted) -> str:
    if wanted.kind == "reward":
        return "a reward model has a head that its base lacks, so it is saved whole; use --format merged"
    beside = Path(source.name).parent / "adapter"
    if source.kind == "path" and (beside / ADAPTER_CONFIG).is_file():
        return f"the adapter is next to it, in {beside}; name that folder"
    return (
        "the adapter was merged, or the full model was trained; train with `lora: {save: adapter}`, or both, or use "
        "--format merged"
    )


# --- the formats ------------------------------------------------------------------------------------------------------


def _merged(job: _Job) -> _Written:
    _save(job, job.out)
    return _Written(forms=[job.form("merged", job.stored, job.out)])


def _save(job: _Job, folder: Path) -> None:
    """Saves the whole model, with the facts that togi had stored about it."""
    save_model(job.model, folder, dtype=TYPES[job.stored])
    source = Path(job.source.name)
    for name in (CARD, README) if job.source.kind == "path" and not (source / ADAPTER_CONFIG).is_file() else ():
        if (source / name).is_file():
            shutil.copyfile(source / name, folder / name)
    if wrong := check_saved(job.model, folder):
        raise InputError(f"{job.source.name}: the export differs from the model: {wrong[0]}")


def _adapter(job: _Job) -> _Written:
    shutil.copytree(job.source.name, job.out)
    return _Written(forms=[job.form("adapter", "f32", job.out)], notes=_base_notes(job.out))


def _gguf(job: _Job) -> _Written:
    kept = job.wanted.kept or job.stored
    target = job.out / f"{job.wanted.folder.resolve().name}-{kept}.gguf"
    job.out.mkdir()
    _save(job, job.room / "merged")
    notes = write_gguf(job.room / "merged", job.model, target, kept)  # type: ignore[arg-type]
    log.info("reading %s back with transformers; this takes a minute or two", target.name)
    rope = job.model.net.config.rope_parameters if scaled_positions(target) else None
    convert_gguf(target, job.room / "back", rope)
    forms = [job.form("merged", job.stored, job.room / "merged"), job.form("gguf", kept, job.room / "back")]
    return _Written(forms=forms, notes=notes)


def _base_notes(folder: Path) -> list[str]:
    """A warning if only this machine has an adapter's base."""
    path = folder / ADAPTER_CONFIG
    base = str(read_object(path).get("base_model_name_or_path"))
    if HUB_ID.fullmatch(base):
        return []
    return [f"its base is a folder on this machine ({base}); for use elsewhere, write a hub id into {path.name}"]


def _recommended(job: _Job) -> list[str]:
    """Stores the recommended sampling settings in the export, unless it is a reward model, and tells where they are."""
    sampling = job.wanted.recommended
    if sampling is None or job.model.kind == "scorer":
        return []
    files = " and ".join(recommend(job.out, sampling))
    if job.wanted.format == "gguf":
        return [f"recommended sampling, which a GGUF cannot contain; for llama-cli: {llama_options(sampling)}"]
    named = f" ({sampling.preset})" if sampling.preset else ""
    return [f"recommended sampling{named}: {sampling.shown}; {f'in {files}' if files else 'no file here keeps it'}"]


def _learnt(job: _Job) -> list[str]:
    """Copies the hashes of the prompts that the model was trained on, if they are known and few, and returns a note.
    Evaluations of the export recognise the prompts by them. A GGUF gets none, because it is evaluated elsewhere."""
    known = file_of(Path(job.source.name)) if job.source.kind == "path" else None
    if known is None or job.wanted.format == "gguf" or known.stat().st_size > MOST_LEARNT:
        return []
    shutil.copyfile(known, job.out / LEARNT)
    return [f"{LEARNT} has hashes of the training prompts, so that `togi evaluate` recognises them"]


def _files(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


# --- comparison with the model ----------------------------------------------------------------------------------------


def _report(job: _Job, written: _Written) -> dict[str, Any]:
    """Compares every form with the model. Raises InputError if the last one differs."""
    report: dict[str, Any] = {"model": job.source.name, "folder": str(job.wanted.folder)}
    report |= {"files": _files(job.out), "kept": written.forms[-1].kept, "notes": [*written.notes]}
    if job.model.kind == "scorer":
        return report | {"scores": score_likeness(job.model, written.forms[-1].load())}
    table: dict[str, str] = {}
    root = None if job.descent is None else job.descent.root
    base = base_of(job.source, job.cache, job.model, root) if job.wanted.question else None
    if base is not None:
        report["notes"] += [base] if isinstance(base, str) else []
        table |= {} if isinstance(base, str) else {"base": _answer(job, base())}
    table |= {"model" if base is None else "trained": _answer(job, job.model.net)}
    report["likeness"] = {}
    for form in written.forms:
        report["likeness"][form.name], table[form.name] = _compare(job, form)
    return report | ({"question": job.wanted.question, "answers": table} if job.wanted.question else {})


def _compare(job: _Job, form: Form) -> tuple[dict[str, Any], str]:
    """The difference of a form from the model, and its answer. Raises InputError if it is another model."""
    model = form.load()
    same_tokens(job.model.tokenizer, model.tokenizer)
    near = likeness(job.model, model.net, form.kept)
    if (trouble := near.trouble(form.kept)) is not None:
        raise InputError(f"the export as {form.name} ({form.kept}) differs from the model: {trouble}")
    return asdict(near), _answer(job, model.net)


def _answer(job: _Job, net: Any) -> str:
    """The greedy answer of a network under the model's template, without its terminator."""
    if job.wanted.question is None:
        return ""
    talk = ModelGenerator(net, job.model.tokenizer, job.model.template, batch_rows=1)
    messages = (Message("user", job.wanted.question),)
    params = SamplingParams(temperature=0.0, max_tokens=LONGEST)
    (((answer,),)) = talk.generate([Prompt(id="question", messages=messages)], params)
    return text_of(answer, job.model.template.bind(job.model.tokenizer).terminator)


def _tell(report: dict[str, Any]) -> None:
    for name in report["files"]:
        say(f"wrote {Path(report['folder']) / name}")
    for note in report["notes"]:
        say(note)
    if "scores" in report:
        rows = [[each["text"], f"{each['here']:.6f}", f"{each['library']:.6f}"] for each in report["scores"]]
        say_table(["score of", "togi", "read back by transformers"], rows, right=(1, 2))
    else:
        _tell_likeness(report["likeness"])
    if "answers" in report:
        say_table([report["question"], "greedy answer"], [[name, text] for name, text in report["answers"].items()])


def _tell_likeness(found: dict[str, dict[str, Any]]) -> None:
    rows = [
        [name, f"{near['mean']:.2g}", f"{near['worst']:.2g}", f"{near['others']} of {near['tokens']}"]
        for name, near in found.items()
    ]
    columns = ["read back", "log-probability off, mean", "worst", "other tokens (ties)"]
    say_table(columns, rows, right=(1, 2, 3))
