"""The values of `--on`, and the message of a run if there is no cluster."""

import importlib.util
from pathlib import Path

import pytest

from togi.core.errors import RecipeError
from togi.recipe.cluster import checked, opened
from togi.recipe.cluster_probe import differences, looker


@pytest.mark.parametrize("place", ["local-cluster", "auto", "ray://head:6000"])
def test_a_place_stays_as_it_is_written(place: str) -> None:
    assert checked(place) == place


def test_a_port_that_is_left_out_is_rays_own() -> None:
    assert checked("ray://head") == "ray://head:10001"


@pytest.mark.parametrize("place", ["local", "head:6379", "ray://", "ray://:10001", "ray://head:x", "http://head:80"])
def test_what_is_no_place_is_refused_with_what_is(place: str) -> None:
    with pytest.raises(RecipeError, match=rf"--on {place}: a place is ray://HOST:PORT .* auto .* local-cluster"):
        checked(place)


def test_without_ray_the_extra_is_named(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError) as raised, opened("auto", tmp_path, tmp_path, print):
        pass
    assert raised.value.name == "ray"


def test_a_node_differs_in_what_bytes_depend_on(tmp_path: Path) -> None:
    (tmp_path / "seen").write_text("mark")
    found = looker()(str(tmp_path / "seen"))
    assert found["sees"] == "mark" and looker()(str(tmp_path / "unseen"))["sees"] == ""
    here = found["versions"]
    assert differences(here, here) == ""
    assert differences({**here, "numpy": "1.0"}, here) == f"numpy 1.0 there, {here['numpy']} here"
