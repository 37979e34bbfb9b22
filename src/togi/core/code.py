"""Finds the modules that a user's Python file imports from its own folder. Runs none of them."""

import ast
import re
from collections.abc import Iterator
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path
from typing import Any

UNREADABLE = (SyntaxError, ValueError, RecursionError, MemoryError)  # what ast.parse raises for other files


def neighbours(file: Path) -> list[Path]:
    """The files below the file's folder that its imports lead to, directly or indirectly, sorted, without the file.

    `import_module` and `__import__` count if their argument is a literal name.
    """
    folder, found, open_ = file.parent, {file}, [file]
    while open_:
        here = open_.pop()
        package = _package(here, folder) if here != file else ()
        for names in _imported(here, package):
            fresh = [path for path in _files(folder, names) if path not in found]
            found.update(fresh)
            open_ += fresh
    return sorted(found - {file})


def _package(path: Path, folder: Path) -> tuple[str, ...]:
    """The package of the module at `path`; for an __init__.py, the package itself."""
    return path.relative_to(folder).parts[:-1]


def _imported(path: Path, package: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
    """The dotted names, split at the dots, of everything that the file imports; some may not be modules."""
    if path.suffix != ".py":
        return
    try:
        tree = ast.parse(path.read_bytes())
    except UNREADABLE:  # loading the file reports the reason
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (tuple(alias.name.split(".")) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            name = (*base, *(node.module.split(".") if node.module else ()))
            yield from ((*name, alias.name) for alias in node.names)
        elif isinstance(node, ast.Call):
            yield from _called(node, package)


def _called(node: ast.Call, package: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
    name: Any = node.func
    name = name.attr if isinstance(name, ast.Attribute) else getattr(name, "id", "")
    given = node.args[0].value if node.args and isinstance(node.args[0], ast.Constant) else None
    if name in ("import_module", "__import__") and isinstance(given, str):
        level, rest = _dots(given)
        base = package[: len(package) - level + 1] if level else ()
        yield (*base, *(rest.split(".") if rest else ()))


def _dots(name: str) -> tuple[int, str]:
    rest = name.lstrip(".")
    return len(name) - len(rest), rest


def _files(folder: Path, names: tuple[str, ...]) -> Iterator[Path]:
    """The files in `folder` that importing `names` executes; `*` of a package means everything in it."""
    here = folder
    for name in names:
        if name == "*":
            yield from sorted(path for path in here.glob("*.py") if here != folder)
            return
        if not re.fullmatch(r"\w+", name):
            return
        package = here / name / "__init__.py"
        if package.is_file():
            yield package
        elif not (here / name).is_dir() or _module(here, name) is not None:
            found = _module(here, name)
            if found is not None:
                yield found
            return
        here = here / name


def _module(folder: Path, name: str) -> Path | None:
    paths = (folder / f"{name}{suffix}" for suffix in (".py", *EXTENSION_SUFFIXES))
    return next((path for path in paths if path.is_file()), None)
