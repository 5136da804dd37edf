"""A Flower engine in one process: unmodified ServerApps, strategies and ClientApps, without Ray and without daemons."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping
from typing import Any

from flwr.app import Context, Error, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp

from fedbonsai.fleets.flower import compat

RUN = 1


class InProcessGrid(Grid):
    """Nodes in this process. A message runs when its reply is pulled, so one reply at a time takes memory.

    Args:
        app: what every node runs; each node keeps its own ``Context`` and its state between messages.
        nodes: configuration by node id.
        run_config: what the apps find in ``Context.run_config``.
    """

    def __init__(
        self, app: ClientApp, nodes: Mapping[int, Mapping[str, Any]], run_config: Mapping[str, Any] | None = None
    ) -> None:
        compat.act_as_server(RUN)
        self._app, self._run = app, compat.empty_run(RUN)
        self._contexts = {
            id: Context(RUN, id, dict(config), RecordDict(), dict(run_config or {})) for id, config in nodes.items()
        }
        self._waiting: dict[str, Message] = {}
        self._serial = itertools.count(1)

    def set_run(self, run: Any) -> None:
        """Set the run's description."""
        self._run = run

    @property
    def run(self) -> Any:
        """The run's description."""
        return self._run

    def create_message(
        self, content: RecordDict, message_type: str, dst_node_id: int, group_id: str, ttl: float | None = None
    ) -> Message:
        """A message to a node."""
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)

    def get_node_ids(self) -> Iterable[int]:
        """Ids of all nodes."""
        return list(self._contexts)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Take messages; their ids."""
        ids: list[str] = []
        for message in messages:
            ids.append(f"{next(self._serial)}")
            compat.set_id(message, ids[-1])
            self._waiting[ids[-1]] = message
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Run the first of these messages that has not run, and return its reply."""
        for id in message_ids:
            if (message := self._waiting.pop(id, None)) is not None:
                return [self._reply(message)]
        return []

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        """Replies to all messages, in their order."""
        return [reply for id in list(self.push_messages(messages)) for reply in self.pull_messages([id])]

    def _reply(self, message: Message) -> Message:
        context = self._contexts.get(message.metadata.dst_node_id)
        if context is None:
            return Message(Error(compat.CLIENT_FAILED, "there is no such node"), reply_to=message)
        try:
            reply = self._app(message, context)
        except Exception as error:  # a failing client is a reply, as it is behind a SuperLink
            reply = Message(Error(compat.CLIENT_FAILED, f"{type(error)}:<'{error}'>"), reply_to=message)
        compat.set_id(reply, f"reply-{next(self._serial)}")
        return reply


def run_in_process(
    server: ServerApp,
    client: ClientApp,
    nodes: Mapping[int, Mapping[str, Any]],
    run_config: Mapping[str, Any] | None = None,
) -> InProcessGrid:
    """Run a Flower app from its beginning to its end."""
    grid = InProcessGrid(client, nodes, run_config)
    server(grid, Context(RUN, 1, {}, RecordDict(), dict(run_config or {})))
    return grid
