"""The code of a model card, and what it prints."""

import re
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path


def code_of(card: Path) -> str:
    """The only Python code of a card, with the folder in which the card is."""
    (code,) = re.findall(r"```python\n(.*?)```", card.read_text(), re.S)
    found, count = re.subn(r'^name = "\."', f"name = {str(card.parent)!r}", code, flags=re.M)
    assert count == 1
    return found


def run(code: str) -> str:
    """The output of the code, which has only its own imports."""
    with redirect_stdout(StringIO()) as said:
        exec(code, {"__name__": "__main__"})
    return said.getvalue()
