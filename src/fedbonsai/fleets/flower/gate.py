"""The gate between devices and the SuperLink: it lets the devices' requests through and nothing else.

Since release 1.40 a SuperLink answers devices, its own processes and the command line on one port, and nobody has to
prove who he is to the command line's part: whoever reaches that port may start a run, which is to run code on the
server and on every device, or register a key of his own. So the SuperLink listens on this machine only, and what comes
from outside comes through here.
"""

from __future__ import annotations

import asyncio
import ssl
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, MutableMapping
from pathlib import Path
from typing import Any

import httpx
import uvicorn

from fedbonsai.errors import ConfigError

OPEN = "/v1/fleet/"  # what devices ask for
LARGEST = 64 << 20  # bytes of one request; Flower cuts arrays into objects of 5 MB
HOP = {b"connection", b"keep-alive", b"transfer-encoding", b"upgrade", b"te", b"trailer", b"host", b"content-length"}

Asgi = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Asgi]]
Send = Callable[[Asgi], Awaitable[None]]


class TooLarge(Exception):
    """A request over the limit."""


class Gate:
    """A TLS server in a thread of this process.

    Args:
        host: address to listen on.
        port: port to listen on.
        inner: port of the SuperLink on this machine.
        ca: authority that signed the certificate.
        certificate: of the server.
        key: of the certificate.
    """

    def __init__(self, host: str, port: int, inner: int, ca: Path, certificate: Path, key: Path) -> None:
        self._where = f"{host}:{port}"
        self._inner, self._ca = f"https://127.0.0.1:{inner}", ca
        self._client: httpx.AsyncClient | None = None
        config = uvicorn.Config(
            self._serve,
            host=host,
            port=port,
            ssl_certfile=str(certificate),
            ssl_keyfile=str(key),
            interface="asgi3",
            ws="none",
            proxy_headers=False,
            lifespan="off",
            log_level="error",
            access_log=False,
            server_header=False,
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
                raise ConfigError(f"nothing can listen on {self._where}; choose another --host or --port")
            time.sleep(0.05)

    def close(self) -> None:
        """Stop."""
        self._server.should_exit = True
        self._thread.join(5)

    async def _main(self) -> None:
        try:
            await self._server.serve()
        except SystemExit:  # what it raises when it cannot listen; `start` says so
            return
        finally:
            if self._client is not None:
                await self._client.aclose()

    async def _serve(self, scope: Asgi, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        path = str(scope["path"])
        if (
            scope["method"] != "POST"
            or not path.startswith(OPEN)
            or ".." in path
            or "%" in path
            or scope["query_string"]
        ):
            await _say(send, 404)
            return
        if self._client is None:
            limits = httpx.Limits(max_connections=None, max_keepalive_connections=64)
            verify = ssl.create_default_context(cafile=str(self._ca))
            self._client = httpx.AsyncClient(base_url=self._inner, verify=verify, limits=limits, timeout=120)
        headers = [(name, value) for name, value in scope["headers"] if name not in HOP]
        try:
            body = b"".join([part async for part in _body(receive)])
            request = self._client.build_request("POST", path, headers=headers, content=body)
            answer = await self._client.send(request, stream=True)
        except TooLarge:
            await _say(send, 413)
            return
        except httpx.HTTPError:
            await _say(send, 502)
            return
        kept = [(name.lower(), value) for name, value in answer.headers.raw if name.lower() not in HOP]
        await send({"type": "http.response.start", "status": answer.status_code, "headers": kept})
        try:
            async for part in answer.aiter_raw():
                await send({"type": "http.response.body", "body": part, "more_body": True})
        finally:
            await answer.aclose()
        await send({"type": "http.response.body", "body": b""})


async def _body(receive: Receive) -> AsyncIterator[bytes]:
    size = 0
    while True:
        event = await receive()
        if event["type"] == "http.disconnect":
            raise httpx.ReadError("the device went away")
        part: bytes = event.get("body", b"")
        size += len(part)
        if size > LARGEST:
            raise TooLarge
        yield part
        if not event.get("more_body"):
            return


async def _say(send: Send, status: int) -> None:
    await send({"type": "http.response.start", "status": status, "headers": [(b"content-length", b"0")]})
    await send({"type": "http.response.body", "body": b""})
