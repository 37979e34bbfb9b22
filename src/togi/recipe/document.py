"""Reads YAML into nodes: maps, lists, texts, numbers, true, false and null, each with the line where it was set.

Rejects everything else: tags, keys that are not text, a second document. The size of a text, its nesting depth and its
number of values are limited; values that aliases repeat count each time.
"""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.events import (
    AliasEvent,
    DocumentStartEvent,
    MappingEndEvent,
    MappingStartEvent,
    ScalarEvent,
    SequenceEndEvent,
    SequenceStartEvent,
    StreamEndEvent,
)
from ruamel.yaml.reader import ReaderError

from togi.core.errors import RecipeError
from togi.core.settings import Located

KeyPath = tuple[str | int, ...]
MAX_BYTES = 1 << 20
MAX_NODES = 20_000
MAX_DEPTH = 50
MAX_FILES = 32  # recipes in a chain of `extends`
MAX_WHOLE = 2**63  # the absolute value of an integer is below it, so that it fits in 64 bits

_NULL = re.compile(r"~|null|Null|NULL|")
_TRUTH = re.compile(r"(true|True|TRUE)|false|False|FALSE")
_WHOLE = re.compile(r"[-+]?[0-9]+(?:_[0-9]+)*")
_BASED = re.compile(r"[-+]?0(?:b[01]+|o[0-7]+|x[0-9a-fA-F]+)")
_REAL = re.compile(r"[-+]?(?:[0-9]+(?:_[0-9]+)*(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][-+]?[0-9]+)?")
_SPECIAL = re.compile(r"[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)")
_SURROGATE = re.compile("[\ud800-\udfff]")
_TEXT_TAGS = ("!", "tag:yaml.org,2002:str")
_COLLECTION_TAGS = ("tag:yaml.org,2002:map", "tag:yaml.org,2002:seq")


@dataclass(slots=True)
class Node:
    """A value and where it was set. Aliases share nodes, so no node is changed in place. `size` counts the node and all
    values in it, `height` is their nesting depth."""

    value: "dict[str, Node] | list[Node] | str | int | float | bool | None"
    where: str
    size: int = field(init=False)
    height: int = field(init=False)

    def __post_init__(self) -> None:
        inner = self.value.values() if isinstance(self.value, dict) else self.value
        inner = [] if inner is None or isinstance(inner, str | int | float) else list(inner)
        self.size = 1 + sum(node.size for node in inner)
        self.height = 1 + max((node.height for node in inner), default=0)


def flatten(node: Node, path: KeyPath, origins: dict[KeyPath, str]) -> Any:
    """`node` as plain dicts, lists and scalars; adds to `origins` where each of them was set."""
    origins[path] = node.where
    if isinstance(node.value, dict):
        return {key: flatten(item, (*path, key), origins) for key, item in node.value.items()}
    if isinstance(node.value, list):
        return [flatten(item, (*path, index), origins) for index, item in enumerate(node.value)]
    return node.value


def dotted(path: KeyPath) -> str:
    return ".".join(map(str, path)) or "recipe"


def compose(text: str, where: Callable[[int], str], folder: Path, path: KeyPath = ()) -> Node:
    """The one document in `text`, null if there is none. `where` describes a line, counted from 1; relative paths start
    at `folder`; `path` is the key path of the value in a recipe.

    Raises RecipeError for invalid YAML, and for everything that a recipe cannot contain.
    """
    composer = _Composer(text, where, folder)
    root = composer.document(path)
    if composer.problems:
        raise RecipeError("\n".join(composer.problems))
    return root


def _events(text: str, where: Callable[[int], str]) -> Iterator[Any]:
    """The parser's events. Raises RecipeError for any exception of the parser, which for some escapes and directives
    raises other exceptions than its own."""
    events = YAML(typ="safe", pure=True).parse(text)
    line = 1
    while True:
        try:
            event = next(events, None)
        except MarkedYAMLError as error:
            line = error.problem_mark.line + 1 if error.problem_mark else line
            wrong = _first_line(error.problem or error)
            if wrong.startswith("expected '<document start>'"):  # the library goes on with a part of its own code
                wrong = "the document has ended, but more text follows; a recipe is one map, no rows of data"
            raise RecipeError(f"{where(line)}: not valid YAML: {wrong}") from None
        except ReaderError as error:
            line = text.count("\n", 0, error.position) + 1
            found = f"the control character {chr(error.character)!r}"
            raise RecipeError(f"{where(line)}: not valid YAML: {found}; remove it") from None
        except (YAMLError, ValueError, ArithmeticError, LookupError, AttributeError, TypeError) as error:
            raise RecipeError(f"{where(line)}: not valid YAML: {_first_line(error)}") from None
        if event is None:
            return
        line = event.end_mark.line + 1
        yield event


def _first_line(error: object) -> str:
    return next(iter(str(error).splitlines()), "it cannot be read")


