"""Who a device is to other devices: a key that only it has, and a roster of the others' that no server can forge.

The key is the one by which a device joins a federation (NIST P-384, as Flower wants it); the roster is made of the ``.pub``
files, handed to every device by whoever runs the federation. Devices of a simulation live in one process and have no
secrets from each other: their keys follow from their ids.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from fedbonsai.errors import ConfigError, Silent

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey, EllipticCurvePublicKey

COORDINATE = 48  # bytes of one of the two numbers of a signature
SIGNATURE = 2 * COORDINATE  # bytes, always
MARKS = 4096  # spent marks that a device keeps; older ones are of rounds whose memories are long gone
PURPOSE = b"fedbonsai/identity/1\0"  # the key also signs what Flower wants signed; no text serves both


class Identity(Protocol):
    """What a device can say, of whom it believes what, and what it does once."""

    def sign(self, text: bytes) -> bytes:
        """A signature of 96 bytes (ECDSA, SHA-384)."""
        ...

    def knows(self, device: str, text: bytes, signature: bytes) -> bool:
        """Whether the device of that id signed this text."""
        ...

    def spend(self, what: bytes) -> None:
        """Mark what is done once and never again, whatever memory a server has the device start from.

        Raises:
            Silent: it was done, or the mark cannot be written.
        """
        ...


@dataclass(frozen=True)
class Enrolled:
    """A device of a federation: its key, whom it knows, and what it must not do twice.

    Attributes:
        key: private.
        roster: public keys of all devices by id; one that is not in it is a stranger.
        marks: folder of what was spent; None where nothing outlives the process.
    """

    key: EllipticCurvePrivateKey
    roster: Mapping[str, EllipticCurvePublicKey]
    marks: Path | None = None
    spent: set[str] = field(default_factory=set[str])

    def sign(self, text: bytes) -> bytes:
        """By the key that let it in."""
        return _signed(self.key, text)

    def knows(self, device: str, text: bytes, signature: bytes) -> bool:
        """By the roster; who is not in it is not believed."""
        held = self.roster.get(device)
        return held is not None and _verified(held, text, signature)

    def spend(self, what: bytes) -> None:
        """By a file of its own, which outlives the process."""
        name = hashlib.sha256(PURPOSE + what).hexdigest()
        try:
            if name in self.spent:
                raise FileExistsError
            if self.marks is not None:
                self.marks.mkdir(mode=0o700, parents=True, exist_ok=True)
                os.close(os.open(self.marks / name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
                self._tidy()
        except FileExistsError:
            raise Silent(
                "this was asked and answered before; a second answer would tell what nobody may know"
            ) from None
        except OSError as error:
            raise Silent(f"{self.marks} cannot be written: {error.strerror}; free some space") from None
        self.spent.add(name)

    def _tidy(self) -> None:
        assert self.marks is not None
        found = list(self.marks.iterdir())
        if len(found) > 2 * MARKS:
            for file in sorted(found, key=lambda file: file.stat().st_mtime)[:-MARKS]:
                with suppress(OSError):
                    file.unlink()


@dataclass(frozen=True)
class Simulated:
    """A device of a simulation: keys follow from ids, and everybody is known."""

    device: str

    def sign(self, text: bytes) -> bytes:
        """By the key that follows from its id."""
        return _signed(drawn(self.device), text)

    def knows(self, device: str, text: bytes, signature: bytes) -> bool:
        """By the key that follows from that id."""
        return _verified(drawn(device).public_key(), text, signature)

    def spend(self, what: bytes) -> None:
        """Nothing: a simulated device is in whichever process works for it, and its memory tells what it did."""


class Unenrolled:
    """A device that was given no roster: it takes part in nothing where devices must know each other."""

    WHY = "no roster of the federation's devices is here: fedbonsai join --roster FILE (docs/secure.md)"

    def sign(self, text: bytes) -> bytes:
        """Never.

        Raises:
            Silent: always.
        """
        raise Silent(self.WHY)

    def knows(self, device: str, text: bytes, signature: bytes) -> bool:
        """Nobody."""
        return False

    def spend(self, what: bytes) -> None:
        """Never.

        Raises:
            Silent: always.
        """
        raise Silent(self.WHY)


def read_identity(key: Path, roster: Path, marks: Path, device: str) -> Enrolled:
    """A device's identity from its files.

    Args:
        key: private, as `fedbonsai keys device` made it.
        roster: lines of ``.pub`` files: kind, key, and the id of the device.
        marks: folder for what was spent.
        device: id of this one, which the roster must name with this very key.

    Raises:
        ConfigError: a file cannot be read, or the roster knows this device otherwise.
    """
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.hazmat.primitives.serialization import load_ssh_private_key

    try:
        private = load_ssh_private_key(key.read_bytes(), None)
    except (OSError, ValueError, TypeError) as error:
        raise ConfigError(f"--key {key} cannot be read: {error}; expected what `fedbonsai keys device` made") from None
    if not (isinstance(private, ec.EllipticCurvePrivateKey) and isinstance(private.curve, ec.SECP384R1)):
        raise ConfigError(f"--key {key} is no key on the curve P-384: fedbonsai keys device NAME")
    known = read_roster(roster)
    if device not in known or known[device].public_numbers() != private.public_key().public_numbers():
        how = "with another key" if device in known else "not"
        raise ConfigError(
            f"--roster {roster} names {device!r} {how}; expected the lines of the .pub files of all devices, this one's too"
        )
    return Enrolled(private, known, marks)


def read_roster(file: Path) -> dict[str, EllipticCurvePublicKey]:
    """Public keys by device id, from lines of ``.pub`` files; empty lines and those that begin with # say nothing.

    Raises:
        ConfigError: it cannot be read, a line is none of a device's, or a device has two.
    """
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.hazmat.primitives.serialization import load_ssh_public_key

    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError) as error:
        raise ConfigError(f"--roster {file} cannot be read: {error}") from None
    known: dict[str, EllipticCurvePublicKey] = {}
    for number, line in enumerate(lines, 1):
        words = line.split()
        if not words or words[0].startswith("#"):
            continue
        try:
            kind, key, device = words
            found = load_ssh_public_key(f"{kind} {key}".encode())
            if not (isinstance(found, ec.EllipticCurvePublicKey) and isinstance(found.curve, ec.SECP384R1)):
                raise ValueError("not a key on the curve P-384")
            if device in known:
                raise ValueError(f"{device!r} has a line before")
        except ValueError as error:
            raise ConfigError(
                f"--roster {file}, line {number}: {error}; expected the one line of a device's .pub file: kind, key, id"
            ) from None
        known[device] = found
    return known


@cache
def drawn(device: str) -> EllipticCurvePrivateKey:
    """Key of a simulated device."""
    from cryptography.hazmat.primitives.asymmetric import ec

    number = int.from_bytes(hashlib.sha384(PURPOSE + device.encode()).digest(), "big") >> 1
    return ec.derive_private_key(number, ec.SECP384R1())


def _signed(key: EllipticCurvePrivateKey, text: bytes) -> bytes:
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric.ec import ECDSA
    from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature

    numbers = decode_dss_signature(key.sign(PURPOSE + text, ECDSA(hashes.SHA384())))
    return b"".join(number.to_bytes(COORDINATE, "big") for number in numbers)


def _verified(key: EllipticCurvePublicKey, text: bytes, signature: bytes) -> bool:
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric.ec import ECDSA
    from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature

    if len(signature) != SIGNATURE:
        return False
    r, s = (int.from_bytes(signature[i : i + COORDINATE], "big") for i in (0, COORDINATE))
    try:
        key.verify(encode_dss_signature(r, s), PURPOSE + text, ECDSA(hashes.SHA384()))
    except InvalidSignature:
        return False
    return True
