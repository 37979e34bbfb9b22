"""The input of fingerprints: the defaults that they leave out, and what remains of the shipped recipes.

`python tests/fingerprints_now.py` writes it to tests/vectors/fingerprints.json, which a test compares.
"""

import json
from pathlib import Path
from typing import Any

import pytest

from togi.cli.list import stage_settings
from togi.recipe import graph
from togi.recipe.schema import validate
from togi.recipe.source import read_tree
from togi.stages.table import STAGES

STORED = Path(__file__).parent / "vectors" / "fingerprints.json"
RECIPES = Path(__file__).parent.parent / "recipes"


def stages_now() -> dict[str, Any]:
    """For each stage type: its version, and the defaults of all settings, nested ones too, that fingerprints cover."""
    found = {}
    for name, stage in STAGES.items():
        rows = stage_settings(name)["settings"].items()
        found[name] = {
            "version": stage.version,
            "defaults": {key: row["default"] for key, row in rows if not row["place"]},
        }
    return found


def recipes_now() -> dict[str, Any]:
    """For each stage of each shipped recipe: what its fingerprint covers, with inputs by name."""
    found: dict[str, Any] = {}
    with pytest.MonkeyPatch.context() as changed:
        changed.setattr(graph, "fingerprint", lambda source: source.name)  # no weights are needed for this
        for path in sorted(RECIPES.rglob("*.yaml")):
            nodes = graph.build(validate(read_tree(path))).nodes
            found[str(path.relative_to(RECIPES))] = {
                name: graph.canonical(node.settings, {ref: str(ref) for ref in node.inputs}, [])
                for name, node in nodes.items()
            }
    return found


def now() -> dict[str, Any]:
    """Both, as they are after a round trip through JSON."""
    return json.loads(json.dumps({"store": graph.VERSION, "stages": stages_now(), "recipes": recipes_now()}))


if __name__ == "__main__":
    STORED.write_text(json.dumps(now(), indent=1, sort_keys=True, ensure_ascii=False) + "\n", encoding="utf-8")
