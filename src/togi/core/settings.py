"""Building blocks of settings: strict models, references to other stages, paths, and runtime settings.

A reference is a value of a `Ref` type; a text field that happens to begin with `$` stays text. A path is resolved
against the file that names it. A runtime setting (`place`) controls where or how fast the work runs, never its result,
so it is not part of fingerprints.
"""

import os
import re
import stat
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self, get_args, get_origin

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, GetCoreSchemaHandler
from pydantic_core import CoreSchema, core_schema

from togi.core.sources import hub_id

_NAME = re.compile(r"\$[A-Za-z_][A-Za-z0-9_-]*(\.[A-Za-z_][A-Za-z0-9_-]*)?")
MAIN = "main"
"""The name of a stage's main output, which `$stage` refers to."""


class Located(str):
    """A string of a recipe that remembers the folder of the file that it was read from."""

    __slots__ = ("folder",)
    folder: Path

    def __new__(cls, text: str, folder: Path) -> Self:
        self = super().__new__(cls, text)
        self.folder = folder
        return self


class Ref(str):
    """A reference to something that gives one of `kinds`: `$name`, or `$stage.output` for a named output."""

    kinds: ClassVar[tuple[str, ...]] = ()
    named: ClassVar[bool] = False
    """Whether the stage writes the referenced name into its output, so that the fingerprint covers it."""

    @property
    def name(self) -> str:
        """The stage, model or data set that is referred to."""
        return self[1:].partition(".")[0]

    @property
    def output(self) -> str:
        """The name of the output; MAIN if the reference names none."""
        return self.partition(".")[2] or MAIN

    @classmethod
    def check(cls, value: str) -> Self:
        if not _NAME.fullmatch(value):
            raise ValueError(
                f"expected a reference like $name or $stage.output to {' or '.join(cls.kinds)}, found {value!r}"
            )
        return cls(value)

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        # based on a string schema, so that a union of one reference and several is serialised correctly
        return core_schema.no_info_after_validator_function(cls.check, core_schema.str_schema())


class ModelRef(Ref):
    """A causal language model: declared under `models:` or trained by a stage."""

    kinds = ("model",)


class NamedModelRef(ModelRef):
    """A model whose name is stored with its answers."""

    named = True


class EngineRef(ModelRef):
    """A model on a server that samples for a training stage, which replaces its weights there."""


class MadeModelRef(Ref):
    """A model that a stage trained, in place of a folder: `path: $stage` under `models:`."""

    kinds = ("model", "scorer")


class ScorerRef(Ref):
    """A reward model."""

    kinds = ("scorer",)


class NamedScorerRef(ScorerRef):
    """A reward model whose name is stored with its scores."""

    named = True


class EmbedderRef(Ref):
    """A sentence embedder, declared under `models:`."""

    kinds = ("embedder",)


class PromptsRef(Ref):
    kinds = ("prompts",)


class PairsRef(Ref):
    kinds = ("pairs",)


class ChatsRef(Ref):
    kinds = ("chats",)


class DocumentsRef(Ref):
    kinds = ("documents",)


class SamplesRef(Ref):
    kinds = ("samples",)


class VerdictsRef(Ref):
    kinds = ("verdicts",)


class QuestionsRef(Ref):
    """Questions, with or without an answer, or whole conversations."""

    kinds = ("prompts", "chats")


class RecordsRef(Ref):
    """Records of any kind with text to compare."""

    kinds = ("prompts", "chats", "documents", "samples", "pairs")


def refs_of(value: "Ref | Sequence[Ref]") -> list[Ref]:
    """One or several references as a list."""
    return [value] if isinstance(value, Ref) else list(value)


def absolute(text: str, folder: Path) -> Path:
    """`text` as an absolute path. A relative path starts at `folder`; ~ is a home folder.

    Raises ValueError for unusable paths: NUL, invalid UTF-8, a loop of links, an unknown ~user.
    """
    try:
        path = (folder / Path(text).expanduser()).resolve()
        str(path).encode()
    except UnicodeEncodeError:
        raise ValueError(f"the path {text!r}: not all of its folders and names are valid UTF-8; rename them") from None
    except (OSError, RuntimeError, ValueError) as error:
        raise ValueError(f"the path {text!r} cannot be used: {_reason(error)}") from None
    return path


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error)


