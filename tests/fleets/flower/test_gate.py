"""The gate passes a device's requests on unchanged, refuses all others, and keeps what is too large out."""

import http.client
import ssl
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from fedbonsai.errors import ConfigError
from fedbonsai.fleets.flower import certificates, gate
from fedbonsai.fleets.flower.gate import Gate
from fedbonsai.fleets.flower.processes import free_port

SEEN = []


class Link(BaseHTTPRequestHandler):
    """Stands where the SuperLink stands, and writes down what reaches it."""

    protocol_version = "HTTP/1.1"

    def do_POST(self):
        body = self.rfile.read(int(self.headers["content-length"]))
        SEEN.append((self.path, self.headers.get("flwr-signature"), body))
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("X-Answer", "yes")
        self.end_headers()
        self.wfile.write(body[::-1])

    def log_message(self, *_):
        pass


@pytest.fixture(scope="module")
def door(tmp_path_factory):
    folder = tmp_path_factory.mktemp("gate")
    certificates.make_server(folder, ["localhost"])
    files = [folder / name for name in (certificates.CA, certificates.SERVER, certificates.SERVER_KEY)]
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(files[1], files[2])
    link = ThreadingHTTPServer(("127.0.0.1", 0), Link)
    link.socket = context.wrap_socket(link.socket, server_side=True)
    link.daemon_threads = True
    threading.Thread(target=link.serve_forever, daemon=True).start()
    port = free_port()
    made = Gate("127.0.0.1", port, link.server_port, *files)
    made.start()
    yield port, files
    made.close()
    link.shutdown()
    link.server_close()


def ask(door, path, body=b"", method="POST", chunked=False):
    port, files = door
    connection = http.client.HTTPSConnection("localhost", port, context=ssl.create_default_context(cafile=files[0]))
    SEEN.clear()
    headers = {"flwr-signature": "abc"}
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
