"""The gate passes a device's requests on unchanged, refuses all others, and keeps what is too large out."""

import contextlib
import http.client
import socket
import ssl
import time
from http.server import BaseHTTPRequestHandler

import pytest

from fedbonsai.errors import ConfigError
from fedbonsai.fleets.flower import gate, listener
from fedbonsai.fleets.flower.gate import Gate
from fedbonsai.fleets.flower.processes import free_port
from tests.fleets.flower.link import link_of
from tests.moments import HANGS

SEEN = []
HEADERS = []
INNER_PORT = []
GATE = []


class Link(BaseHTTPRequestHandler):
    """Stands where the SuperLink stands, and writes down what reaches it."""

    protocol_version = "HTTP/1.1"

    def do_POST(self):
        body = self.rfile.read(int(self.headers["content-length"]))
        SEEN.append((self.path, self.headers.get("flwr-signature"), body))
        HEADERS.append({name.lower() for name in self.headers})
        self.send_response(int(self.headers.get("x-refuse", 401 if self.path.endswith("refused") else 200)))
        self.send_header("Content-Length", str(len(body)))
        self.send_header("X-Answer", "yes")
        self.end_headers()
        self.wfile.write(body[::-1])

    def log_message(self, *_):
        pass


@pytest.fixture(scope="module")
def door(tmp_path_factory):
    folder = tmp_path_factory.mktemp("gate")
    with link_of(folder, Link) as (inner, files):
        INNER_PORT[:] = [inner]
        port = free_port()
        made = Gate("127.0.0.1", port, inner, *files)
        made.start()
        GATE[:] = [made]
        yield port, files
        made.close()


def ask(door, path, body=b"", method="POST", chunked=False, headers=None, **more):
    port, files = door
    connection = http.client.HTTPSConnection("localhost", port, context=ssl.create_default_context(cafile=files[0]))
    SEEN.clear()
    headers = {"flwr-signature": "abc", **(headers or {}), **more}
    if chunked:
        body = iter([body[:10], body[10:]])
    connection.request(method, path, body, headers, encode_chunked=chunked)
    answer = connection.getresponse()
    found = answer.status, answer.read(), answer.headers.get("X-Answer")
    connection.close()
    return found


@pytest.mark.parametrize("chunked", [False, True])
def test_a_devices_request_passes_with_its_headers(door, chunked):
    body = bytes(range(256)) * 8000
    assert ask(door, "/v1/fleet/push-object", body, chunked=chunked) == (200, body[::-1], "yes")
    assert [("/v1/fleet/push-object", "abc", body)] == SEEN


@pytest.mark.parametrize(
    ("path", "method"),
    [
        ("/v1/control/start-run", "POST"),
        ("/v1/runtime/pull-messages", "POST"),
        ("/v1/fleet/../control/start-run", "POST"),
        ("/v1/fleet/%2e%2e/control/start-run", "POST"),
        ("/v1/fleet//../control", "POST"),
        ("/v1/fleet/x?y", "POST"),
        ("/v1/fleet/pull-messages", "GET"),
        ("/v1/fleetx/", "POST"),
        ("//v1/fleet/../control/start-run", "POST"),
        ("//v1/fleet/pull-messages", "POST"),
        ("/v1/fleet/x%3Fy", "POST"),
        ("/v1/fleet/x%23y", "POST"),
        ("/v1/fleet/x%0d%0aHost:%20y", "POST"),
        ("/v1/fleet/x%00", "POST"),
        ("/v1/fleet/..;/control", "POST"),
        ("/v1/fleet/x#../../control", "POST"),
        ("/v1/fleet/", "POST"),
        ("https://localhost/v1/control/start-run", "POST"),
        ("https://elsewhere/v1/fleet/pull-messages", "POST"),
        ("/", "GET"),
        ("/docs", "GET"),
    ],
)
def test_everything_else_stops_here(door, path, method):
    assert ask(door, path, b"", method)[0] == 404
    assert SEEN == []


