"""The bell between a run and the gate, and the questions that the gate keeps until it rings."""

import asyncio
import http.client
import ssl
import threading
import time
from http.server import BaseHTTPRequestHandler

import pytest

from fedbonsai.fleets.flower import gate
from fedbonsai.fleets.flower.bell import Bell
from fedbonsai.fleets.flower.gate import Gate
from fedbonsai.fleets.flower.processes import free_port
from tests.fleets.flower.link import link_of
from tests.moments import HANGS

PULL = "/v1/fleet/pull-messages"
LONG = 600.0  # seconds that no test waits for


def waited(bell, since, seconds, then=lambda gone: None):
    """Whether a wait for the bell ended before its time."""

    async def main():
        gone = asyncio.get_running_loop().create_future()
        asyncio.get_running_loop().call_later(0.1, then, gone)
        begin = time.monotonic()
        await bell.rung(since, seconds, gone)
        return time.monotonic() - begin < seconds

    return asyncio.run(main())


def test_it_is_heard_by_all_who_listen_and_by_who_listens_too_late(tmp_path):
    bell = Bell(tmp_path / "bell")
    never = bell.last()
    assert never == 0
    assert not waited(bell, never, 0.2)
    assert waited(bell, never, LONG, lambda gone: bell.ring())
    assert waited(bell, never, LONG), "it rang since"
    assert waited(bell, bell.last(), LONG, lambda gone: gone.set_result(None)), "who is gone waits no longer"
    first = bell.last()
    bell.ring()
    assert bell.last() > first

    async def many():
        gone = asyncio.get_running_loop().create_future()
        asyncio.get_running_loop().call_later(0.1, bell.ring)
        await asyncio.gather(*(bell.rung(bell.last(), LONG, gone) for _ in range(50)))

    asyncio.run(asyncio.wait_for(many(), HANGS))


def test_where_it_cannot_be_written_nobody_fails(tmp_path):
    (tmp_path / "file").touch()
    bell = Bell(tmp_path / "file" / "bell")
    bell.ring()
    assert bell.last() == 0


class Link(BaseHTTPRequestHandler):
    """Stands where the SuperLink stands: it has the messages that a test puts there."""

    protocol_version = "HTTP/1.1"
    asked: list[str]
    messages: bytes
    open: list[http.client.HTTPSConnection]

    def do_POST(self):
        self.rfile.read(int(self.headers["content-length"]))
        type(self).asked.append(self.path)
        held, type(self).messages = self.messages, b""
        self.send_response(200)
        self.send_header("Content-Length", str(len(held)))
        self.end_headers()
        self.wfile.write(held)

    def log_message(self, *_):
        pass


@pytest.fixture
def link(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bell")
    made = type("Held", (Link,), {"asked": [], "messages": b""})
    with link_of(folder, made) as (inner, files):
        made.bell, made.port = Bell(folder / "bell"), free_port()
        made.trusted = ssl.create_default_context(cafile=files[0])
        made.gate = Gate("127.0.0.1", made.port, inner, *files, None, made.bell)
        made.gate.start()
        made.open = []
        yield made
        for connection in made.open:
            connection.close()
        made.gate.close()


def question(link, path=PULL):
    connection = http.client.HTTPSConnection("localhost", link.port, context=link.trusted, timeout=HANGS)
    link.open.append(connection)
    connection.request("POST", path, b"who asks")
    return connection


def until(true):
    end = time.monotonic() + HANGS
    while not true():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_a_question_is_kept_until_the_bell_rings(link, monkeypatch):
    monkeypatch.setattr(gate, "AGAIN", LONG)
    monkeypatch.setattr(gate, "KEEP", LONG)
    kept = question(link)
    until(lambda: link.asked)
    link.messages = b"a message"
    time.sleep(0.2)
    assert len(link.asked) == 1
    link.bell.ring()
    assert kept.getresponse().read() == b"a message"
    assert len(link.asked) == 2
    other = question(link, "/v1/fleet/send-node-heartbeat").getresponse()
    assert (other.status, other.read()) == (200, b""), "other questions are not kept"


def test_messages_of_who_has_no_bell_are_found_too_and_no_question_is_kept_for_ever(link, monkeypatch):
    monkeypatch.setattr(gate, "AGAIN", 0.1)
    monkeypatch.setattr(gate, "KEEP", LONG)
    kept = question(link)
    until(lambda: len(link.asked) > 2)
    link.messages = b"unrung"
    assert kept.getresponse().read() == b"unrung"
    monkeypatch.setattr(gate, "KEEP", 0.3)
    answer = question(link).getresponse()
    assert (answer.status, answer.read()) == (200, b"")


def test_no_message_is_taken_for_a_device_that_went_away(link, monkeypatch):
    monkeypatch.setattr(gate, "AGAIN", LONG)
    monkeypatch.setattr(gate, "KEEP", LONG)
    kept = question(link)
    until(lambda: link.asked)
    kept.close()
    time.sleep(0.5)
    link.messages = b"for whoever comes next"
    link.bell.ring()
    time.sleep(0.3)
    assert len(link.asked) == 1
    assert question(link).getresponse().read() == b"for whoever comes next"


def test_a_gate_that_closes_answers_what_it_kept(link, monkeypatch):
    monkeypatch.setattr(gate, "AGAIN", LONG)
    monkeypatch.setattr(gate, "KEEP", LONG)
    kept = question(link)
    until(lambda: link.asked)
    found = []

    def read():
        found.append(kept.getresponse().read())
        kept.close()

    reads = threading.Thread(target=read)
    reads.start()
    begin = time.monotonic()
    link.gate.close()
    assert time.monotonic() - begin < 4
    reads.join(HANGS)
    assert found == [b""]
