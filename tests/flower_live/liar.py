"""A device that answers with damaged, oversized, old and senseless messages: ``join --imports tests.flower_live.liar``."""

from fedbonsai.fleets.flower.worker import Worker
from tests.flower_live.federation import LARGE

_honest = Worker.perform
_first = []


def _lie(self, raw, payload):
    head, answer = _honest(self, raw, payload)
    _first.append((head, answer))
    ways = [
        (head, answer[: len(answer) // 2]),
        (head, answer + bytes(LARGE)),
        _first[0],  # of the first round
        (b"\xff" * 100, answer),
    ]
    return ways[(len(_first) - 1) % len(ways)]


Worker.perform = _lie