def test_what_is_too_large_stops_here_however_it_comes(door, monkeypatch):
    monkeypatch.setattr(gate, "LARGEST", 1000)
    for chunked in (False, True):
        assert ask(door, "/v1/fleet/push-object", bytes(2000), chunked=chunked)[0] == 413
        assert SEEN == []


def test_a_link_that_is_down_and_a_port_that_is_taken_are_said(door):
    _, files = door
    port = free_port()
    lonely = Gate("127.0.0.1", port, free_port(), *files)
    lonely.start()
    assert ask((port, files), "/v1/fleet/pull-messages")[0] == 502
    with pytest.raises(ConfigError, match="choose another --host or --port"):
        Gate("127.0.0.1", port, free_port(), *files).start()
    lonely.close()


def test_a_proxy_for_elsewhere_and_old_tls_are_not_used(door, monkeypatch):
    _, files = door
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:9")
    monkeypatch.setenv("ALL_PROXY", "http://127.0.0.1:9")
    made = Gate("127.0.0.1", free_port(), INNER_PORT[0], *files)
    made.start()
    try:
        fresh = int(made._where.rpartition(":")[2])
        assert ask((fresh, files), "/v1/fleet/push-object", b"ab") == (200, b"ba", "yes")
        assert made._server.config.ssl.minimum_version == ssl.TLSVersion.TLSv1_2
    finally:
        made.close()


def link(door):
    port, files = door
    context = ssl.create_default_context(cafile=files[0])
    return context.wrap_socket(socket.create_connection(("localhost", port), HANGS), server_hostname="localhost")


def said(peer):
    """All that comes until the other end hangs up."""
    data = b""
    with contextlib.suppress(ConnectionError, ssl.SSLError):
        while part := peer.recv(1 << 16):
            data += part
    return data


def status(peer):
    """The number of the answer that comes."""
    answer = http.client.HTTPResponse(peer, method="POST")
    answer.begin()
    return answer.status


def until(true):
    limit = time.monotonic() + HANGS
    while not true():
        assert time.monotonic() < limit
        time.sleep(0.01)


INNER = b"POST /v1/control/start-run HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n"
HEAD = b"POST /v1/fleet/push-object HTTP/1.1\r\nHost: x\r\n"


@pytest.mark.slow
@pytest.mark.parametrize(
    "raw",
    [
        HEAD + b"Content-Length: 0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n" + INNER,
        HEAD + b"Transfer-Encoding: chunked\r\nContent-Length: %d\r\n\r\n0\r\n\r\n" % len(INNER) + INNER,
        HEAD + b"Content-Length: 0\r\nContent-Length: %d\r\n\r\n" % len(INNER) + INNER,
        HEAD + b"Transfer-Encoding: xchunked\r\n\r\n" + INNER,
        HEAD + b"Transfer-Encoding: chunked\r\n\r\nffffffffffffffffffff\r\n" + INNER,
        HEAD + b"Content-Length: -1\r\n\r\n" + INNER,
        HEAD + b"Content-Length: 1e3\r\n\r\n" + INNER,
        HEAD + b"Content-Length: 0\r\nUpgrade: h2c\r\nConnection: Upgrade, HTTP2-Settings\r\n\r\n" + INNER,
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + INNER,
        b"\0" * 1000,
        b"POST " + b"/v1/fleet/x" * 20_000 + b" HTTP/1.1\r\n",
        HEAD + b"X: y\r\n" * 20_000,
    ],
)
def test_nothing_is_smuggled_past_the_gate(door, monkeypatch, raw):
    SEEN.clear()
    with monkeypatch.context() as soon:
        for where, name in (
            (listener, "SILENCE"),
            (gate, "IDLE"),
        ):  # it hangs up when all is answered, or nothing more comes
            soon.setattr(where, name, 0.3)
        with link(door) as peer:
            with contextlib.suppress(ConnectionError, ssl.SSLError):  # or before the end
                peer.sendall(raw)
            answer = said(peer)
    assert {path for path, _, _ in SEEN} <= {"/v1/fleet/push-object"}
    assert all(body == b"" for _, _, body in SEEN)
    assert answer.count(b"HTTP/1.1 200") == len(SEEN)
    assert ask(door, "/v1/fleet/push-object", b"ab") == (200, b"ba", "yes")  # and it goes on


