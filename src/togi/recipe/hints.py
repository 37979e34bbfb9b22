"""Hints on what was probably meant: settings of other tools, keys of another place, and values of another type."""

import difflib
import re
from collections.abc import Collection, Sequence
from typing import Any

from togi.core.sources import FILE_NAME
from togi.recipe.foreign import ABSENT, ELSEWHERE, FOREIGN, MORE, VALUES

NEAR = 0.75  # similarity of two spellings of one word; unrelated words of one ending, such as _steps, reach 0.67
PERCENT = re.compile(r"[0-9]+(\.[0-9]+)?%")
MANY = 12  # more allowed keys than that are not listed next to a suggestion
FLAGS = {"packing": "togi always packs examples; apart, the default, keeps them from attending to each other"}
"""Settings that are true or false in other tools."""


def unknown_key(found: str, allowed: Sequence[str], nested: Sequence[str] = (), place: str = "") -> str:
    """The text after "unknown key": the setting that was probably meant, and the allowed ones. `nested` are settings
    inside the allowed ones, dotted; `place` says where else `found` is a key."""
    hint = meant(found, allowed, nested, place)
    if hint and len(allowed) > MANY:
        return hint
    return f"{hint} (allowed: {', '.join(allowed)})"


def meant(found: str, allowed: Sequence[str], nested: Sequence[str] = (), place: str = "") -> str:
    """ "; did you mean ...?", or empty. A suggestion exists at this place, or its note names the other place, and is
    never `found` itself. Names of other tools are tried first, then keys of nested settings and of another place, then
    similar spellings."""
    allowed = [name for name in allowed if name != found]
    if found in ABSENT and found not in allowed and not place:
        return f"; {ABSENT[found]}"
    more = MORE.get(found, "")
    if ours := [name for name in FOREIGN.get(found, ()) if name in allowed or name in nested]:
        return f"; did you mean {ours[0]!r}?" + (f" ({more})" if more else "")
    if found in ELSEWHERE:
        return f"; did you mean {FOREIGN[found][0]!r}? ({more})"
    ends = [name for name in (*allowed, *nested) if found and name.lower().endswith(f".{found.lower()}")]
    if not ends and place:
        return f"; {place}"
    best = [*ends, *difflib.get_close_matches(found, allowed, n=1, cutoff=NEAR), *_longer(found, allowed)]
    return f"; did you mean {best[0]!r}?" if best else ""


def stage_setting(found: str, settings: Collection[str]) -> str:
    """Where a key at the top of a recipe belongs, if it is one of the stages' `settings`, or another tool's name for
    one; else empty."""
    names = [name for name in (found, *FOREIGN.get(found, ())) if name.partition(".")[0] in settings]
    return f"a setting of a stage: write stages: {{NAME: {{type: TYPE, {_flow(names[0])}}}}}" if names else ""


def _flow(dotted: str) -> str:
    """A dotted key as it is written in braces."""
    outer, _, inner = dotted.partition(".")
    return f"{outer}: {{{inner}: ...}}" if inner else f"{outer}: ..."


def _longer(found: str, allowed: Sequence[str]) -> list[str]:
    """The keys whose first word is `found`: warmup_steps for warmup."""
    return [name for name in allowed if found and name.startswith(f"{found}_")]


def shape(key: str, found: Any, wanted: str, types: Sequence[str] = ()) -> str:
    """A hint for a value of the wrong type, chosen by the message `wanted`; empty if there is none. `types` are the
    values of `type` if a map of settings is wanted that has one."""
    if isinstance(found, str) and "map" in wanted and found in types:
        return f"; did you mean `{key}: {{type: {found}}}`?"
    if found is True and "map" in wanted:
        return f"; did you mean `{key}: {{}}`, all of its defaults?"
    if found is False and "map" in wanted:
        return f"; did you mean `{key}: null`?"
    if isinstance(found, bool) and key in FLAGS:
        return f"; {FLAGS[key]}"
    if wanted.startswith(SHARE) and isinstance(found, int | float):
        return _share(found)
    if "text" in wanted and isinstance(found, int | float):
        return "; put it in quotes"
    if "number" in wanted or "integer" in wanted:
        return _number(key, found)
    return _choice(found, re.findall(r"'([^']+)'", wanted)) if isinstance(found, str) else ""


