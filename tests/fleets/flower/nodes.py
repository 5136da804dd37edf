"""Devices of an in-process Grid: a worker each, with its memory in a folder of its own."""

from fedbonsai import core
from fedbonsai.core import Client, Memory, task
from fedbonsai.fleets.flower import hello
from fedbonsai.fleets.flower.client import client_app
from fedbonsai.fleets.flower.fleet import FlowerFleet
from fedbonsai.fleets.flower.frames import Form
from fedbonsai.fleets.flower.grid import InProcessGrid
from fedbonsai.fleets.flower.memory import Store
from fedbonsai.fleets.flower.worker import Worker
from tests.fleets import tasks

FORM = Form((1, 1, 1), ("0",), (0.0,), (1.0,))


@task("test/typed-count")
def count(request: tasks.Question, me: Client, memory: Memory) -> tuple[tasks.Reply, Memory]:
    """As `tasks.count`, and it says what it takes and gives."""
    return tasks.count.run(request, me, memory)


def workers(people, folder):
    return {
        node: Worker(person.id, lambda form, p=person: (p.train, p.valid), Store(folder / person.id))
        # node ids fall while device ids rise: nothing may hang on their order
        for node, person in zip(range(1000 + len(people), 1000, -1), people, strict=True)
    }


def grid_of(hands):
    return InProcessGrid(client_app(lambda context: hands[context.node_id]), {node: {} for node in hands})


def fleet_of(people, folder, form=FORM, **more):
    hands = workers(people, folder)
    return FlowerFleet(grid_of(hands), form, expect=len(people), poll=0.01, **more)


def only_ours(monkeypatch):
    """Let this process know the tasks of the library alone: others were registered by tests, which a device lacks."""
    ours = tuple(sorted(name for name, each in core._tasks.items() if each.run.__module__.startswith("fedbonsai")))
    monkeypatch.setattr(hello, "tasks", lambda: ours)
