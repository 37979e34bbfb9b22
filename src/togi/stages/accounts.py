"""Accounts of a finished stage's records: whether all are accounted for, and what they were made from."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from togi.core.records import Provenance
from togi.core.settings import MAIN


def unaccounted(counts: Mapping[str, int], dropped: int) -> tuple[int, str]:
    """Returns (how many records are missing without a reason, negative if there are too many; the same in words).
    Returns (0, "") if the records out and dropped add up to those in, and if nothing was counted."""
    came, went = counts.get("in"), counts.get("out")
    if came is None or went is None or came == went + dropped:
        return 0, ""
    lost = came - went - dropped
    what = f"{lost:,} are gone without a reason" if lost > 0 else f"{-lost:,} more than came"
    return lost, f"{came:,} records came in, {went:,} went out and {dropped:,} were dropped: {what}"


def nothing_left(counts: Mapping[str, int], dropped: int, reasons: str) -> str:
    """The message about a stage that had records and whose main output has none; "" for any other stage."""
    came = counts.get("in", dropped)
    if counts.get("out") != 0 or not came:
        return ""
    why = f"; reasons: {reasons}" if reasons else ""
    return f"none of the {came:,} records that came in is left{why}"


def sources_in(written: Mapping[str, Counter[Provenance]]) -> list[dict[str, Any]]:
    """The sources of the main output's records (of all outputs if there is no main one), each with its number of
    records. `written` contains such numbers by output."""
    parts = [written[MAIN]] if MAIN in written else written.values()
    counts = sum(parts, Counter())
    return [{**asdict(source), "records": count} for source, count in counts.items()]
