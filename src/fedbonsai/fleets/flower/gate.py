"""The gate between devices and the SuperLink: it lets the devices' requests through and nothing else.

Since release 1.40 a SuperLink answers devices, its own processes and the command line on one port, and nobody has to
prove who he is to the command line's part: whoever reaches that port may start a run, which is to run code on the
server and on every device, or register a key of his own. So the SuperLink listens on this machine only, and what comes
from outside comes through here.

A device asks for messages and, where there are none, sleeps for three seconds, so most of a small round would be that
sleep. The gate keeps such a question until the process of a run says that it sent something (`bell`).
"""

from __future__ import annotations

import asyncio
import re
import ssl
import time
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager, nullcontext
from pathlib import Path
from typing import Any

import httpx

from fedbonsai.fleets.flower.bell import Bell
from fedbonsai.fleets.flower.listener import Asgi, Listener, Receive, Send
from fedbonsai.fleets.flower.quota import Quota

OPEN = re.compile(rb"/v1/fleet(/[a-z0-9-]+)+")  # what devices ask for, as it is written on the wire
LARGEST = 16 << 20  # bytes of one request; Flower cuts arrays into objects of 5 MB
HELD = 1 << 30  # bytes of all requests that are being read; whoever comes then waits
BODY = 600.0  # seconds in which a request must have come
IDLE = 60.0  # seconds without a byte of it
CONNECTIONS = 2048  # at a time
PULL = b"/v1/fleet/pull-messages"  # the question that is kept
KEEP = 15.0  # seconds for which it is; a device gives up after 30, and what it was told then would be lost
AGAIN = 3.0  # seconds after which it is asked again meanwhile, as a device would, for messages that nobody rang for
RATE = 10.0  # such questions to the SuperLink a second, of all devices: each takes it some 10 ms
ASKING = 32  # such questions to the SuperLink at a time: all devices' at once would each be a connection of its own
WHO = b"flwr-public-key"  # header in which a device names the key that signed the request; the SuperLink checks that it did
HOP = {  # headers that concern one connection, or say who asked: the SuperLink would believe them from this machine
    b"connection",
    b"content-length",
    b"expect",
    b"forwarded",
    b"host",
    b"keep-alive",
    b"proxy-authorization",
    b"proxy-connection",
    b"te",
    b"trailer",
    b"transfer-encoding",
    b"upgrade",
    b"x-forwarded-for",
    b"x-forwarded-proto",
}


class TooLarge(Exception):
    """A request over the limit."""


