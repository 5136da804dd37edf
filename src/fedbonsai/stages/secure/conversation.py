"""The server's side of rounds 1 to 4: keys, shares, masked codes, one list of survivors, and the masks taken away.

Bonawitz et al., CCS 2017 (figure 4). Whoever falls silent before its codes came is left out; who does after that is part of
the sum. Secrets are local to a `Conversation`: nothing of them enters a state.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, TypeVar

from fedbonsai.core import Answer, Device, Fleet, Silence, Task, forgetful
from fedbonsai.errors import BadMessage, Unanswered
from fedbonsai.identity import SIGNATURE
from fedbonsai.stages.secure import device, keys
from fedbonsai.stages.secure.device import between, bits_of, digest
from fedbonsai.stages.secure.fixed import Frame, add, subtract
from fedbonsai.stages.secure.graph import needed, neighbours
from fedbonsai.stages.secure.keys import SEALED, SECRET
from fedbonsai.stages.secure.messages import Agreement, Inbox, Keys, Neighbours, Order, Peer, Survivors
from fedbonsai.stages.secure.settings import FEWEST
from fedbonsai.stages.updates import Usable
from fedbonsai.tree import seed_of

V = TypeVar("V")


class Talk:
    """The steps of one conversation, and who is out of it."""

    def __init__(self, fleet: Fleet) -> None:
        self.silent: dict[Device, Silence] = {}
        self.dropped = 0
        self._fleet, self._begun = fleet, False

    def ask(
        self, task: Task[Any, Any], requests: Mapping[Device, Any], opened: Callable[[Answer[Any]], V | None]
    ) -> Iterator[tuple[str, V]]:
        """What each device says that answers as it should, by its id; who does not is out, and keeps nothing of this round."""
        usable = Usable(self._fleet.ask(task, requests, 0), self._fleet, opened)
        for answer, found in usable:
            yield answer.device.id, found
        for one in usable.silent if self._begun else ():
            self._fleet.reject(one)
        self._begun = True
        self.silent |= usable.silent
        self.dropped += usable.dropped

    def enough(self, count: int, least: int) -> None:
        """Go on only with so many.

        Raises:
            Unanswered: there are fewer.
        """
        if count < least:
            why = "; ".join(f"{one.id}: {silence.reason}" for one, silence in list(self.silent.items())[:5])
            text = (
                f"{count} devices are left in a secure sum, at least {least} are needed ({why or 'nobody was asked'})"
            )
            raise Unanswered(text, forgetful(self.silent))


class Conversation:
    """A sum under masks.

    Args:
        talk: with the devices.
        order: of the session.
        form: of the codes.
        told: keys by device, of all who trained.
        devices: of these ids.
    """

    def __init__(
        self, talk: Talk, order: Order, form: Frame, told: Mapping[str, Keys], devices: Iterable[Device]
    ) -> None:
        self._talk, self._session, self._form, self._told = talk, order.session, form, told
        self._devices = {one.id: one for one in devices}
        self._around = neighbours(list(told), order.how.neighbours, seed_of(order.seed, "neighbours", -1, 0))
        self._fewest = fewest(order)
        self._least = {id: needed(len(around), order.how.threshold) for id, around in self._around.items()}
        self.total = form.zeros()
        self.alive: list[str] = []
        """Devices of the sum."""
        self.stayed: list[str] = []
        """Those that answered to the end."""

    def run(self) -> None:
        """Rounds 1 to 4.

        Raises:
            Unanswered: too few devices stayed.
        """
        shared = self._share()
        self._mask(shared)
        self._unmask(shared, self._reveal(shared, self._agree()))

    def _share(self) -> dict[str, dict[str, bytes]]:
        """Encrypted shares by sender and receiver."""
        peers = {id: Peer(id, found) for id, found in self._told.items()}
        asked = {
            id: Neighbours(self._session, self._least[id], tuple(peers[other] for other in around))
            for id, around in self._around.items()
        }
        shared: dict[str, dict[str, bytes]] = {}
        for id, sealed in self._ask(device.share, asked, lambda id, value: value.sealed, self._size(SEALED)):
            shared[id] = dict(zip(self._around[id], _parts(sealed, SEALED), strict=True))
        self._talk.enough(len(shared), self._fewest)
        return shared

    def _mask(self, shared: Mapping[str, Mapping[str, bytes]]) -> None:
        """Add up masked codes, of devices that know of each other that they gave shares."""
        inboxes: dict[str, Inbox] = {}
        for id in shared:
            there = [other in shared for other in self._around[id]]
            sealed = b"".join(shared[other][id] for other in self._around[id] if other in shared)
            inboxes[id] = Inbox(self._session, bits_of(there), sealed)
        for id, words in self._ask(device.mask, inboxes, lambda _, value: self._form.unpack(value.payload)):
            add(self.total, words)
            self.alive.append(id)
        self._talk.enough(len(self.alive), self._fewest)

    def _agree(self) -> dict[str, bytes]:
        """Signatures under the one list of survivors."""
        listed = Survivors(self._session, tuple(self.alive))
        asked = dict.fromkeys(self.alive, listed)
        found = dict(self._ask(device.agree, asked, lambda _, value: value.signature, lambda _: SIGNATURE))
        self._talk.enough(len(found), self._fewest)
        return found

    def _reveal(self, shared: Mapping[str, object], signatures: Mapping[str, bytes]) -> dict[str, dict[int, bytes]]:
        """Shares by device and number: of its own mask if it survived, else of those with its neighbours."""
        senders = {id: sorted(other for other in self._around[id] if other in shared) for id in signatures}
        asked = {
            id: Agreement(
                self._session,
                bits_of([other in signatures for other in around]),
                b"".join(signatures[other] for other in around if other in signatures),
            )
            for id, around in senders.items()
        }
        found: dict[str, dict[int, bytes]] = {id: {} for id in shared}
        for id, raw in self._ask(
            device.reveal, asked, lambda _, value: value.shares, lambda id: SECRET * len(senders[id])
        ):
            self.stayed.append(id)
            for other, part in zip(senders[id], _parts(raw, SECRET), strict=True):
                found[other][self._around[other].index(id) + 1] = part
        return found

    def _unmask(self, shared: Iterable[str], found: Mapping[str, Mapping[int, bytes]]) -> None:
        """Take away the masks of who survived, and what remains of those shared with who did not."""
        alive = set(self.alive)
        for id in shared:
            if id in alive:
                own = keys.own_mask(self._secret(id, found[id], True), self._session, self._form.stream)
                subtract(self.total, self._form.mask(own))
            elif survivors := [other for other in self._around[id] if other in alive]:
                key = keys.private(self._secret(id, found[id], False))
                for other in survivors:  # the part that it would have sent
                    between(self.total, self._form, key, self._told[other].mask, self._session, id < other)

    def _secret(self, id: str, shares: Mapping[int, bytes], survived: bool) -> bytes:
        """A secret from its shares.

        Raises:
            Unanswered: there are too few, or they do not make it up.
        """
        least, told = self._least[id], self._told[id]
        if len(shares) < least:
            silent = forgetful(self._talk.silent)
            raise Unanswered(
                f"{len(shares)} neighbours of {id!r} stayed to the end of a secure sum, {least} are needed", silent
            )
        secret = keys.join(dict(list(shares.items())[:least]))
        if (digest(secret) != told.check) if survived else (keys.public(secret) != told.mask):
            raise Unanswered(f"the shares of {id!r} do not make up its secret: a device lied, or its memory is damaged")
        return secret

    def _size(self, each: int) -> Callable[[str], int]:
        """Bytes of an answer that has so many for each neighbour."""
        return lambda id: each * len(self._around[id])

    def _ask(
        self,
        task: Task[Any, Any],
        requests: Mapping[str, Any],
        read: Callable[[str, Any], V],
        size: Callable[[str], int] | None = None,
    ) -> Iterator[tuple[str, V]]:
        """Answers by id; one that has other than ``size`` bytes is dropped."""

        def opened(answer: Answer[Any]) -> V:
            found = read(answer.device.id, answer.value)
            if size is not None and len(found) != (wanted := size(answer.device.id)):  # type: ignore[arg-type] - of bytes alone
                raise BadMessage(f"{len(found)} bytes in a {type(answer.value).__name__}, expected {wanted}")  # type: ignore[arg-type] - as above
            return found

        return self._talk.ask(task, {self._devices[id]: request for id, request in requests.items()}, opened)


def fewest(order: Order) -> int:
    """Devices that a sum has at least: of two, each knows the other's part; of fewer than its noise needs, too much shows."""
    return max(FEWEST if order.how.masked else 1, order.noise.least)


def _parts(raw: bytes, size: int) -> list[bytes]:
    return [raw[at : at + size] for at in range(0, len(raw), size)]
