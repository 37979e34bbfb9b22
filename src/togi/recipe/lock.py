"""recipe.lock.yaml: the resolved recipe, with every default written out, each stage's fingerprint, and the licences and
terms that apply to it."""

from io import StringIO
from typing import Any

from ruamel.yaml import YAML

from togi import __version__
from togi.recipe.graph import Graph
from togi.recipe.terms import terms_by_stage


def lock_text(graph: Graph) -> str:
    """The resolved recipe as YAML."""
    recipe = graph.recipe
    value: dict[str, Any] = {
        "name": recipe.name,
        "seed": recipe.seed,
        "togi": __version__,
        "models": {name: spec.model_dump(mode="json", exclude_none=True) for name, spec in recipe.models.items()},
        "data": {name: spec.model_dump(mode="json", exclude_none=True) for name, spec in recipe.data.items()},
        "stages": {
            name: {**node.settings.model_dump(mode="json"), "fingerprint": node.fingerprint}
            for name, node in graph.nodes.items()
        },
    }
    if terms := terms_by_stage(graph):
        value["terms"] = terms
    yaml = YAML()
    yaml.default_flow_style = False
    yaml.width = 120
    out = StringIO()
    yaml.dump(value, out)
    return out.getvalue()
