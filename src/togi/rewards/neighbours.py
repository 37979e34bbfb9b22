"""The modules in the folder of a user's file, importable only while the file is loaded or called.

Two files in different folders that both import `helper` each get their own. togi's libraries see neither.
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import takewhile
from pathlib import Path
from types import ModuleType

from togi.core.code import neighbours
from togi.core.errors import InputError

MARK = f"{__name__} since here"  # not a module; modules that a block loads come after it


class Neighbours:
    """The modules in the folder of a user's file. `known` are the files that its import statements lead to."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.known = neighbours(file)
        self.modules: dict[str, ModuleType] = {}
        self.names = {path.relative_to(file.parent).parts[0].partition(".")[0] for path in self.known}

    @contextmanager
    def importable(self) -> Iterator[None]:
        """Puts the folder first on the path, and loads its modules, while the block runs.

        A library's module of the same name is set aside, except the standard library's.
        """
        folder, no_files = str(self.file.parent), sys.dont_write_bytecode
        aside = self._set_aside()
        sys.modules[MARK] = sys.modules[__name__]
        sys.modules.update(self.modules)
        sys.path.insert(0, folder)
        sys.dont_write_bytecode = True
        try:
            yield
        finally:
            sys.dont_write_bytecode = no_files
            if folder in sys.path:
                sys.path.remove(folder)
            self._keep()
            sys.modules.update(aside)

    def check(self) -> None:
        """Raises InputError if a module of the folder was loaded without an import statement, because changes to it
        would go unnoticed."""
        places = {name: Path(found) for name, m in self.modules.items() if (found := getattr(m, "__file__", None))}
        unseen = [name for name, path in places.items() if path not in self.known and path != self.file]
        if unseen:
            raise InputError(
                f"reward function: {self.file} imports {unseen[0]} in a way that togi cannot see before it runs, so "
                "changes to it would go unnoticed; name it in an import statement of that file"
            )

    def _set_aside(self) -> dict[str, ModuleType]:
        """Removes modules with the same names as the folder's from the process, and returns them. This runs on every
        call, so it searches all modules only if there are such names."""
        ours = {name for name in self.names if name in sys.modules} - sys.stdlib_module_names
        aside = {n: m for n, m in sys.modules.items() if _top(n) in ours} if ours else {}
        for name in aside:
            del sys.modules[name]
        return aside

    def _keep(self) -> None:
        """Removes the folder's modules from the process and keeps them for the next call. Modules loaded in the block
        come after its mark."""
        new = list(takewhile(lambda name: name != MARK, reversed(sys.modules)))[::-1]
        del sys.modules[MARK]
        self.modules = {name: sys.modules[name] for name in new if self._lies_here(sys.modules.get(_top(name)))}
        for name in self.modules:
            del sys.modules[name]

    def _lies_here(self, module: ModuleType | None) -> bool:
        """Whether a top-level module is a file or folder directly in the user's folder, and not in an environment
        inside it."""
        folder = self.file.parent
        if getattr(module, "__file__", None) is None:  # a folder without __init__.py
            return any(Path(place).parent == folder for place in getattr(module, "__path__", ()))
        path = Path(str(getattr(module, "__file__", None)))
        return folder == (path.parent.parent if path.stem == "__init__" else path.parent)


def _top(name: str) -> str:
    return name.partition(".")[0]
