"""A fleet that dies in the middle of a round, so that a run must go on from what is on the disc."""

from fedbonsai.core import Answers
from fedbonsai.fleets.wrappers import Wrapper


class Killed(Exception):
    """Stands for kill -9 in the middle of a round."""


class Mortal(Wrapper):
    """Dies at an answer of a chosen round: after it was given and before the round was committed."""

    def __init__(self, inner, t: int, after: int):
        super().__init__(inner)
        self.t, self.after = t, after

    def ask(self, task, send, at_least=1):
        answers = self.inner.ask(task, send, 0)

        def until():
            for count, answer in enumerate(answers):
                yield answer
                if self._scope.round == self.t and count >= self.after:
                    raise Killed
            yield from answers.silent.values()

        return Answers(until(), at_least)
