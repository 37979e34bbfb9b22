"""Asks `commands.plan` for the cost of each stage of a recipe's graph, for `togi plan` and `togi check`."""

import importlib
from pathlib import Path
from typing import Any

from togi.recipe.endpoint_spec import replayed
from togi.recipe.engines import engines
from togi.recipe.graph import Graph
from togi.recipe.hardware import placed
from togi.recipe.model_services import askers
from togi.recipe.store import is_done


def costs(graph: Graph, store: Path, compute: str = "auto") -> dict[str, Any]:
    """The `Cost` of each stage, by name, on the recipe's hardware or on this machine; `compute` is the value of
    --compute."""
    names = ("plan", "plan_machine", "plan_services")
    work, machine, services = (importlib.import_module(f"togi.commands.{name}") for name in names)
    planned = [
        work.PlannedStage(n.name, n.settings, n.inputs, store / n.folder_name, is_done(store / n.folder_name))
        for n in graph.nodes.values()
    ]
    recipe = graph.recipe
    endpoints = {name: found for name in recipe.models if (found := graph.endpoint(name)) is not None}
    around = work.Around(
        machine=machine.Machine(placed(recipe.hardware), recipe.tree.where(("hardware",))),
        prices={name: found.price for name, found in endpoints.items() if found.urls},
        servers=tuple(endpoints),
        devices={name: spec.device for name, spec in recipe.models.items()},
        services=_services(graph, services.Service),
    )
    dtype = recipe.compute_dtype(compute)
    return work.estimates(planned, store, "" if dtype == "auto" else dtype, around)


def _services(graph: Graph, kind: Any) -> list[Any]:
    """The models that the run serves, without those with stored answers, which need almost no memory."""
    sampled = engines(graph.recipe)
    return [
        kind(
            name=name,
            engine=spec.serve.engine,
            kind=spec.kind,
            device=spec.device,
            args=spec.serve.args,
            stages=askers(graph, name),
            samples_for=sampled.get(name, ""),
        )
        for name, spec in graph.recipe.models.items()
        if spec.serve is not None and not replayed(spec)
    ]
