"""Compiled functions are tried when they are loaded: a part that computes wrongly is left to torch, with a warning."""

import logging
import shutil
import time

import pytest
import torch

from togi import kernels
from togi.kernels import dispatch
from togi.kernels.build import Build
from togi.kernels.native import Native

pytestmark = pytest.mark.skipif(shutil.which("cc") is None, reason="needs a C compiler")


class Altered:
    """The compiled library with some functions replaced."""

    def __init__(self, library, **others):
        self.library, self._others = library, others

    def __getattr__(self, name):
        return self._others.get(name) or getattr(self.library, name)


def loaded(**others) -> dispatch.Kernels:
    """The compiled functions with some of them replaced, tried as on loading."""
    real = dispatch.kernels().native
    assert real is not None
    return dispatch.Kernels.of(Native(Build("fake", Altered(real.library, **others))))


def altering(name: str, change):
    """The function of that name, called with altered arguments."""
    real = getattr(dispatch.kernels().native.library, name)

    def altered(arguments):
        change(arguments)
        real(arguments)

    return {name: altered}


def other_scale(arguments) -> None:
    arguments.scale *= 1.1


def other_factor(arguments) -> None:
    arguments.factor *= 1.1


WRONG = [
    ("softmax", "togi_softmax", other_factor),
    ("attend", "togi_attend", other_scale),
    ("attend", "togi_attend_backward", other_scale),
    ("decode", "togi_decode", other_scale),
]


def test_all_that_this_processor_knows_is_compiled():
    found = loaded()
    assert set(found.off) <= ({"linear"} if not found.native.products else set())


@pytest.mark.parametrize(("part", "name", "change"), WRONG)
def test_a_part_that_computes_wrongly_is_left_to_torch_and_that_is_said(part, name, change, caplog):
    with caplog.at_level(logging.WARNING):
        found = loaded(**altering(name, change))
    assert set(found.off) - {"linear"} == {part}
    assert f"kernel {part}: output" in caplog.text and "torch computes it" in caplog.text


def test_numbers_that_are_none_are_wrong_too():
    def spoilt(arguments) -> None:
        arguments.factor = float("nan")

    assert "softmax" in loaded(**altering("togi_softmax", spoilt)).off


@pytest.mark.parametrize("part", ["softmax", "attend", "decode"])
def test_arguments_of_another_size_are_never_used(part, caplog):
    def never(*given):
        raise AssertionError("called with arguments that it reads otherwise")

    others = {name: never for each, name, _ in WRONG if each == part}
    found = loaded(**{f"togi_size_{part}": lambda: 8, **others})
    assert "its arguments have 8 bytes in the library" in found.off[part]
    assert "torch computes it" in caplog.text


def test_trying_is_cheap():
    """It takes less time than two products of 1,024 x 1,024 matrices in the same process."""
    loaded()
    start = time.process_time()
    loaded()
    middle = time.process_time()
    x = torch.randn(1024, 1024)
    for _ in range(2):
        x @ x
    assert middle - start < time.process_time() - middle


def test_the_report_names_every_part_and_why_torch_computes_it():
    with kernels.without("decode"):
        assert kernels.report()["decode"] == "torch (switched off)"
        assert kernels.report()["softmax"] == "compiled"
        assert " -decode" in kernels.identity()
    assert kernels.report().keys() == set(kernels.PARTS)
    with kernels.without():
        assert not any(how == "compiled" for how in kernels.report().values())


def test_without_compiled_functions_the_same_comes_out():
    """Softmax and products, up to rounding; attention has tests of its own."""
    generator = torch.Generator().manual_seed(1)
    x, weight = (torch.randn(5, 64, generator=generator) for _ in range(2))
    target = torch.arange(5)

    def results() -> list[torch.Tensor]:
        soft = kernels.softmax_(x.clone(), target, kernels.LogitShape(0.5), entropy=True)
        packed = kernels.linear(x, kernels.pack(weight, 5), None)
        return [packed, *soft[:3]]

    compiled = results()
    with kernels.without():
        for ours, plain in zip(compiled, results(), strict=True):
            torch.testing.assert_close(ours, plain, rtol=1e-5, atol=1e-6)
