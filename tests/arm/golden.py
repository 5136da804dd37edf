"""On a device: which stored payloads of every chain decode to what they meant, and which are packed to the same bytes again."""

import json
import sys
from pathlib import Path

from fedbonsai.errors import ConfigError
from fedbonsai.stages.codec import parse
from fedbonsai.wire import decode
from tests.codec.cases import CHAINS, identical, masks


def outcome(name: str) -> str:
    stored = decode((Path(__file__).parents[1] / "golden" / "codec" / f"{name}.bin").read_bytes())
    mask = masks() if "known" in name else None
    try:
        if not identical(stored["packed"].dense(stored["tree"], mask), stored["dense"]):
            return "decodes otherwise"
        return (
            "equal" if parse(CHAINS[name]).pack(stored["tree"], 1234, mask) == stored["packed"] else "packs otherwise"
        )
    except ConfigError as error:
        return f"refused: {error}"


json.dump({name: outcome(name) for name in CHAINS}, sys.stdout)
