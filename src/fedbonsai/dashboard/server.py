"""Who may see the page, and its addresses. Nothing here changes anything."""

from __future__ import annotations

import asyncio
import ipaddress
from collections.abc import Callable
from http.cookies import CookieError, SimpleCookie
from importlib import resources
from pathlib import Path
from urllib.parse import parse_qs

from fedbonsai.dashboard import tables
from fedbonsai.dashboard.facts import Facts, Picture
from fedbonsai.dashboard.page import page
from fedbonsai.dashboard.token import same
from fedbonsai.errors import ConfigError
from fedbonsai.fleets.flower.listener import Asgi, Listener, Receive, Send

CONNECTIONS = 64  # at a time
COOKIE = "fedbonsai_dashboard"
HTML, JSON, TEXT, CSS = "text/html", "application/json", "text/plain", "text/css"
GUARDS = {
    "content-security-policy": "default-src 'none'; style-src 'self'; img-src data:; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
    "cache-control": "no-store",
}
VIEWS: dict[str, tuple[str, Callable[[Picture], str]]] = {
    "/api/devices": (JSON, lambda picture: tables.encoded(tables.devices(picture))),
    "/api/runs": (JSON, lambda picture: tables.encoded(tables.runs(picture))),
    "/api/server": (JSON, lambda picture: tables.encoded(tables.server(picture))),
    "/metrics": (TEXT, tables.metrics),
}


def address(text: str) -> tuple[str, int]:
    """Host and port of an option.

    Raises:
        ConfigError: it is none.
    """
    host, _, port = text.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not host or not port.isascii() or not port.isdigit() or not 0 < int(port) < 65536:
        raise ConfigError(f"--dashboard {text}: expected HOST:PORT, such as 127.0.0.1:8444, or none")
    return host, int(port)


def on_this_machine(host: str) -> bool:
    """Whether only this machine reaches an address."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


class Dashboard(Listener):
    """The page's server, in a thread of this process.

    Args:
        facts: what it shows.
        host: address to listen on.
        port: port to listen on.
        token: the word that it asks for; there must be one wherever others reach the address.
        certificate: of TLS, and its key; without them it speaks plainly.

    Raises:
        ConfigError: others reach the address, and there is no token or no certificate.
    """

    def __init__(
        self, facts: Facts, host: str, port: int, token: str = "", certificate: tuple[Path, Path] | None = None
    ) -> None:
        if not on_this_machine(host) and not (token and certificate):
            raise ConfigError(
                f"--dashboard {host}:{port}: others reach this address; it needs a token and a certificate"
            )
        files = {"ssl_certfile": str(certificate[0]), "ssl_keyfile": str(certificate[1])} if certificate else {}
        super().__init__(self._serve, host, port, CONNECTIONS, "--dashboard", **files)
        self._facts, self._token, self._safe = facts, token, bool(certificate)
        shown = f"[{host}]" if ":" in host else host
        self.where = f"http{'s' if certificate else ''}://{shown}:{port}/"
        """Its address."""
        self._css = (resources.files("fedbonsai.dashboard") / "style.css").read_text(encoding="utf-8")

    async def _serve(self, scope: Asgi, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        if scope["method"] not in ("GET", "HEAD"):
            await _say(send, 405, TEXT, "this page only shows\n", {"allow": "GET, HEAD"})
            return
        head = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        asked = _asked(scope["query_string"])
        path: str = scope["path"]
        if not self._token and not on_this_machine(_host(head)):
            # a page from elsewhere whose name was made to lead here would read along
            await _say(send, 421, TEXT, "ask for this page as localhost\n")
        elif self._token and path == "/" and "token" in asked:
            await self._enter(send, asked["token"][0])
        elif self._token and not self._may(head):
            await _say(send, 401, TEXT, "this page needs its token: /?token=..., or Authorization: Bearer ...\n")
        elif path == "/style.css":
            await _say(send, 200, CSS, self._css)
        elif path == "/" or path in VIEWS:
            await self._show(send, path, "still" in asked)
        else:
            await _say(send, 404, TEXT, f"there are /, {', '.join(VIEWS)}\n")

    async def _show(self, send: Send, path: str, still: bool) -> None:
        kind, view = VIEWS.get(path, (HTML, lambda picture: page(picture, still)))
        try:
            text = await asyncio.to_thread(lambda: view(self._facts.picture()))
        except ConfigError as error:  # a file of the federation is damaged: its text says which, and what to do
            await _say(send, 500, TEXT, f"{error}\n")
            return
        await _say(send, 200, kind, text)

    async def _enter(self, send: Send, given: str) -> None:
        """Take the token out of the address, where others would see it, into a cookie."""
        if not same(given, self._token):
            await _say(send, 401, TEXT, "this is not the token\n")
            return
        guard = f"{COOKIE}={self._token}; Path=/; HttpOnly; SameSite=Strict{'; Secure' if self._safe else ''}"
        await _say(send, 303, TEXT, "", {"location": "/", "set-cookie": guard})

    def _may(self, head: dict[str, str]) -> bool:
        kind, _, word = head.get("authorization", "").partition(" ")
        if kind.lower() == "bearer" and same(word.strip(), self._token):
            return True
        try:
            held = SimpleCookie(head.get("cookie", "")).get(COOKIE)
        except CookieError:
            return False
        return held is not None and same(held.value, self._token)


def _asked(query: bytes) -> dict[str, list[str]]:
    """What an address asks for; nothing where that is more than the page knows."""
    try:
        return parse_qs(query.decode("latin-1"), keep_blank_values=True, max_num_fields=8)
    except ValueError:
        return {}


def _host(head: dict[str, str]) -> str:
    """The host that a browser was told, without its port."""
    said = head.get("host", "")
    return said[1:].partition("]")[0] if said.startswith("[") else said.partition(":")[0]


async def _say(send: Send, status: int, kind: str, text: str, more: dict[str, str] | None = None) -> None:
    body = text.encode()
    head = GUARDS | {"content-type": f"{kind}; charset=utf-8", "content-length": str(len(body))} | (more or {})
    headers = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in head.items()]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
