"""Who sees the page: on this machine everybody who asks it by its own name, elsewhere who has the token."""

import http.client
import json
import ssl

import pytest

from fedbonsai.dashboard.facts import Facts
from fedbonsai.dashboard.server import GUARDS, Dashboard, address, on_this_machine
from fedbonsai.dashboard.token import same, token_of
from fedbonsai.errors import ConfigError
from fedbonsai.fleets.flower.processes import free_port
from tests.dashboard.places import federation_in, many


@pytest.fixture(scope="module")
def fleet(tmp_path_factory):
    return many(tmp_path_factory.mktemp("many") / "federation", 12)


@pytest.fixture(scope="module")
def near(fleet):
    made = Dashboard(Facts(fleet), "127.0.0.1", free_port())
    made.start()
    yield made
    made.close()


@pytest.fixture(scope="module")
def far(fleet):
    token, _ = token_of(fleet.token)
    made = Dashboard(Facts(fleet), "0.0.0.0", free_port(), token, (fleet.certificate, fleet.key))
    made.start()
    yield made, token, ssl.create_default_context(cafile=fleet.ca)
    made.close()


def ask(page, path, method="GET", trusted=None, **headers):
    port = int(page.where.rstrip("/").rpartition(":")[2])
    kind = http.client.HTTPSConnection if trusted else http.client.HTTPConnection
    link = kind("localhost", port, timeout=30, **({"context": trusted} if trusted else {}))
    link.request(method, path, headers=headers)
    answer = link.getresponse()
    body = answer.read().decode()
    link.close()
    return answer.status, {name.lower(): value for name, value in answer.getheaders()}, body


@pytest.mark.parametrize(
    ("path", "kind", "text"),
    [
        ("/", "text/html", "What needs attention first"),
        ("/?still", "text/html", "It stays as it is"),
        ("/style.css", "text/css", "prefers-color-scheme: dark"),
        ("/api/devices", "application/json", '"devices"'),
        ("/api/runs", "application/json", '"runs"'),
        ("/api/server", "application/json", '"attention"'),
        ("/metrics", "text/plain", "fedbonsai_device_online"),
    ],
)
def test_what_there_is_comes_with_headers_that_let_nothing_else_in(near, path, kind, text):
    status, headers, body = ask(near, path)
    assert (status, headers["content-type"]) == (200, f"{kind}; charset=utf-8")
    assert GUARDS.items() <= headers.items()
    assert "script" not in headers["content-security-policy"]  # so none runs: default-src is 'none'
    assert text in body
    assert ask(near, path, "HEAD")[2] == ""
    if kind == "application/json":
        json.loads(body)


def test_nothing_can_be_changed_and_nothing_else_is_there(near):
    for method in ("POST", "PUT", "DELETE", "OPTIONS"):
        assert ask(near, "/", method)[0] == 405
    for path in ("/x", "/../ca.key", "/%2e%2e/ca.key", "/style.css/", "/api", "//"):
        assert ask(near, path)[0] == 404
    assert ask(near, "/?" + "&".join(["a"] * 100))[0] == 200


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1.evil.example:80", "", "192.0.2.7", "[::2]:80"])
def test_a_name_that_was_made_to_lead_here_is_refused(near, host):
    assert ask(near, "/api/devices", Host=host)[0] in (400, 421)


@pytest.mark.parametrize("host", ["localhost", "localhost:9000", "127.0.0.1:1", "[::1]:5", "[::1]"])
def test_this_machine_is_asked_by_its_own_names(near, host):
    assert ask(near, "/api/devices", Host=host)[0] == 200


def test_elsewhere_the_token_opens_and_nothing_else_does(far):
    page, token, trusted = far
    for path in ("/", "/style.css", "/api/devices", "/metrics", "/x"):
        status, headers, body = ask(page, path, trusted=trusted)
        assert (status, "pi-0" in body) == (401, False)
        assert GUARDS.items() <= headers.items()
    for wrong in (token[:-1], token + "a", "", "x" * 5000, "Ã¤"):
        said = wrong.encode("latin-1", "replace").decode("latin-1")
        assert ask(page, "/api/devices", trusted=trusted, Authorization=f"Bearer {said}")[0] == 401
        assert ask(page, "/", trusted=trusted, Cookie=f"fedbonsai_dashboard={said}")[0] == 401
    assert ask(page, f"/?token={token[:-1]}", trusted=trusted)[0] == 401
    assert ask(page, f"/api/devices?token={token}", trusted=trusted)[0] == 401  # where it would stay in an address
    assert ask(page, "/api/devices", trusted=trusted, Authorization=f"Bearer {token}")[0] == 200
    assert ask(page, "/", trusted=trusted, Host="fed.example.org", Authorization=f"bearer {token}")[0] == 200


def test_a_browser_gives_the_token_once_and_keeps_a_cookie(far):
    page, token, trusted = far
    status, headers, _ = ask(page, f"/?token={token}", trusted=trusted)
    assert (status, headers["location"]) == (303, "/")
    cookie, *guards = headers["set-cookie"].split("; ")
    assert {"HttpOnly", "SameSite=Strict", "Secure", "Path=/"} == set(guards)
    status, _, body = ask(page, "/", trusted=trusted, Cookie=f"other=1; {cookie}")
    assert status == 200
    assert token not in body


def test_a_token_is_made_once_and_only_its_owner_reads_it(tmp_path):
    file = tmp_path / "dashboard.token"
    token, made = token_of(file)
    assert made
    assert len(token) >= 43
    assert file.stat().st_mode & 0o777 == 0o600
    assert token_of(file) == (token, False)
    assert same(token, token)
    assert not same(token + "x", token)
    file.chmod(0o644)
    with pytest.raises(ConfigError, match="chmod 600"):
        token_of(file)
    file.chmod(0o600)
    for bad in (b"", b"short", b"\xff" * 40, "ä".encode() * 40):
        file.write_bytes(bad)
        with pytest.raises(ConfigError, match="a new one is made"):
            token_of(file)
    with pytest.raises(ConfigError, match="cannot be written"):
        token_of(tmp_path / "nowhere" / "token")


def test_an_address_that_others_reach_is_refused_without_a_token(tmp_path):
    facts = Facts(federation_in(tmp_path / "federation"))
    for host in ("0.0.0.0", "192.0.2.7", "::", "fed.example.org", "127.0.0.1.example.org"):
        assert not on_this_machine(host)
        with pytest.raises(ConfigError, match="needs a token"):
            Dashboard(facts, host, 1)
    for host in ("127.0.0.1", "127.9.9.9", "::1", "localhost"):
        assert on_this_machine(host)
    assert address("[::1]:80") == ("::1", 80)
    assert address("fed.example.org:8444") == ("fed.example.org", 8444)
    for bad in ("8444", "host:", ":1", "host:0", "host:65536", "host:x", "host:²"):
        with pytest.raises(ConfigError, match="expected HOST:PORT"):
            address(bad)


def test_a_damaged_file_is_said_and_a_port_that_is_taken_too(near, fleet):
    port = int(near.where.rstrip("/").rpartition(":")[2])
    with pytest.raises(ConfigError, match="choose another --dashboard"):
        Dashboard(Facts(fleet), "127.0.0.1", port).start()
    facts = Facts(fleet)
    broken = Dashboard(facts, "127.0.0.1", free_port())
    broken.start()
    text = fleet.known.read_text()
    try:
        fleet.known.write_text("{")
        status, _, body = ask(broken, "/")
        assert status == 500
        assert "is damaged" in body
    finally:
        fleet.known.write_text(text)
        broken.close()
