"""Errors that one process reports to another by name."""

import pytest

from togi.core.errors import ERRORS, DamagedFile, Fault, InputError, StageError, TogiError, kind_name
from togi.text.turns import Unrendered


class Lost(StageError):
    """An error of a module of its own."""


@pytest.mark.parametrize(
    ("error", "arrives_as"),
    [(InputError(""), InputError), (DamagedFile(""), DamagedFile), (Unrendered(""), InputError), (Lost(""), StageError),
     (Fault(""), Fault), (TogiError(""), Fault)],
)  # fmt: skip
def test_an_error_arrives_as_the_nearest_class_that_is_known(error, arrives_as):
    assert ERRORS[kind_name(error)] is arrives_as
