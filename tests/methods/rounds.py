"""A small federation, and rounds of a method on it with everything that was sent and heard."""

import torch

from fedbonsai.arch import Arch
from fedbonsai.core import Answers, Client, Samples, Scope, Silence, scope
from fedbonsai.errors import BadMessage
from fedbonsai.fleets.local import LocalFleet
from fedbonsai.fleets.wrappers import Wrapper
from fedbonsai.model import Model
from fedbonsai.wire import decode, encode

CNN = Arch("cnn-bn", {"size": 8})
MODEL = Model.init(CNN, 1)


def person(id="a", count=20, seed=0):
    random = torch.Generator().manual_seed(seed)
    x, y = torch.randn(count, 1, 8, 8, generator=random), torch.randint(0, 10, (count,), generator=random)
    return Client(id, 7, Samples(x, y), Samples(x[:4], y[:4]))


PEOPLE = (person("a", 20, 1), person("b", 12, 2), person("c", 9, 3))


class Watch(Wrapper):
    """Keeps every request and answer, may change an answer, and may make devices forget."""

    def __init__(self, inner, change=lambda answer, t: answer):
        super().__init__(inner)
        self.change = change
        self.sent: list[tuple[int, str, object]] = []
        self.heard: list[tuple[int, str, object]] = []

    def ask(self, task, send, at_least=1):
        t = self._scope.round
        self.sent += [(t, device.id, request) for device, request in send.items()]

        def seen():
            for answer in (answers := self.inner.ask(task, send, 0)):
                self.heard.append((t, answer.device.id, answer.value))
                changed = self.change(answer, t)
                if changed is None:
                    self.inner.reject(answer.device)
                    yield Silence(answer.device, "lost")
                else:
                    yield changed
            yield from answers.silent.values()

        return Answers(seen(), at_least)


def run(method, people=PEOPLE, rounds=3, model=MODEL, server=None, change=lambda answer, t: answer, forget=None):
    """States after begin and every round, each from its bytes; and the fleet.

    ``forget`` is the round before which all devices lose what they hold.
    """
    fleet = Watch(LocalFleet(people), change)
    with scope(fleet, Scope("r", 0, -1, 0)) as open_:
        states = [method.begin(model, open_, server or people[0])]
        open_.commit()
    for t in range(rounds):
        if t == forget:
            fleet.restore({})
        with scope(fleet, Scope("r", 0, t, 0)) as open_:
            states.append(method.round(decode(encode(states[-1])), t, open_))
            open_.commit()
    return states, fleet


def dense(update, like, masks):
    """Values of an upload as the masks place them."""
    try:
        return update.result.dense(like, masks)
    except BadMessage as error:
        raise AssertionError("an upload does not fit its masks") from error


def same(left, right):
    """Whether two trees are equal bit for bit."""
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)