def _check_readable(path: Path) -> None:
    """Raises ValueError for an existing path that cannot be an input. The reader reports absent ones."""
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        return
    except OSError as error:
        raise ValueError(f"{path} cannot be used: {error.strerror}") from None
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
        raise ValueError(f"{path} is a pipe, a socket or a device; give a file or a folder")
    if not os.access(path, os.R_OK | (os.X_OK if stat.S_ISDIR(mode) else 0)):
        raise ValueError(f"{path} cannot be read: permission denied")


class RecipePath(str):
    """An absolute path. A relative one in a recipe starts at the folder of that file, `beside`. If the path exists, it
    is readable."""

    beside = ""

    @classmethod
    def check(cls, value: Any) -> Self:
        if not isinstance(value, str) or not value:
            raise ValueError(f"expected a path, found {value!r}")
        folder = value.folder if isinstance(value, Located) else Path()
        path = absolute(value, folder)
        _check_readable(path)
        found = cls(path)
        found.beside = str(folder.resolve())
        return found

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_plain_validator_function(
            cls.check, serialization=core_schema.plain_serializer_function_ser_schema(str)
        )


class CodePath(RecipePath):
    """A Python file. Its content includes the modules that it imports from its own folder."""


class PackageName(str):
    """An installed package that contains weights; its content depends on its version."""

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_after_validator_function(cls, core_schema.str_schema(min_length=1))


HubId = Annotated[str, AfterValidator(hub_id)]
"""An id on a model hub."""


class Settings(BaseModel):
    """Base of all settings: frozen, rejects unknown keys, never converts numbers to text."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


def runtime_setting(default: Any, description: str, **limits: Any) -> Any:
    """A field that controls where or how fast the work runs, never its result: it is not part of the fingerprint."""
    return Field(default=default, description=description, json_schema_extra={"place": True}, **limits)


APART: dict[str, Any] = {"apart": True}
"""`json_schema_extra` of a field whose records do not become part of the output: they are used for validation or
comparison."""


def is_place(settings: BaseModel, name: str) -> bool:
    """Whether a field was declared with `place`."""
    return _is_marked(settings, name, "place")


def _is_marked(settings: BaseModel, name: str, mark: str) -> bool:
    extra = type(settings).model_fields[name].json_schema_extra
    return isinstance(extra, dict) and extra.get(mark) is True


def classes(annotation: Any) -> list[type]:
    """The classes in a field's type, including members of a union and items of a list or map."""
    origin = get_origin(annotation)
    if origin is None:
        return [annotation] if isinstance(annotation, type) else []
    parts = () if origin is Literal else get_args(annotation)[:1] if origin is Annotated else get_args(annotation)
    return [found for part in parts for found in classes(part)]


def takes(settings: type[BaseModel], kind: str) -> bool:
    """Whether settings of this class can refer to `kind`, at any depth."""
    found = [cls for info in settings.model_fields.values() for cls in classes(info.annotation)]
    return any(
        kind in cls.kinds if issubclass(cls, Ref) else issubclass(cls, BaseModel) and takes(cls, kind) for cls in found
    )


def walk(value: Any, path: tuple[str | int, ...] = ()) -> Iterator[tuple[tuple[str | int, ...], Any]]:
    """Yields all leaves of a settings tree with their paths, including references and file paths."""
    if isinstance(value, BaseModel):
        for name in type(value).model_fields:
            yield from walk(getattr(value, name), (*path, name))
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from walk(item, (*path, key))
    elif isinstance(value, list | tuple):
        for index, item in enumerate(value):
            yield from walk(item, (*path, index))
    else:
        yield path, value


def parts(value: Any) -> Iterator[BaseModel]:
    """Yields all settings objects inside a settings tree, including the tree itself."""
    if isinstance(value, BaseModel):
        yield value
        value = [getattr(value, name) for name in type(value).model_fields]
    elif isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list | tuple):
        for item in value:
            yield from parts(item)


def references(value: Any) -> list[tuple[tuple[str | int, ...], Ref]]:
    """All references inside a settings tree, in order, with their paths."""
    return [(path, leaf) for path, leaf in walk(value) if isinstance(leaf, Ref)]


def ingredients(value: Any) -> list[Ref]:
    """The references inside a settings tree whose targets become part of the output: all but those in APART fields."""
    if isinstance(value, Ref):
        return [value]
    if isinstance(value, BaseModel):
        names = [name for name in type(value).model_fields if not _is_marked(value, name, "apart")]
        inside: Iterable[Any] = [getattr(value, name) for name in names]
    else:
        inside = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else ()
    return [ref for item in inside for ref in ingredients(item)]
