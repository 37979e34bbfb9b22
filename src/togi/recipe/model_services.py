"""The services that a recipe's models declare (`serve:`): the command that starts each, and the stages that need it."""

import sys
from collections.abc import Sequence
from pathlib import Path

from togi.core.errors import RecipeError
from togi.core.settings import references
from togi.core.sources import PACKAGE, ModelSource
from togi.recipe.endpoint_spec import Serve, replayed
from togi.recipe.engines import INIT, engine_settings
from togi.recipe.graph import Graph, made_by, model_source
from togi.recipe.options import Options
from togi.recipe.schema import ModelSpec
from togi.recipe.services import ServiceSpec
from togi.stages.base import MODEL_FOLDER
from togi.stages.table import STAGES
from togi.stages.training.engine import EngineSettings

NCCL = '{"backend": "nccl"}'
"""How vLLM receives weights over a connection."""
HOST = ("--host", "{host}", "--port", "{port}")
SEVERAL = ("--tensor-parallel-size", "-tp", "--tp-size", "--pipeline-parallel-size", "-pp", "--pp-size")
SEVERAL += ("--data-parallel-size", "-dp", "--dp-size")
"""Arguments of engines that use several devices."""


def services_of(graph: Graph, store: Path, options: Options | None = None) -> list[ServiceSpec]:
    """The services of a recipe, in the order of its models, without those that no stage uses. togi's own servers
    compute as the stages of a run with `options` do: in the same type and, except on a cluster, with the same number of
    threads.

    Raises RecipeError, with the location in the recipe, for a model that its engine cannot serve as declared, or cannot
    serve on a cluster.
    """
    options = options or Options()
    found = _replays(graph)
    for name, spec in graph.recipe.models.items():
        stages, serve = askers(graph, name), spec.serve
        if serve is None or replayed(spec) or not stages:
            continue
        endpoint = graph.endpoint(name)
        assert endpoint is not None
        try:
            if options.on:
                spec = _for_cluster(spec, serve)
            source = _source(graph, spec, store)
            command = _command(spec, serve, source, endpoint.model, _computing(graph, options))
            if changers := engine_settings(graph.recipe, name):
                command = _taking_weights(command, serve, changers)
        except RecipeError as error:
            where = graph.recipe.tree.where(("models", name, "serve"))
            raise RecipeError(f"{where}: models.{name}.serve: {error}") from None
        ready = serve.ready_seconds
        found.append(ServiceSpec(name=name, command=command, stages=stages, ready_seconds=ready, device=spec.device))
    return found


def _replays(graph: Graph) -> list[ServiceSpec]:
    """The services that replay stored answers: one for all models with the same files."""
    shared: dict[tuple[str, ...], list[str]] = {}
    for name, spec in graph.recipe.models.items():
        if spec.serve is not None and replayed(spec) and askers(graph, name):
            answers = ("--answers", *spec.serve.answers) if spec.serve.answers else ()
            words = ("-m", "togi.judge.replay", *spec.serve.verdicts, *HOST, *answers)
            shared.setdefault((sys.executable, *words), []).append(name)
    found = []
    for command, (first, *others) in shared.items():
        asked = {stage for name in (first, *others) for stage in askers(graph, name)}
        stages = tuple(stage for stage in graph.nodes if stage in asked)
        found.append(ServiceSpec(name=first, also=tuple(others), command=command, stages=stages, device="cpu"))
    return found


def _for_cluster(spec: ModelSpec, serve: Serve) -> ModelSpec:
    """The model as it is served on a cluster, where a service sees only the one device that it gets. Raises RecipeError
    for a model that needs more devices, or a particular one."""
    if several := [part for part in serve.args if part.partition("=")[0] in SEVERAL]:
        raise RecipeError(
            f"{several[0]} needs several devices, but on a cluster (--on) a service gets one: start this server "
            "yourself and set its `url`"
        )
    if spec.device.partition(":")[2] not in ("", "0"):
        raise RecipeError(
            f"device {spec.device} is fixed to one machine; on a cluster (--on) Ray chooses the device: use cuda or cpu"
        )
    return spec if spec.device in ("", "cpu") or serve.engine == "togi" else spec.model_copy(update={"device": ""})


def askers(graph: Graph, model: str) -> tuple[str, ...]:
    """The stages that use a served model. A stage loads the model that it trains itself."""
    found = []
    for node in graph.nodes.values():
        trains = STAGES[node.settings.type].job is not None
        asked = [ref for path, ref in references(node.settings) if not (trains and path == INIT)]
        if any(ref.name == model for ref in asked):
            found.append(node.name)
    return tuple(found)


