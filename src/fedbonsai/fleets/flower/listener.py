"""A server of HTTP in a thread of this process."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from fedbonsai.errors import ConfigError

SILENCE = 30.0  # seconds between looks for connections that ask for nothing

Asgi = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Asgi]]
Send = Callable[[Asgi], Awaitable[None]]


class Impatient(H11Protocol):
    """A connection that is closed when it asks for nothing over two looks: anybody can open connections."""

    _idle = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin to look."""
        super().connection_made(transport)
        self.loop.call_later(SILENCE, self._look)

    def _look(self) -> None:
        if self.transport.is_closing():
            return
        asks = self.cycle is not None and not self.cycle.response_complete  # pyright: ignore[reportUnnecessaryComparison]
        if self._idle and not asks:
            self.transport.abort()
            return
        self._idle = not asks
        self.loop.call_later(SILENCE, self._look)


class Listener:
    """An application that is listened for at an address.

    Args:
        app: of ASGI, version 3.
        host: address to listen on.
        port: port to listen on.
        most: connections at a time.
        option: what to change where nobody can listen there.
        settings: more of uvicorn's, such as a certificate.
    """

    def __init__(
        self,
        app: Callable[[Asgi, Receive, Send], Awaitable[None]],
        host: str,
        port: int,
        most: int,
        option: str,
        **settings: Any,
    ) -> None:
        self._where, self._option = f"{host}:{port}", option
        config = uvicorn.Config(
            app,
            host=host,
            port=port,
            interface="asgi3",
            http=Impatient,
            ws="none",
            limit_concurrency=most,
            proxy_headers=False,
            lifespan="off",
            log_level="error",
            access_log=False,
            server_header=False,
            **settings,
        )
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=lambda: asyncio.run(self._main()), daemon=True)

    def start(self) -> None:
        """Listen.

        Raises:
            ConfigError: the port is taken, or the address is not this machine's.
        """
        self._thread.start()
        while not self._server.started:
            if not self._thread.is_alive():
                raise ConfigError(f"nothing can listen on {self._where}; choose another {self._option}")
            time.sleep(0.05)

    @property
    def alive(self) -> bool:
        """Whether it listens."""
        return self._thread.is_alive()

    def close(self) -> None:
        """Stop."""
        self._server.should_exit = True
        if self._thread.is_alive():
            self._thread.join(5)

    async def over(self) -> None:
        """What is to be done when it stops."""

    async def _main(self) -> None:
        try:
            await self._server.serve()
        except SystemExit:  # what it raises when it cannot listen; `start` says so
            return
        finally:
            await self.over()
