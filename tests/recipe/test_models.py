"""Entries of models: which keys identify the model, which only locate it, and which messages refuse a bad entry."""

from pathlib import Path

import pytest

from togi.commands.check import absent_devices
from togi.core.errors import InputError, RecipeError
from togi.core.settings import ModelRef
from togi.core.sources import ModelSource
from togi.recipe.endpoint_spec import EndpointKeys
from togi.recipe.graph import Graph, build
from togi.recipe.model_services import services_of
from togi.recipe.options import Options
from togi.recipe.schema import validate
from togi.recipe.services import ServiceSpec
from togi.recipe.source import read_tree
from togi.recipe.worker import resolved_from_json, resolved_to_json
from togi.stages.arithmetic import model_device
from togi.stages.context import Context, Control, Resolved

RECIPE = """\
name: places
models:
  base: {path: model, template: chatml}
  teacher: {ENDPOINT}
  e5: {path: model, kind: embedder, prefix: "query: "}
  served: {path: $tuned, device: cpu}
data:
  seeds: {path: seeds.jsonl}
stages:
  some: {type: synthesize, model: $teacher, examples: $seeds, count: 4}
  few: {type: diversify, input: $some, keep: 2, embedder: $e5}
  tuned: {type: train.sft, init: $base, chats: $talks, steps: 1}
  more: {type: synthesize, model: $served, examples: $few, count: 4}
"""
TALKS = "  talks: {path: talks.jsonl}\n"
ENDPOINT = "url: 'http://127.0.0.1:8000/v1', model: big"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "seeds.jsonl").write_text('{"question": "Why?"}\n')
    (tmp_path / "talks.jsonl").write_text('{"prompt": "Why?", "completion": "So."}\n')
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    return tmp_path


def graph(folder: Path, endpoint: str = ENDPOINT, **replaced: str) -> Graph:
    text = RECIPE.replace("ENDPOINT", endpoint).replace("stages:\n", f"{TALKS}stages:\n")
    for old, new in replaced.items():
        text = text.replace(old, new)
    path = folder / "r.yaml"
    path.write_text(text)
    return build(validate(read_tree(path, ())))


def test_where_an_endpoint_is_and_how_it_is_reached_is_no_part_of_the_fingerprint(folder: Path) -> None:
    before = graph(folder).nodes["some"].fingerprint
    places = [
        "url: ['http://a/v1', 'http://b/v1'], model: big",
        f"{ENDPOINT}, key_env: KEY, protocol: vllm, concurrency: 4, deadline: 9",
        f"{ENDPOINT}, budget: {{tokens: 9, money: 2.5}}, price: {{input: 1, output: 2}}",
        f"{ENDPOINT}, requests_per_minute: 9, tokens_per_minute: 99",
    ]
    assert [graph(folder, place).nodes["some"].fingerprint for place in places] == [before] * len(places)
    here = graph(folder, "path: model").nodes["some"].fingerprint
    served = (
        "path: model, serve: {engine: vllm, python: /usr/bin/python3, args: [--x], ready_seconds: 9}, concurrency: 2"
    )
    assert graph(folder, served).nodes["some"].fingerprint == here
    named = ["revision: R", "tokenizer: me/words", "template: llama3-text"]
    assert all(graph(folder, f"{ENDPOINT}, {one}").nodes["some"].fingerprint != before for one in named)
    assert graph(folder, "url: 'http://127.0.0.1:8000/v1', model: small").nodes["some"].fingerprint != before


def test_the_tokenizer_of_an_endpoint_is_a_folder_beside_the_recipe_or_a_hub_id(folder: Path) -> None:
    assert graph(folder, f"{ENDPOINT}, tokenizer: me/words").recipe.models["teacher"].tokenizer == "me/words"
    words = folder / "words"
    words.mkdir()
    (words / "tokenizer.json").write_text("1")
    found = graph(folder, f"{ENDPOINT}, tokenizer: words")
    assert found.recipe.models["teacher"].tokenizer == str(words.resolve())
    (words / "tokenizer.json").write_text("2")
    assert graph(folder, f"{ENDPOINT}, tokenizer: words").nodes["some"].fingerprint != found.nodes["some"].fingerprint


def test_every_key_of_an_endpoint_but_its_name_and_tokenizer_is_a_runtime_setting() -> None:
    extra = {name: field.json_schema_extra for name, field in EndpointKeys.model_fields.items()}
    assert [name for name, each in extra.items() if each is None] == ["model", "tokenizer"]