def _taking_weights(command: tuple[str, ...], serve: Serve, changers: Sequence[EngineSettings]) -> tuple[str, ...]:
    """The command of a server whose weights stages with these settings will replace."""
    sleeps = any(each.sleep for each in changers)
    if serve.engine == "togi":
        return (*command, "--updates")
    if serve.engine == "sglang":
        return (*command, *(("--enable-memory-saver",) if sleeps else ()))
    allowed = ("VLLM_SERVER_DEV_MODE=1", "VLLM_ALLOW_RUNTIME_LORA_UPDATING=1")
    said = () if "--logprobs-mode" in serve.args else ("--logprobs-mode", "processed_logprobs")
    sent = any(each.publish == "transfer" for each in changers) and "--weight-transfer-config" not in serve.args
    more = ("--weight-transfer-config", NCCL) if sent else ()
    return ("env", *allowed, *command, *said, *more, *(("--enable-sleep-mode",) if sleeps else ()))


def _source(graph: Graph, spec: ModelSpec, store: Path) -> ModelSource:
    """The model to serve: one from outside, or the folder in which a stage's model will be saved."""
    made = made_by(spec)
    if made is None:
        return model_source(spec)
    return ModelSource(kind="path", name=str(store / graph.nodes[made.name].folder_name / MODEL_FOLDER))


def _computing(graph: Graph, options: Options) -> tuple[str, ...]:
    """The arguments of a togi server that computes as the stages do."""
    threads = () if options.on else ("--threads", str(options.worker_threads))
    return ("--dtype", graph.recipe.compute_dtype(options.compute), *threads)


def _command(
    spec: ModelSpec, serve: Serve, source: ModelSource, name: str, computing: tuple[str, ...]
) -> tuple[str, ...]:
    if source.tokens:
        raise RecipeError("a model with added tokens cannot be served; train and save it first, then serve the result")
    if serve.engine == "togi":
        return (*_python(serve), *_togi(spec, source, name), *computing, *HOST, *serve.args)
    if not serve.python:
        raise RecipeError(f"engine {serve.engine} needs `python`: the Python of the environment that contains it")
    if source.kind == "package":
        raise RecipeError(f"engine {serve.engine} cannot serve a package (GGUF); use engine: togi")
    if source.template is not None:
        raise RecipeError(
            f"engine {serve.engine} uses the model's own template, not {source.template!r}; write the template "
            "into a file (template: {file: FILE}), or use engine: togi"
        )
    words = (_vllm if serve.engine == "vllm" else _sglang)(spec, source, name)
    return (*_on(spec.device), *_python(serve), *words, *HOST, *serve.args)


def _on(device: str) -> tuple[str, ...]:
    """The part of a command that shows a server only the device of its model."""
    kind, _, number = device.partition(":")
    return ("env", f"CUDA_VISIBLE_DEVICES={number or 0}") if kind == "cuda" else ()


def _python(serve: Serve) -> tuple[str, ...]:
    """The interpreter's part of a command. One of another environment must not find togi's own packages."""
    return ("env", "-u", "PYTHONPATH", serve.python) if serve.python else (sys.executable,)


def _togi(spec: ModelSpec, source: ModelSource, name: str) -> Sequence[str]:
    if source.file != "*.gguf":
        raise RecipeError(f"engine togi serves only packages with a single weights file; `file` is {source.file!r}")
    if source.template_file:
        raise RecipeError("engine togi accepts only the name of a template; a template file is not supported yet")
    model = f"{PACKAGE}{source.name}" if source.kind == "package" else source.name
    revision = ("--revision", source.revision) if source.kind == "hub" else ()
    template = () if source.template is None else ("--template", source.template)
    reward = ("--reward",) if spec.kind == "reward" else ()
    device = ("--device", spec.device) if spec.device else ()
    return ("-m", "togi", "serve", model, "--name", name, *revision, *template, *reward, *device)


def _vllm(spec: ModelSpec, source: ModelSource, name: str) -> Sequence[str]:
    pooling = () if spec.kind == "causal" else ("--runner", "pooling")
    return (
        *("-m", "vllm.entrypoints.openai.api_server", "--model", source.name, "--served-model-name", name),
        *_revision(source),
        *(("--chat-template", source.template_file) if source.template_file else ()),
        *pooling,
    )


def _sglang(spec: ModelSpec, source: ModelSource, name: str) -> Sequence[str]:
    return (
        *("-m", "sglang.launch_server", "--model-path", source.name, "--served-model-name", name),
        *_revision(source),
        *(("--chat-template", source.template_file) if source.template_file else ()),
        *(() if spec.kind == "causal" else ("--is-embedding",)),
    )


def _revision(source: ModelSource) -> tuple[str, ...]:
    return ("--revision", source.revision) if source.kind == "hub" else ()