REFERENCE = "expected a reference"  # how the message of a wrong reference begins
SHARE = "should be a share, more than 0 and less than 1"
OUTSIDE = ("should be less than 1", "should be greater than 0")


PATTERNS = {
    r"^(cpu|cuda|cuda:[0-9]+)?$": "should be cpu, cuda or cuda:NUMBER",
    r"^[A-Za-z_][A-Za-z0-9_]*$": "should be the name of an environment variable",
    r"^[A-Za-z0-9_][A-Za-z0-9_.-]{0,99}$": "should be at most 100 Latin letters, digits, _, . and -, with a "
    "letter, digit or _ first",
    "^[a-z]{2}$": "should be a code of two small letters, such as en",
}
"""The patterns of settings, in words."""


def joined(wants: Sequence[str], found: Any) -> str:
    """What each type of a setting requires of the value `found`, in one text. A number where a share or a reference
    belongs was meant as a share."""
    each = list(dict.fromkeys(wants))
    if isinstance(found, int | float) and "should be text" in each and not set(OUTSIDE).isdisjoint(each):
        each = [SHARE, "a reference like $name"]
    text = ", or ".join(sorted(each, key=lambda want: want.startswith(REFERENCE)))  # the reference repeats the value
    return text.replace(f"or {REFERENCE}", "or a reference")


def _share(found: float) -> str:
    """A hint for a number that is no share."""
    if found > 1 and found == int(found):
        return (
            f"; for {found:g} rows, divide {found:g} by the number of rows: of {20 * found:g} they are a share of 0.05"
        )
    return "; remove the key to keep nothing" if found <= 0 else ""


def _number(key: str, found: Any) -> str:
    """A hint for a value in place of a number."""
    if isinstance(found, str) and re.fullmatch(r"[-+]?[0-9]+,[0-9]+", found):
        return f"; a decimal number has a point: {found.replace(',', '.')}"
    if isinstance(found, str) and PERCENT.fullmatch(found):
        return _percent(found)
    steps = key.endswith(("_steps", "_every", "steps"))
    return "; it is a number of steps, not a share" if steps and isinstance(found, float) and 0 < found < 1 else ""


def _percent(found: str) -> str:
    return f"; write a share as a number: {float(found[:-1]) / 100:g}"


def _choice(found: str, words: Sequence[str]) -> str:
    """A hint for a word that is none of the allowed ones."""
    best = [VALUES.get(found, ""), *difflib.get_close_matches(found, words, n=1, cutoff=NEAR)]
    near = [word for word in best if word in words]
    return f"; did you mean {near[0]!r}?" if near else ""


def outside_name(found: str, kind: str = "model") -> str:
    """A hint for a value that was given in place of a reference `$name` to a model, or to records of another `kind`: a
    hub id or a path must be declared first."""
    if PERCENT.fullmatch(found):
        return _percent(found)
    section, name = ("models", "base") if kind in ("model", "scorer", "embedder") else ("data", kind)
    if re.fullmatch(r"\w[\w.-]*/[\w.-]+", found) and not FILE_NAME.search(found):
        where = "hub"
    elif re.fullmatch(r"[~.]*/?[\w./-]*[/.][\w./-]+", found):
        where = "path"
    elif re.fullmatch(r"[A-Za-z_][A-Za-z0-9_-]*", found):
        return f"; did you mean '${found}'?"
    else:
        return ""
    entry = f"{section}: {{{name}: {{{where}: {found}}}}}"
    return f"; did you mean to declare it, as {entry}, and to refer to it as ${name}?"