@pytest.mark.parametrize(
    ("endpoint", "message"),
    [
        ("url: 'http://a/v1'", "an endpoint .* needs `model`"),
        ("path: model, concurrency: 4", "concurrency is read only with url, found 4"),
        ("path: model, model: big", "model is read only with url, found 'big'"),
        (f"{ENDPOINT}, serve: {{engine: togi}}", "serve starts a server for a local model"),
        ("path: model, serve: {engine: togi}, key_env: KEY", "key_env is read only with url"),
        ("url: 'http://a/v1', path: model, model: big", "exactly one of package, hub, path, url"),
        (f"{ENDPOINT}, protocol: grpc", "models.teacher.protocol: should be 'auto', 'openai'"),
        (f"{ENDPOINT}, budget: {{tokens: 0}}", "models.teacher.budget.tokens: should be greater than or equal to 1"),
        (f"{ENDPOINT}, budget: {{money: 1}}", "budget.money needs `price`, which is not set"),
        ("path: model, device: gpu", "models.teacher.device"),
        ("path: model, prefix: x", "prefix is read only with kind: embedder"),
        ("path: model, kind: embedder, template: chatml", "template is not read with kind: embedder"),
        ("url: [], model: big", r"yaml:4: models\.teacher\.url: should be the base URL .* or several, found \[\]"),
        ("url: '', model: big", "models.teacher.url: should be the base URL .*, found ''"),
        ("url: ['http://a/v1', ''], model: big", "models.teacher.url: .* found \\['http://a/v1', ''\\]"),
        (f"{ENDPOINT}, device: 'cuda:1'", "device is not read with url, because the model does not run here"),
        (f"{ENDPOINT}, tokens: {{add: [<x>]}}", "tokens are not read with url"),
        (f"{ENDPOINT}, template: {{file: t.jinja}}", r"template: \{file: .*t\.jinja\} is read only with `tokenizer`"),
        (f"{ENDPOINT}, template: tokenizer", "template: tokenizer is read only with `tokenizer`"),
        (f"{ENDPOINT}, kind: reward, template: chatml", "template: chatml is read only with `tokenizer`"),
        ("path: $tuned, template: chatml", "template cannot be set for the model of \\$tuned"),
        (
            "path: $nothing",
            "models.teacher.path: needs a stage that gives model .*no stage \\$nothing; there are: \\$tuned",
        ),
        ("path: $few", "needs a stage that gives model \\(kind: causal\\), but \\$few gives prompts"),
    ],
)
def test_entries_that_do_not_fit_are_refused(folder: Path, endpoint: str, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        graph(folder, endpoint)


def test_a_wrong_path_of_a_model_is_not_told_to_be_declared(folder: Path) -> None:
    with pytest.raises(RecipeError, match=r"models\.teacher\.path: the path '~no-such-user/x' cannot be used") as error:
        graph(folder, "path: ~no-such-user/x")
    assert "declare" not in str(error.value)


@pytest.mark.parametrize(
    "endpoint",
    [
        f"{ENDPOINT}, key_env: sk-my-secret",
        f"{ENDPOINT}, key_env: 'my secret'",
        "path: model, key_env: sk_mysecret",
        "url: 'http://me:secret@a/v1', model: big",
        "url: ['http://a/v1', 'http://secret@a/v1'], model: big",
    ],
)
def test_a_key_in_the_recipe_is_not_shown(folder: Path, endpoint: str) -> None:
    with pytest.raises(RecipeError, match=r"models\.teacher") as error:
        graph(folder, endpoint)
    assert "secret" not in str(error.value)


def services(folder: Path, entry: str) -> list[ServiceSpec]:
    return services_of(graph(folder, entry), folder / "store")


def test_a_served_model_is_a_service_for_the_stages_that_ask_it(folder: Path) -> None:
    (found,) = services(folder, "path: model, template: chatml, serve: {engine: togi, args: [--x], ready_seconds: 9}")
    assert (found.name, found.stages, found.ready_seconds) == ("teacher", ("some",), 9)
    name = found.command[found.command.index("--name") + 1]
    words = ["-m", "togi", "serve", str(folder / "model"), "--name", name, "--template", "chatml"]
    words += ["--dtype", "auto", "--threads", str(Options().worker_threads)]
    assert list(found.command[1:]) == [*words, "--host", "{host}", "--port", "{port}", "--x"]
    assert (
        name.startswith("teacher-")
        and name in services(folder, "path: model, template: chatml, serve: {engine: togi}")[0].command
    )
    (other,) = services(folder, "path: model, kind: causal, serve: {engine: vllm, python: /opt/python}")
    (second,) = services(folder, "path: model, device: 'cuda:1', serve: {engine: vllm, python: /opt/python}")
    assert second.command == ("env", "CUDA_VISIBLE_DEVICES=1", *second.command[2:])
    (own,) = services(folder, "path: model, template: chatml, device: 'cuda:1', serve: {engine: togi}")
    assert own.command[own.command.index("--device") + 1] == "cuda:1"
    assert other.command[:5] == ("env", "-u", "PYTHONPATH", "/opt/python", "-m") and "vllm" in other.command[5]


def test_a_server_of_togi_computes_as_the_stages_of_the_run(folder: Path) -> None:
    found = graph(folder, "path: model, template: chatml, serve: {engine: togi}")
    options = {
        "--dtype bfloat16 --threads 3": Options(compute="bfloat16", threads=3),
        "--dtype float32 --host": Options(compute="float32", on="auto"),
    }
    for words, given in options.items():
        (service,) = services_of(found, folder / "store", given)
        assert words in " ".join(service.command)


def test_a_model_that_a_stage_trains_is_served_once_it_is_there(folder: Path) -> None:
    found = graph(folder, "path: $tuned, serve: {engine: togi}")
    (service,) = services_of(found, folder / "store")
    assert str(folder / "store" / found.nodes["tuned"].folder_name / "output" / "model") in service.command
    resolved = found.resolve(found.nodes["some"], folder)["$teacher"]
    context = Context("some", folder, folder, 1, {ModelRef("$teacher"): resolved}, Control(send=lambda event: None))
    context.services = {"teacher": "http://127.0.0.1:7"}
    endpoint = context.endpoint(ModelRef("$teacher"))
    assert endpoint is not None and endpoint.urls == ("http://127.0.0.1:7/v1",) and endpoint.protocol == "togi"
    assert endpoint.model in service.command
    assert resolved_from_json(resolved_to_json(resolved)) == resolved


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ("path: model, serve: {engine: vllm}", r"r\.yaml:4: models\.teacher\.serve: engine vllm needs `python`"),
        ("path: model, template: chatml, serve: {engine: vllm, python: /p}", "uses the model's own template"),
        ("path: model, tokens: {add: [x]}, serve: {engine: togi}", "a model with added tokens cannot be served"),
    ],
)
def test_what_an_engine_cannot_serve_is_refused(folder: Path, entry: str, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        services(folder, entry)


SERVED = "path: model, serve: {engine: vllm, python: /p"


def test_on_a_cluster_the_one_device_of_a_service_is_chosen_there(folder: Path) -> None:
    found = graph(folder, SERVED + "}, device: cuda")
    (spec,) = services_of(found, folder / "store", Options(on="auto"))
    assert "CUDA_VISIBLE_DEVICES" not in " ".join(spec.command) and spec.listening("h", 7)[-3:] == ["h", "--port", "7"]
    (spec,) = services_of(graph(folder, SERVED + "}, device: cpu"), folder / "store", Options(on="auto"))
    assert spec.device == "cpu"


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        (
            SERVED + "}, device: 'cuda:1'",
            r"models\.teacher\.serve: device cuda:1 is fixed to one machine; .* cuda or cpu",
        ),
        (SERVED + ", args: [--tensor-parallel-size=2]}", r"--tensor-parallel-size=2 needs several devices, .* `url`"),
    ],
)
def test_what_a_service_cannot_have_on_a_cluster_is_refused(folder: Path, entry: str, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        services_of(graph(folder, entry), folder / "store", Options(on="auto"))


def test_a_model_that_a_stage_trains_stands_under_models_too(folder: Path) -> None:
    found = graph(folder, "path: model")
    assert found.nodes["more"].parents == ["tuned", "few"]
    direct = graph(folder, "path: model", **{"model: $served": "model: $tuned"})
    assert direct.nodes["more"].fingerprint == found.nodes["more"].fingerprint
    resolved = found.resolve(found.nodes["more"], folder)["$served"]
    assert (resolved.kind, resolved.device) == ("model", "cpu") and resolved.folder is not None
    assert resolved_to_json(resolved)["device"] == "cpu"
    inputs: dict[str, Resolved] = {ModelRef("$served"): resolved}
    context = Context("more", folder, folder, 1, inputs, Control(send=lambda event: None))
    source = context.model(ModelRef("$served"))
    assert source.device == "cpu" and source.name == str(resolved.folder / "output" / "model")
    with pytest.raises(RecipeError, match="these stages wait for each other"):
        graph(folder, "path: model", **{"init: $base": "init: $served"})


def test_an_embedders_prefix_names_what_it_makes_and_its_device_does_not(folder: Path) -> None:
    before = graph(folder, "path: model").nodes["few"].fingerprint
    other = graph(folder, "path: model", **{"query: ": "passage: "}).nodes["few"].fingerprint
    elsewhere = graph(folder, "path: model", **{"kind: embedder": "kind: embedder, device: 'cuda:7'"})
    assert other != before and elsewhere.nodes["few"].fingerprint == before
    with pytest.raises(RecipeError, match=r"stages\.some\.model: needs model, but \$e5 gives embedder"):
        graph(folder, "path: model", **{"model: $teacher": "model: $e5"})


def test_a_device_that_is_not_here_is_a_note_to_check_and_an_error_to_the_stage(folder: Path) -> None:
    recipe = graph(folder, "path: model, device: 'cuda:97'").recipe
    (note,) = absent_devices(recipe.models)
    assert note.startswith("models.teacher.device: cuda:97 is not on this machine")
    with pytest.raises(InputError, match="its device is cuda:97, but this machine has cpu"):
        model_device(ModelSource(kind="path", name="model", device="cuda:97"))