def test_headers_that_only_a_neighbour_may_say_stop_here(door):
    HEADERS.clear()
    with link(door) as peer:
        peer.sendall(HEAD + b"X-Forwarded-For: 127.0.0.1\r\nForwarded: for=127.0.0.1\r\nExpect: x\r\n")
        peer.sendall(b"flwr-signature: s\r\nContent-Length: 1\r\n\r\na")
        assert status(peer) == 200
    assert "flwr-signature" in HEADERS[0]
    assert not {"x-forwarded-for", "forwarded", "expect"} & HEADERS[0]


def test_who_was_let_through_was_seen_and_who_was_refused_was_not(door):
    (made,) = GATE
    made.seen.clear()
    ask(door, "/v1/fleet/pull-messages")
    ask(door, "/v1/fleet/refused", **{"flwr-public-key": "stranger"})
    assert made.seen == {}
    ask(door, "/v1/fleet/pull-messages", **{"flwr-public-key": "known"})
    assert made.seen.keys() == {b"known"}
    assert abs(made.seen[b"known"] - time.time()) < HANGS


def test_who_asks_for_nothing_is_cut_off_and_who_asks_is_not(door, monkeypatch):
    looks, look = [], listener.Impatient._look
    monkeypatch.setattr(listener.Impatient, "_look", lambda made: looks.append(made) or look(made))
    with monkeypatch.context() as soon:
        soon.setattr(listener, "SILENCE", 0.05)
        for begun in (b"", HEAD):
            with link(door) as peer:
                with contextlib.suppress(ConnectionError, ssl.SSLError):  # it may be cut off before it has begun
                    peer.sendall(begun)
                assert said(peer) == b""
    met, connect = [], listener.Impatient.connection_made
    monkeypatch.setattr(listener.Impatient, "connection_made", lambda made, way: met.append(made) or connect(made, way))
    with link(door) as peer:
        peer.sendall(HEAD + b"Content-Length: 2\r\n\r\na")
        until(lambda: met and met[0].cycle is not None)  # it asks; only now looks come one after the other
        monkeypatch.setattr(listener, "SILENCE", 0.05)
        met[0].loop.call_soon_threadsafe(met[0]._look)
        until(lambda: looks.count(met[0]) >= 5)
        monkeypatch.undo()
        peer.sendall(b"b")
        assert status(peer) == 200


def test_a_body_that_does_not_come_is_given_up(door, monkeypatch):
    with monkeypatch.context() as soon:
        soon.setattr(gate, "IDLE", 0.2)
        with link(door) as peer:
            peer.sendall(HEAD + b"Content-Length: 2\r\n\r\na")
            assert status(peer) == 408
    assert ask(door, "/v1/fleet/push-object", b"ab")[0] == 200


def test_requests_wait_while_there_is_no_room_for_them(door, monkeypatch):
    monkeypatch.setattr(gate, "HELD", 1000)
    asked, room = [], Gate._room
    monkeypatch.setattr(Gate, "_room", lambda made, size: asked.append(size) or room(made, size))
    SEEN.clear()
    with link(door) as first, link(door) as second:
        first.sendall(HEAD + b"Content-Length: 900\r\n\r\n" + bytes(899))
        until(lambda: GATE[0]._held == 900)
        second.sendall(HEAD + b"Content-Length: 500\r\n\r\n" + bytes(500))
        until(lambda: asked == [900, 500])
        second.settimeout(0.3)
        with pytest.raises(TimeoutError):  # it waits: nothing is said to it
            second.recv(1)
        second.settimeout(HANGS)
        assert (GATE[0]._held, SEEN) == (900, [])
        first.sendall(b"a")
        assert status(first) == status(second) == 200
