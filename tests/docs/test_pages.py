"""The documentation: generated pages are up to date, nothing is left out, links work, recipes fit."""

import ast
import importlib
import re
import sys
from typing import get_args

import pytest
from click.testing import CliRunner
from places import ROOT

from togi.cli import COMMANDS, main
from togi.core.settings import classes
from togi.recipe import graph
from togi.recipe.schema import DataSpec, ModelSpec, RecipeHead, validate
from togi.recipe.source import read_tree
from togi.rewards.settings import GuardSettings, RewardSettings
from togi.stages.table import STAGES

DOCS = ROOT / "docs"
PAGES = sorted(path.relative_to(DOCS).as_posix() for path in DOCS.rglob("*.md"))


@pytest.fixture(scope="module")
def generate():
    sys.path.insert(0, str(DOCS))
    try:
        return importlib.import_module("generate")
    finally:
        sys.path.pop(0)


def text(page):
    return (DOCS / page).read_text(encoding="utf-8")


def test_generated_pages_are_up_to_date(generate):
    pages = generate.pages()
    assert [page for page, wanted in pages.items() if page not in PAGES or text(page) != wanted] == [], (
        "run `make docs`"
    )
    assert [page for page in PAGES if page.startswith("stages/") and page not in pages] == []


def test_every_command_stage_and_setting_has_its_place(generate):
    assert [name for name in COMMANDS if f"## togi {name}\n" not in text("reference.md")] == []
    assert [name for name in STAGES if f"[`{name}`]" not in text("stages/index.md")] == []
    top = [key for cls in (RecipeHead, ModelSpec, DataSpec) for key in cls.model_fields]
    assert [key for key in top if f"| `{key}` |" not in text("recipe.md")] == []
    for name, stage in STAGES.items():
        page = text(generate.stage_page(name))
        assert [key for key in stage.settings.model_fields if f"| `{key}` |" not in page] == [], name


def test_every_gate_term_and_guard_has_its_place():
    page = text("stages/train-grpo.md")
    for field in ("gates", "terms"):
        kinds = [cls.model_fields["type"].default for cls in classes(RewardSettings.model_fields[field].annotation)]
        assert len(kinds) > 2
        assert [kind for kind in kinds if f"`reward.{field}[{kind}].type`" not in page] == []
    metrics = get_args(GuardSettings.model_fields["metric"].annotation)
    assert [metric for metric in metrics if metric not in page] == []


def test_every_page_is_in_the_navigation_of_the_site():
    nav = (ROOT / "mkdocs.yml").read_text(encoding="utf-8").partition("nav:")[2]
    assert [page for page in PAGES if page not in nav] == []
    assert sorted(re.findall(r"[\w/-]+\.md", nav)) == PAGES


@pytest.mark.parametrize("page", ["../README.md", "../CONTRIBUTING.md", *PAGES])
def test_links_lead_to_pages_and_headings_that_exist(page):
    here = DOCS / page
    for target, anchor in re.findall(r"\]\((?!https?:)([^)#\s]*)#?([^)\s]*)\)", here.read_text(encoding="utf-8")):
        there = here.parent / target if target else here
        assert there.exists(), f"{page}: {target}"
        if anchor:
            headings = re.findall(r"^#+ (.*)$", there.read_text(encoding="utf-8"), re.M)
            assert anchor in [re.sub(r"[^\w]+", "-", h.lower()).strip("-") for h in headings], f"{page}: #{anchor}"


def test_the_recipe_of_the_tutorial_fits(tmp_path, monkeypatch):
    monkeypatch.setattr(graph, "fingerprint", lambda source: source.name)
    for source, copy in (("examples/chats-en", "chats"), ("seeds-en", "questions")):
        (tmp_path / f"{copy}.jsonl").write_bytes((ROOT / "recipes" / f"{source}.jsonl").read_bytes())
    blocks = re.findall(r"^```yaml\n(.*?)^```", text("tutorial.md"), re.M | re.S)
    (tmp_path / "tutorial.yaml").write_text("".join(blocks))
    nodes = graph.build(validate(read_tree(tmp_path / "tutorial.yaml"))).nodes
    assert list(nodes)[-1] == "scores" and len(nodes) == 11


def test_the_recipe_of_the_guide_fits_its_cards(tmp_path, monkeypatch):
    """Given the shapes of its models, `plan` estimates the numbers of rows and needs neither a network nor a GPU."""
    (tmp_path / "guide.yaml").write_text("".join(re.findall(r"^```yaml\n(.*?)^```", text("guide.md"), re.M | re.S)))
    monkeypatch.setenv("TOGI_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("JUDGE_KEY", "none")
    for name in ("chats", "questions", "test"):
        (tmp_path / f"{name}.jsonl").write_bytes((ROOT / "recipes" / "examples" / "chats-en.jsonl").read_bytes())
    shapes = {"base": "llm-jp-3-13b", "small": "sarashina2.2-3b"}
    words = [f"models.{name}.shape={ROOT / 'recipes' / 'shapes' / shape}.json" for name, shape in shapes.items()]
    ended = CliRunner().invoke(main, ["plan", str(tmp_path / "guide.yaml"), *words])
    assert ended.exit_code == 0, ended.output
    assert re.search(r"policy .*peak on cuda:0 [\d.]+ GB, peak on cuda:1 [\d.]+ GB", ended.output), ended.output


def test_the_readme_has_at_most_700_words():
    assert len((ROOT / "README.md").read_text(encoding="utf-8").split()) <= 700


def messages():
    """Yields all strings of the source, neighbours joined and each expression of an f-string replaced by {}."""
    for path in (ROOT / "src").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.JoinedStr):
                yield "{}".join(str(part.value) for part in node.values if isinstance(part, ast.Constant))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                yield node.value


def test_every_message_of_the_troubleshooting_page_is_one_of_togis():
    headings = re.findall(r"^### (.*)$", text("troubleshooting.md"), re.M)
    assert len(headings) >= 25
    known = "\n".join(messages())
    assert [heading for heading in headings if heading.replace("...", "{}") not in known] == []
