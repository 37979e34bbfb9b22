"""Stored numbers: the folder that TOGI_VECTORS names, or tests/vectors."""

import json
import os
from pathlib import Path
from typing import Any

VECTORS = Path(os.environ.get("TOGI_VECTORS", Path(__file__).parent / "vectors"))
TOLERANCE = {"rtol": 0, "atol": 1e-9}


def load(name: str) -> Any:
    return json.loads((VECTORS / name).read_text())
