"""Keys, masks and shares of a secure sum: X25519, HKDF and AES of `cryptography`, Shamir's sharing of `pycryptodome`.

Every key is made for one purpose of one round, so that counters and nonces may begin at zero. Secrets are 16 random bytes,
which is what Shamir's sharing takes; private keys of X25519 follow from them.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fedbonsai.errors import Silent

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

SECRET = 16  # bytes of a secret, and of a share of it
PUBLIC = 32  # bytes of a public key of X25519
TAG = 16  # bytes by which AES-GCM tells that nothing was altered
SEALED = 2 * SECRET + TAG  # bytes of one neighbour's two shares on their way
NONCE = 12
ZERO = bytes(16)


@dataclass(frozen=True)
class Secrets:
    """What a device draws for one round.

    Attributes:
        mask: from which its part of the masks that it shares with neighbours follows; shared out, for when it is lost.
        own: from which its own mask follows; shared out, to take that mask away.
        box: under which shares travel to it; never shared.
    """

    mask: bytes
    own: bytes
    box: bytes

    @classmethod
    def drawn(cls) -> Secrets:
        """From the system's randomness: what a seed decides, a server knows."""
        return cls(os.urandom(SECRET), os.urandom(SECRET), os.urandom(SECRET))

    @classmethod
    def read(cls, raw: bytes) -> Secrets:
        """From its bytes."""
        return cls(*(raw[i : i + SECRET] for i in range(0, 3 * SECRET, SECRET)))

    @property
    def raw(self) -> bytes:
        """As a device's memory holds it."""
        return self.mask + self.own + self.box


def private(secret: bytes) -> X25519PrivateKey:
    """The private key that follows from a secret."""
    from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

    return X25519PrivateKey.from_private_bytes(_derived(secret, b"key", 32))


def public(secret: bytes) -> bytes:
    """Its public half."""
    return private(secret).public_key().public_bytes_raw()


def usable(key: bytes) -> bool:
    """Whether bytes are a public key with which secrets can be agreed on."""
    try:
        common(private(bytes(SECRET)), key, b"")
    except Silent:
        return False
    return True


def common(key: X25519PrivateKey, other: bytes, purpose: bytes) -> bytes:
    """A key of 16 bytes that the holders of two private keys find alike, each by the public key of the other.

    Raises:
        Silent: the other's is no public key.
    """
    from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PublicKey

    try:
        agreed = key.exchange(X25519PublicKey.from_public_bytes(other))
    except ValueError as error:  # of another length, or a point that makes every secret alike
        raise Silent(f"not a public key: {error}") from None
    return _derived(agreed, purpose, SECRET)


def mask_between(key: X25519PrivateKey, other: bytes, session: bytes, count: int) -> bytes:
    """Random bytes that two neighbours find alike."""
    return expand(common(key, other, b"mask" + session), count)


def own_mask(secret: bytes, session: bytes, count: int) -> bytes:
    """Random bytes of a device's own mask."""
    return expand(_derived(secret, b"own" + session, SECRET), count)


def expand(key: bytes, count: int) -> bytes:
    """So many random bytes from a key that is used for nothing else: AES-128 in counter mode."""
    from cryptography.hazmat.primitives.ciphers import Cipher
    from cryptography.hazmat.primitives.ciphers.algorithms import AES
    from cryptography.hazmat.primitives.ciphers.modes import CTR

    return Cipher(AES(key), CTR(ZERO)).encryptor().update(bytes(count))


def seal(key: X25519PrivateKey, other: bytes, route: bytes, text: bytes) -> bytes:
    """Encrypt shares for a neighbour: AES-GCM under a key of this route alone.

    Args:
        key: of the sender's box.
        other: public key of the receiver's box.
        route: session, sender, receiver.
        text: a share of each secret.
    """
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

    return AESGCM(common(key, other, b"box" + route)).encrypt(bytes(NONCE), text, route)


def unseal(key: X25519PrivateKey, other: bytes, route: bytes, sealed: bytes) -> bytes:
    """Inverse of `seal`, at the receiver's.

    Raises:
        Silent: it was altered, or is another's.
    """
    from cryptography.exceptions import InvalidTag
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

    try:
        return AESGCM(common(key, other, b"box" + route)).decrypt(bytes(NONCE), sealed, route)
    except InvalidTag:
        raise Silent("shares that were altered on their way") from None


def split(secret: bytes, threshold: int, count: int) -> list[bytes]:
    """Shares of a secret, of which any ``threshold`` tell it and fewer tell nothing; the first is number 1."""
    from Crypto.Protocol.SecretSharing import Shamir

    return [share for _, share in Shamir.split(threshold, count, secret, ssss=False)]


def join(shares: Mapping[int, bytes]) -> bytes:
    """The secret of which these are shares, by their numbers; exactly ``threshold`` of them."""
    from Crypto.Protocol.SecretSharing import Shamir

    return Shamir.combine(list(shares.items()), ssss=False)


def _derived(key: bytes, purpose: bytes, size: int) -> bytes:
    from cryptography.hazmat.primitives.hashes import SHA256
    from cryptography.hazmat.primitives.kdf.hkdf import HKDF

    return HKDF(SHA256(), size, None, b"fedbonsai/secure/1/" + purpose).derive(key)
