"""`togi list`: lists stage types with their settings, templates, and runs."""

from collections.abc import Iterator
from typing import Any, Literal, get_args, get_origin

import click
from pydantic import BaseModel

from togi.cli.common import json_option, print_json
from togi.core.errors import RecipeError
from togi.core.settings import classes
from togi.core.tables import say_table
from togi.core.terminal import say
from togi.recipe.hints import meant
from togi.recipe.runs import KnownRun, known_runs
from togi.recipe.sweep import tokens
from togi.report.formatting import moment
from togi.stages.table import STAGES
from togi.text.template import TEMPLATES


@click.command()
@click.argument("name", required=False)
@click.option("--runs", is_flag=True, help="List runs instead, newest first.")
@json_option
def command(name: str | None, runs: bool, as_json: bool) -> None:
    """List stage types and their settings, and templates.

    With the NAME of a stage type: its settings, their defaults and meanings. A default of {} means the defaults of the
    rows below it; x[].y is the setting y of each entry of the list x; x[length].y belongs to entries whose type is
    length.
    """
    if runs:
        _list_runs(as_json)
        return
    if name is not None and name not in STAGES:
        hint = meant(name, list(STAGES)) or f"; there are: {', '.join(STAGES)}"
        raise RecipeError(f"there is no stage type {name!r}{hint}")
    value = stage_settings(name) if name else {"stages": {n: _about(n) for n in STAGES}, "templates": list(TEMPLATES)}
    if as_json:
        print_json(value)
    elif name:
        say(f"{name}: {value['about']}")
        rows = [(key, recipe_text(row["default"]), _described(row)) for key, row in value["settings"].items()]
        say_table(("setting", "default", "meaning"), rows)
    else:
        say_table(("stage type", "what it does"), [*value["stages"].items()])
        say(f"templates: {', '.join(value['templates'])}; `tokenizer`, or none, is the model's own")


def _list_runs(as_json: bool) -> None:
    """Prints each run with its id, for --run of other commands; marks the last run of each recipe."""
    rows = [_run_row(run) for run in known_runs()]
    if as_json:
        print_json(rows)
        return
    shown = [(r["id"], r["name"], r["state"], r["done"], r["started"], r["overrides"], r["last"]) for r in rows]
    say_table(("run", "recipe", "state", "stages done", "started", "changed settings", ""), shown)
    if not rows:
        say("no runs yet; `togi run RECIPE` makes one")
    taken = tokens()
    if taken:
        say(f"tokenised data for training: {taken / 1e6:.1f} MB; `togi clean --yes` removes it")


def _run_row(run: KnownRun) -> dict[str, str]:
    state = run.state
    done = sum(stage["state"] == "done" for stage in state["stages"])
    return {
        "id": run.id,
        "name": state["name"],
        "state": state["state"],
        "done": f"{done} of {len(state['stages'])}",
        "started": moment(state.get("started")),
        "overrides": " ".join(state.get("overrides", [])),
        "last": "last" if run.last else "",
        "folder": str(run.folder),
    }


def recipe_text(value: Any) -> str:
    """A value in the notation of recipes: true, null, [a, b], {key: value}."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {recipe_text(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(recipe_text, value)) + "]"
    if value is None or isinstance(value, bool):
        return "null" if value is None else str(value).lower()
    return str(value)


def _described(row: dict[str, Any]) -> str:
    return " ".join(filter(None, [row["about"], "(place)" if row["place"] else ""]))


def _about(name: str) -> str:
    return _meaning(STAGES[name].settings)


def _meaning(settings: type[BaseModel]) -> str:
    return (settings.__doc__ or "").strip().split("\n\n")[0].replace("\n    ", " ")


def stage_settings(name: str) -> dict[str, Any]:
    """A stage type's settings with defaults and meanings, as JSON-like values; nested ones under dotted keys."""
    settings = dict(setting_rows(STAGES[name].settings))
    return {"type": name, "about": _about(name), "yields": STAGES[name].yields, "settings": settings}


def setting_rows(settings: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """Each setting as (dotted key, {default, about, place, allowed}); nested settings follow their parent.

    `allowed` lists the values of a setting with fixed words; it is empty for others.
    """
    for key, info in settings.model_fields.items():
        nested = [cls for cls in classes(info.annotation) if issubclass(cls, BaseModel)]
        default = "required" if info.is_required() else _changed(info.get_default(call_default_factory=True))
        shown = default if isinstance(default, str | int | float | bool | None) else recipe_text(default)
        place = bool(isinstance(info.json_schema_extra, dict) and info.json_schema_extra.get("place"))
        about = info.description or (_meaning(nested[0]) if len(nested) == 1 else "")
        words = _words(info.annotation)
        yield f"{prefix}{key}", {"default": shown, "about": about, "place": place, "allowed": words}
        if len(nested) == 1:
            yield from setting_rows(nested[0], f"{prefix}{key}{'[]' if _is_list(info.annotation) else ''}.")
        else:
            for variant in nested:
                yield from _variant(variant, f"{prefix}{key}")


def _variant(settings: type[BaseModel], key: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """The rows of one of several kinds that `type` distinguishes; the row of `type` comes first and describes the
    kind."""
    prefix = f"{key}[{settings.model_fields['type'].default}]."
    rows = dict(setting_rows(settings, prefix))
    kind = rows.pop(f"{prefix}type")
    yield f"{prefix}type", {**kind, "about": _meaning(settings)}
    yield from rows.items()


def _words(annotation: Any) -> list[Any]:
    """The values of a literal type with several words, also optional or in a list; empty if there is no choice."""
    parts = [annotation, *get_args(annotation)]
    words = [word for part in parts if get_origin(part) is Literal for word in get_args(part)]
    return words if len(words) > 1 else []


def _is_list(annotation: Any) -> bool:
    return any(get_origin(part) in (tuple, list) for part in (annotation, *get_args(annotation)))


def _changed(value: Any) -> Any:
    """A default; of nested settings only values that differ from their own defaults, which have separate rows."""
    if isinstance(value, BaseModel):
        fields = type(value).model_fields
        return {key: _changed(item) for key, item in value if fields[key].is_required() or item != fields[key].default}
    if isinstance(value, tuple) and any(isinstance(item, BaseModel) for item in value):
        return [_changed(item) for item in value]
    return value
