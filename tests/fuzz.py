"""Bounded fuzzing of the decoder: ``make fuzz``. Random, damaged and spliced messages decode or give BadMessage.

Not a test module: it runs for as many seconds as it is told and prints how many inputs it tried. The seed is printed,
so that a finding can be run again.
"""

import random
import resource
import sys
import time

from fedbonsai.errors import BadMessage
from fedbonsai.wire import decode, encode
from tests.wire.messages import samples


def mutated(random_, corpus):
    raw = bytearray(random_.choice(corpus))
    for _ in range(random_.randint(1, 6)):
        kind, at = random_.randrange(6), random_.randrange(len(raw)) if raw else 0
        if kind == 0 and raw:
            raw[at] ^= 1 << random_.randrange(8)
        elif kind == 1 and raw:
            raw[at] = random_.choice((0, 1, 7, 8, 9, 10, 11, 0x7F, 0x80, 0xFF))
        elif kind == 2:
            del raw[at : at + random_.randint(1, 8)]
        elif kind == 3:
            raw[at:at] = random_.randbytes(random_.randint(1, 8))
        elif kind == 4:
            other = random_.choice(corpus)
            cut = random_.randrange(len(other))
            raw[at:] = other[cut:]
        else:
            raw = raw[:8] + random_.randbytes(random_.randint(0, 60))
    return bytes(raw)


def main(seconds: float, seed: int) -> None:
    random_ = random.Random(seed)
    corpus = [bytes(encode(value)) for value in samples().values()]
    corpus += [
        bytes(encode(value)) for sample in samples().values() for value in (sample if isinstance(sample, tuple) else ())
    ]
    end, tried, decoded = time.monotonic() + seconds, 0, 0
    resource.setrlimit(resource.RLIMIT_AS, (8 << 30, 8 << 30))
    while time.monotonic() < end:
        for _ in range(1000):
            data = mutated(random_, corpus)
            tried += 1
            try:
                encode(decode(data))
                decoded += 1
            except BadMessage:
                continue
            except BaseException:
                print(f"FOUND with seed {seed}, input {tried}: {data.hex()}")
                raise
    print(f"{tried} inputs in {seconds:.0f} s (seed {seed}): {decoded} decoded, the rest BadMessage, nothing else")


if __name__ == "__main__":
    main(float(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 0)
