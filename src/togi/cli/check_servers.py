"""The checks of model servers by `togi check`."""

import importlib
from dataclasses import asdict, dataclass, field
from typing import Any

from togi.client.endpoint import Endpoint, read_key
from togi.core.errors import InputError, StageError
from togi.core.settings import Ref
from togi.core.terminal import say
from togi.recipe.graph import Graph

ABILITIES = {
    "n": "several samples at once",
    "seed": "seeds",
    "stop": "stop strings",
    "logprobs": "log-probabilities",
    "ids": "token ids",
    "schema": "JSON schemas",
    "scores": "raw scores",
}
"""The abilities that a probe reports, in words."""


@dataclass(slots=True)
class Servers:
    """The findings by model name; `problems` are errors that would end a run."""

    found: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    @property
    def contexts(self) -> dict[str, int]:
        """Context lengths by model name, for servers that report them."""
        return {name: each.facts["context"] for name, each in self.found.items() if "context" in each.facts}

    def to_json(self) -> dict[str, Any]:
        """The findings as plain mappings."""
        return {name: asdict(each) for name, each in self.found.items()}

    def say(self) -> None:
        """Prints the findings."""
        for name, each in self.found.items():
            does = [_in_words(key) for key, value in each.facts.items() if value is True]
            context = f", context {each.facts['context']:,} tokens" if "context" in each.facts else ""
            able = f"; tried: {', '.join(does)}" if does else ""
            say(f"model {name}: {each.model} at {each.url}, protocol {each.facts['protocol']}{context}{able}")
            for alarm in each.alarms:
                say(f"  ALARM {alarm}")


def _in_words(ability: str) -> str:
    name = ability.partition(".")[2]
    return ABILITIES.get(name, ability)


def check(graph: Graph, offline: bool) -> Servers:
    """Asks the servers that stages need. Raises RecipeError if the environment lacks a key."""
    servers = Servers()
    for name, spec in graph.recipe.models.items():
        endpoint, stages = graph.endpoint(name), _askers(graph, name)
        if endpoint is None or not stages:
            continue
        if spec.serve is not None:
            servers.notes.append(
                f"models.{name}: {spec.serve.engine} serves it during a run; it was not started for this check"
            )
            continue
        work = importlib.import_module("togi.commands.check_endpoints")
        servers.problems += work.small_budgets(endpoint, stages)
        if offline:
            servers.notes.append(work.unverified(name, endpoint.urls[0]))
            continue
        read_key(endpoint)
        _ask(servers, work, endpoint, spec.kind, spec.tokenizer is not None)
    return servers


def _ask(servers: Servers, work: Any, endpoint: Endpoint, kind: str, rendered: bool) -> None:
    try:
        servers.found[endpoint.name] = work.check_endpoint(endpoint, kind, rendered)
    except (InputError, StageError) as error:
        servers.problems.append(str(error))


def _askers(graph: Graph, model: str) -> list[tuple[str, Any]]:
    """The stages that refer to a model, by name, with their settings."""
    nodes = graph.nodes.values()
    return [(node.name, node.settings) for node in nodes if any(Ref(ref).name == model for ref in node.inputs)]