class _Composer:
    """Turns events into nodes. A construct that a recipe cannot contain is recorded as a problem and becomes null; one
    that exceeds a limit ends the reading."""

    def __init__(self, text: str, where: Callable[[int], str], folder: Path) -> None:
        self.events = _events(text, where)
        self.where = where
        self.folder = folder
        self.problems: list[str] = []
        self.anchors: dict[str, Node | None] = {}  # None: the value is still being read
        self.count = 0

    def document(self, path: KeyPath) -> Node:
        next(self.events)  # the stream begins
        if isinstance(next(self.events), StreamEndEvent):
            return Node(None, self.where(1))
        root = self._node(next(self.events), path, 1)
        next(self.events)  # the document ends
        second = next(self.events)
        if isinstance(second, DocumentStartEvent):
            self._problem(second, path, "a second document begins here, but a recipe is one document: remove `---`")
        return root

    def _problem(self, event: Any, path: KeyPath, text: str) -> None:
        self.problems.append(f"{self._line(event)}: {dotted(path)}: {text}")

    def _end(self, event: Any, path: KeyPath, text: str) -> RecipeError:
        self._problem(event, path, text)
        return RecipeError("\n".join(self.problems))

    def _line(self, event: Any) -> str:
        return self.where(event.start_mark.line + 1)

    def _node(self, event: Any, path: KeyPath, depth: int) -> Node:
        if isinstance(event, AliasEvent):
            return self._counted(self._alias(event, path), event, path, depth)
        if event.anchor is not None:
            self.anchors[event.anchor] = None
        self._tag(event, path)
        line = self._line(event)
        self._counted(Node(None, line), event, path, depth)
        if isinstance(event, MappingStartEvent):
            node = Node(self._map(path, depth), line)
        elif isinstance(event, SequenceStartEvent):
            node = Node(self._list(path, depth), line)
        else:
            node = Node(self._scalar(event, path), line)
        if event.anchor is not None:
            self.anchors[event.anchor] = node
        return node

    def _counted(self, node: Node, event: Any, path: KeyPath, depth: int) -> Node:
        self.count += node.size
        if self.count > MAX_NODES:
            told = f"more than {MAX_NODES:,} values, counting those that aliases (*name) repeat each time"
            raise self._end(event, path[:1], f"the recipe contains {told}; make it smaller")
        if depth + node.height - 1 > MAX_DEPTH:
            raise self._end(event, path[:1], f"nested deeper than {MAX_DEPTH} levels; make it flatter")
        return node

    def _alias(self, event: AliasEvent, path: KeyPath) -> Node:
        if event.anchor not in self.anchors:
            raise self._end(event, path, f"*{event.anchor}: no value above has the anchor &{event.anchor}")
        node = self.anchors[event.anchor]
        if node is None:
            raise self._end(event, path, f"*{event.anchor}: the value would contain itself")
        return Node(node.value, self._line(event))

    def _tag(self, event: Any, path: KeyPath) -> None:
        known = _TEXT_TAGS if isinstance(event, ScalarEvent) else _COLLECTION_TAGS
        if event.tag is not None and event.tag not in known:
            told = event.tag.replace("tag:yaml.org,2002:", "!!")
            self._problem(event, path, f"found the tag {told}; a recipe cannot have tags: remove it")

    def _map(self, path: KeyPath, depth: int) -> dict[str, Node]:
        found: dict[str, Node] = {}
        merged: list[tuple[str, dict[str, Node]]] = []
        while not isinstance(event := next(self.events), MappingEndEvent):
            key = self._key(event, path, depth)
            merge = isinstance(event, ScalarEvent) and event.implicit[0] and event.value == "<<" and event.tag is None
            value_event = next(self.events)
            value = self._node(value_event, path if merge else (*path, key), depth + 1)
            here = self._line(event)
            if merge:
                merged += [(here, each) for each in self._merged(value, value_event, path)]
            elif key in found:
                told = f"{dotted((*path, key))} is given twice, first at {found[key].where}; remove one"
                self.problems.append(f"{here}: not valid YAML: {told}")
            else:
                found[key] = Node(value.value, here)
        for here, other in merged:  # keys of this map win, then those merged first
            for key, node in other.items():
                found.setdefault(key, Node(node.value, here))
        return found

    def _merged(self, value: Node, event: Any, path: KeyPath) -> list[dict[str, Node]]:
        """The maps that `<<` merges."""
        nodes = value.value if isinstance(value.value, list) else [value]
        maps = [node.value for node in nodes if isinstance(node.value, dict)]
        if len(maps) == len(nodes):
            return maps
        self._problem(event, path, "`<<` takes a map or a list of maps, such as *name")
        return []

    def _key(self, event: Any, path: KeyPath, depth: int) -> str:
        if isinstance(event, ScalarEvent):
            self._tag(event, path)
            text = self._text(event, path)
            if event.anchor is not None:
                self.anchors[event.anchor] = Node(Located(text, self.folder), self._line(event))
            return text
        self._problem(event, path, "a key is text, not a map, a list or an alias")
        self._node(event, path, depth + 1)
        return ""

    def _list(self, path: KeyPath, depth: int) -> list[Node]:
        found: list[Node] = []
        while not isinstance(event := next(self.events), SequenceEndEvent):
            found.append(self._node(event, (*path, len(found)), depth + 1))
        return found

    def _text(self, event: ScalarEvent, path: KeyPath) -> str:
        if half := _SURROGATE.search(event.value):
            self._problem(event, path, f"{half[0]!r} is half of a character; write the whole one")
            return ""
        return event.value

    def _scalar(self, event: ScalarEvent, path: KeyPath) -> Any:
        plain = event.implicit[0] and event.tag is None
        value = _resolved(event.value) if plain else event.value
        if isinstance(value, str):
            return Located(self._text(event, path), self.folder)
        if isinstance(value, int) and abs(value) >= MAX_WHOLE:
            self._problem(event, path, "a whole number of more than 64 bits; if it is text, put it in quotes")
            return 0
        return value


def _resolved(text: str) -> Any:
    """The value of a plain scalar in YAML 1.2: null, true, false, a number, else text. Dates are text too."""
    if _NULL.fullmatch(text):
        return None
    if truth := _TRUTH.fullmatch(text):
        return truth[1] is not None
    if _WHOLE.fullmatch(text):
        return int(text) if len(text) <= 100 else MAX_WHOLE
    if _BASED.fullmatch(text):
        return int(text, 0)
    if _REAL.fullmatch(text):
        return float(text)
    return float(text.replace(".", "")) if _SPECIAL.fullmatch(text) else text
