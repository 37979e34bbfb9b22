"""A published reward model gives the scores that its card prints, where the hub can be reached."""

import re
import socket

import pytest
from stored_verdicts import SHARED

import togi

CARDS = SHARED.parent / "cards"
MODEL = "cyberagent/ca-reward-3b-ja"


def reachable() -> bool:
    try:
        socket.create_connection(("huggingface.co", 443), timeout=5).close()
    except OSError:
        return False
    return True


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.skipif(not CARDS.is_dir(), reason="needs the card")
def test_the_sample_of_the_card_has_its_scores() -> None:
    if not reachable():
        pytest.skip("the hub cannot be reached")
    (card,) = [text for path in CARDS.iterdir() if MODEL in (text := path.read_text()) and "Score for response" in text]
    said = dict(re.findall(r'^(prompt|response1|response2) = """(.*)"""', card, re.MULTILINE))
    printed = [float(score) for score in re.findall(r"^# Score for response \d: (\S+)", card, re.MULTILINE)]
    asked = [{"role": "user", "content": said["prompt"]}]
    scores = togi.score(MODEL, [(asked, said["response1"]), (asked, said["response2"])])
    assert scores == pytest.approx(printed, abs=0.01)  # the card's, on another device
