"""Paths of the project, for tests in any folder."""

from pathlib import Path

TESTS = Path(__file__).parent
ROOT = TESTS.parent
RECIPES = ROOT / "recipes"