class Gate(Listener):
    """A TLS server in a thread of this process.

    Args:
        host: address to listen on.
        port: port to listen on.
        inner: port of the SuperLink on this machine.
        ca: authority that signed the certificate.
        certificate: of the server.
        key: of the certificate.
        quota: how much each device may send; None: as much as it likes.
        bell: that runs ring when they have sent something; None: no question is kept.
    """

    def __init__(
        self,
        host: str,
        port: int,
        inner: int,
        ca: Path,
        certificate: Path,
        key: Path,
        quota: Quota | None = None,
        bell: Bell | None = None,
    ) -> None:
        files = {"ssl_certfile": str(certificate), "ssl_keyfile": str(key)}
        super().__init__(self._serve, host, port, CONNECTIONS, "--host or --port", **files)
        self._quota, self._bell = quota, bell
        self._inner, self._ca = f"https://127.0.0.1:{inner}", ca
        self._client: httpx.AsyncClient | None = None
        self._closing, self._asking = False, asyncio.Semaphore(ASKING)
        self._held = 0  # bytes that requests have announced
        self.seen: dict[bytes, float] = {}
        """When a key was last let through, in seconds since 1970, by the header that names it."""

    def close(self) -> None:
        """Stop, and answer the questions that are kept."""
        self._closing = True
        if self._bell is not None:
            self._bell.ring()
        super().close()

    async def over(self) -> None:
        """Let go of the SuperLink."""
        if self._client is not None:
            await self._client.aclose()

    async def _serve(self, scope: Asgi, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        path: bytes = scope["raw_path"]
        if scope["method"] != "POST" or not OPEN.fullmatch(path) or scope["query_string"]:
            await _say(send, 404)
            return
        if self._client is None:
            limits = httpx.Limits(max_connections=None, max_keepalive_connections=64)
            verify = ssl.create_default_context(cafile=str(self._ca))
            # trust_env: a proxy that the environment names is for elsewhere, the SuperLink is on this machine
            self._client = httpx.AsyncClient(
                base_url=self._inner, verify=verify, limits=limits, timeout=120, trust_env=False
            )
        headers = [(name, value) for name, value in scope["headers"] if name not in HOP]
        who = dict(scope["headers"]).get(WHO, b"")
        if self._quota is not None and who and not self._quota.allows(who, _announced(scope)):
            await _say(send, 429)
            return
        try:
            async with self._room(_announced(scope)):
                body = b"".join([part async for part in _body(receive)])
                answer = await self._answer(self._client, path, headers, body, receive)
                if who and answer.is_success:  # it took the signature, so these are not more than there are devices
                    self.seen[who] = time.time()
                    if self._quota is not None:
                        self._quota.spend(who, len(body))
        except TooLarge:
            await _say(send, 413)
            return
        except TimeoutError:
            await _say(send, 408)
            return
        except httpx.HTTPError:
            await _say(send, 502)
            return
        kept = [(name.lower(), value) for name, value in answer.headers.raw if name.lower() not in HOP]
        await send({"type": "http.response.start", "status": answer.status_code, "headers": kept})
        try:
            if not answer.is_stream_consumed:
                async for part in answer.aiter_raw():
                    await send({"type": "http.response.body", "body": part, "more_body": True})
        finally:
            await answer.aclose()
        await send({"type": "http.response.body", "body": b""})

    async def _answer(
        self, client: httpx.AsyncClient, path: bytes, headers: list[tuple[bytes, bytes]], body: bytes, receive: Receive
    ) -> httpx.Response:
        """What the SuperLink says; that there is no message only once there was none for a while.

        Raises:
            httpx.HTTPError: it cannot be asked, or the device went away meanwhile: a message would be lost on it.
        """
        until = time.monotonic() + KEEP
        gone: asyncio.Future[Any] | None = None
        try:
            while True:
                heard = self._bell.last() if self._bell is not None else 0
                request = client.build_request("POST", path.decode(), headers=headers, content=body)
                async with self._asking if path == PULL else nullcontext():
                    answer = await client.send(request, stream=True)
                left = until - time.monotonic()
                if self._bell is None or path != PULL or left <= 0 or self._closing or not _nothing(answer):
                    return answer
                await answer.aread()  # what was read to its end leaves its connection to the next one
                gone = gone or asyncio.ensure_future(receive())
                await self._bell.rung(heard, min(max(AGAIN, self._bell.listening / RATE), left), gone)
                if gone.done():
                    raise httpx.ReadError("the device went away")
                if self._bell.last() == heard and time.monotonic() >= until:
                    return answer
        finally:
            if gone is not None:
                gone.cancel()

    @asynccontextmanager
    async def _room(self, size: int) -> AsyncGenerator[None]:
        """Room for a request of so many bytes, as soon as there is some.

        Raises:
            TooLarge: it is over the limit.
            TimeoutError: there was no room, or the request did not come in time.
        """
        if size > LARGEST:
            raise TooLarge
        async with asyncio.timeout(BODY):
            while self._held + size > HELD:
                await asyncio.sleep(0.05)
            self._held += size
            try:
                yield
            finally:
                self._held -= size


def _nothing(answer: httpx.Response) -> bool:
    """Whether it is a list of no messages, which Flower writes with no byte."""
    return answer.is_success and answer.headers.get("content-length") == "0"


def _announced(scope: Asgi) -> int:
    """Bytes that a request says it has; the limit where it does not say."""
    held = dict(scope["headers"]).get(b"content-length", b"")
    return int(held) if held else LARGEST


async def _body(receive: Receive) -> AsyncIterator[bytes]:
    size = 0
    while True:
        event = await asyncio.wait_for(receive(), IDLE)
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
