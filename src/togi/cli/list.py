"""`togi list`."""

from typing import Any

import click

from togi.cli.common import json_option, print_json
from togi.core.errors import RecipeError
from togi.stages.table import STAGES
from togi.text.template import TEMPLATES


@click.command()
@click.argument("name", required=False)
@json_option
def command(name: str | None, as_json: bool) -> None:
    """List stage types and their settings, templates and models.

    With the NAME of a stage type: its settings, their defaults and what they mean.
    """
    if name is not None and name not in STAGES:
        raise RecipeError(f"there is no stage type {name!r}; there are: {', '.join(STAGES)}")
    value = stage_settings(name) if name else {"stages": {n: _about(n) for n in STAGES}, "templates": list(TEMPLATES)}
    if as_json:
        print_json(value)
    elif name:
        click.echo(f"{name}: {value['about']}\n")
        for key, row in value["settings"].items():
            mark = " (place)" if row["place"] else ""
            click.echo(f"  {key} = {row['default']}{mark}\n      {row['about']}")
    else:
        for stage, about in value["stages"].items():
            click.echo(f"  {stage:<13} {about}")
        click.echo(f"templates: {', '.join(value['templates'])}")


def _about(name: str) -> str:
    return (STAGES[name].settings.__doc__ or "").strip().split("\n\n")[0].replace("\n    ", " ")


def stage_settings(name: str) -> dict[str, Any]:
    """A stage type's settings with defaults and meanings, as JSON-like values."""
    settings = {}
    for key, info in STAGES[name].settings.model_fields.items():
        default = "required" if info.is_required() else info.get_default(call_default_factory=True)
        shown = default if isinstance(default, str | int | float | bool | None) else str(default)
        place = bool(isinstance(info.json_schema_extra, dict) and info.json_schema_extra.get("place"))
        settings[key] = {"default": shown, "about": info.description or "", "place": place}
    return {"type": name, "about": _about(name), "yields": STAGES[name].yields, "settings": settings}
