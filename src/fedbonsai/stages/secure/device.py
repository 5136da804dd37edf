"""The devices' half of a secure sum: five messages after another, each of which a device answers once.

Bonawitz et al., "Practical Secure Aggregation for Privacy-Preserving Machine Learning", CCS 2017 (figure 4): `commit` is
round 0 (AdvertiseKeys), done once the update is there; the tasks are rounds 1 (ShareKeys), 2 (MaskedInputCollection), 3
(ConsistencyCheck) and 4 (Unmasking). What a device draws for a round is gone from its memory when the round is over.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from fedbonsai.core import Client, Memory, task
from fedbonsai.errors import BadMessage, Silent
from fedbonsai.identity import Identity, Simulated
from fedbonsai.stages.secure import keys
from fedbonsai.stages.secure.codes import Coded
from fedbonsai.stages.secure.fixed import Frame, add, frame, subtract
from fedbonsai.stages.secure.keys import SEALED, SECRET, Secrets
from fedbonsai.stages.secure.messages import (
    Agreed,
    Agreement,
    Inbox,
    Keys,
    Masked,
    Neighbours,
    Open,
    Order,
    Revealed,
    Shares,
    Survivors,
)
from fedbonsai.wire import encode

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

SECURE = "secure"  # in a client's memory
SESSION = 16  # bytes
CHECK = 16  # bytes of the digest by which a secret is known again


def commit(
    order: Order, given: Coded, alike: tuple[object, ...], me: Client, memory: Memory
) -> tuple[Keys | Open, Memory]:
    """Keep codes until they are asked for, and tell the keys under which they will be masked.

    Args:
        order: of the server.
        given: to the sum.
        alike: what all devices must have been told alike, such as the model and how to train: a server that has all but one
            learn nothing would see the update of that one.
        me: the client.
        memory: of the client.
    """
    rest = {name: value for name, value in memory.items() if name != SECURE}
    if not order.how.masked:
        return Open(given.payload), rest
    secrets = Secrets.drawn()
    mask, box, check = keys.public(secrets.mask), keys.public(secrets.box), digest(secrets.own)
    # signed and not sent: who was told otherwise finds that no signature holds
    told = hashlib.sha256(encode((order, *alike))).digest()
    signature = _identity(me).sign(said("keys", told, me.id, mask, box, check))
    held = {
        "session": order.session,
        "told": told,
        "secrets": secrets.raw,
        "form": given.form,
        "codes": given.payload,
        "others": max(0, order.noise.least - 1),  # without whose noise this device takes no mask away
    }
    return Keys(mask, box, check, signature), {**rest, SECURE: held}


@task("secure/share")
def share(request: Neighbours, me: Client, memory: Memory) -> tuple[Shares, Memory]:
    """ShareKeys: see that the neighbours are who they are, and give each a share of both secrets."""
    held, identity = _held(request.session, memory, "codes"), _identity(me)
    if "peers" in held:
        raise Silent("shares were given before")
    count, names = len(request.peers), [peer.device for peer in request.peers]
    if count < held["others"]:
        raise Silent(f"{count} neighbours, {held['others']} are needed for the noise of their sum")
    if count < 2 or not count < 2 * request.threshold <= 2 * count or len({*names, me.id}) != count + 1:
        raise Silent(
            f"{count} neighbours, {request.threshold} of whom tell a secret: expected more than half of two or more others"
        )
    for peer in request.peers:
        k = peer.keys
        if not identity.knows(
            peer.device, said("keys", held["told"], peer.device, k.mask, k.box, k.check), k.signature
        ):
            raise Silent(
                f"the keys of {peer.device!r} are not signed by the device of that name on the roster here, or it was told to "
                "train another model or otherwise"
            )
    identity.spend(said("share", request.session))
    secrets = Secrets.read(held["secrets"])
    box = keys.private(secrets.box)
    shares = [keys.split(secret, request.threshold, count) for secret in (secrets.mask, secrets.own)]
    sealed = b"".join(
        keys.seal(box, peer.keys.box, said(request.session, me.id, peer.device), mask + own)
        for peer, mask, own in zip(request.peers, *shares, strict=True)
    )
    peers = tuple((peer.device, peer.keys.mask, peer.keys.box) for peer in request.peers)
    threshold = max(request.threshold, held["others"])
    return Shares(sealed), {**memory, SECURE: {**held, "peers": peers, "threshold": threshold}}


@task("secure/mask")
def mask(request: Inbox, me: Client, memory: Memory) -> tuple[Masked, Memory]:
    """MaskedInputCollection: the codes under a mask of its own, and one with each neighbour whose shares are there."""
    held = _held(request.session, memory, "codes", "peers")
    there = chosen(held["peers"], request.there)
    if len(there) < held["threshold"] or len(request.sealed) != SEALED * len(there):
        raise Silent(f"shares of {len(there)} neighbours are there, {held['threshold']} are needed")
    _identity(me).spend(said("mask", request.session))
    secrets, form = Secrets.read(held["secrets"]), frame(*held["form"])
    shared, mailbox, shares = keys.private(secrets.mask), keys.private(secrets.box), dict[str, bytes]()
    words = [row.copy() for row in form.unpack(held["codes"])]
    add(words, form.mask(keys.own_mask(secrets.own, request.session, form.stream)))
    for place, (device, key, box) in enumerate(there):
        sealed = request.sealed[SEALED * place : SEALED * (place + 1)]
        shares[device] = keys.unseal(mailbox, box, said(request.session, device, me.id), sealed)
        between(words, form, shared, key, request.session, me.id < device)
    kept = {"session": request.session, "threshold": held["threshold"], "shares": shares}
    return Masked(form.pack(words)), {**memory, SECURE: kept}


def between(words: Any, form: Frame, key: X25519PrivateKey, other: bytes, session: bytes, first: bool) -> None:
    """Put a mask that two neighbours share onto the words, in place: the first of them adds what the other takes away."""
    shared = form.mask(keys.mask_between(key, other, session, form.stream))
    (add if first else subtract)(words, shared)


@task("secure/agree")
def agree(request: Survivors, me: Client, memory: Memory) -> tuple[Agreed, Memory]:
    """ConsistencyCheck: sign the one list of survivors that this device will ever sign in this round."""
    held = _held(request.session, memory, "shares")
    alive = set(request.devices)
    if "alive" in held:
        raise Silent("a list of survivors was signed before")
    if me.id not in alive or len(alive) != len(request.devices):
        raise Silent("the list of survivors is not one that has this device, and each once")
    if (count := len(alive & held["shares"].keys())) < held["threshold"]:
        raise Silent(f"{count} neighbours survived, {held['threshold']} are needed")
    identity = _identity(me)
    identity.spend(said("agree", request.session))
    text = listed(request.session, request.devices)
    return Agreed(identity.sign(text)), {**memory, SECURE: {**held, "alive": tuple(sorted(alive)), "text": text}}


@task("secure/reveal")
def reveal(request: Agreement, me: Client, memory: Memory) -> tuple[Revealed, Memory]:
    """Unmasking: once enough neighbours signed the same list, tell one share of each, and forget them all."""
    held, identity = _held(request.session, memory, "shares", "alive"), _identity(me)
    shares: dict[str, bytes] = held["shares"]
    alive = set(held["alive"])
    signers = chosen(tuple(sorted(shares)), request.there)
    size = len(request.signatures) // max(1, len(signers))
    signed = [
        device
        for place, device in enumerate(signers)
        if device in alive
        and identity.knows(device, held["text"], request.signatures[size * place : size * (place + 1)])
    ]
    if len(signed) < held["threshold"]:
        raise Silent(
            f"{len(signed)} neighbours signed the list of survivors that was shown here, {held['threshold']} are needed"
        )
    identity.spend(said("reveal", request.session))
    told = b"".join(shares[id][SECRET:] if id in alive else shares[id][:SECRET] for id in sorted(shares))
    return Revealed(told), {name: value for name, value in memory.items() if name != SECURE}


def said(*parts: str | bytes) -> bytes:
    """Parts as one text that can be read in one way only."""
    raw = [part.encode() if isinstance(part, str) else part for part in parts]
    return b"".join(len(part).to_bytes(4, "big") + part for part in raw)


def listed(session: bytes, devices: Collection[str]) -> bytes:
    """What a device signs of a list of survivors."""
    return said("survivors", session, hashlib.sha256(said(*sorted(devices))).digest())


def digest(secret: bytes) -> bytes:
    """By which a secret is known again, and which tells nothing of it."""
    return hashlib.sha256(b"fedbonsai/secure/own" + secret).digest()[:CHECK]


def bits_of(flags: Sequence[bool]) -> bytes:
    """A bit for each, lowest first."""
    return np.packbits(np.array(flags, np.bool_), bitorder="little").tobytes()


def chosen(among: Sequence[Any], flags: bytes) -> list[Any]:
    """Those whose bit is set.

    Raises:
        BadMessage: there are more or fewer bits than choices.
    """
    if len(flags) != (len(among) + 7) // 8:
        raise BadMessage(f"{len(flags)} bytes of bits for {len(among)} devices")
    found = np.unpackbits(np.frombuffer(flags, np.uint8), count=len(among), bitorder="little")
    return [one for one, flag in zip(among, found, strict=True) if flag]


def _held(session: bytes, memory: Memory, *names: str) -> dict[str, Any]:
    """What this device keeps of the session.

    Raises:
        Silent: nothing, or it is at another step.
    """
    held = cast("dict[str, Any]", memory.get(SECURE, {}))
    if held.get("session") != session or not held.keys() >= set(names):
        raise Silent("this is not the next step of the secure sum that goes on here")
    return held


def _identity(me: Client) -> Identity:
    return me.identity or Simulated(me.id)
