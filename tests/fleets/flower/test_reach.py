"""What keeps a device from its server is said before Flower tries: address, authority, names, clock."""

import datetime
import socket
import threading

import pytest

from fedbonsai.errors import ConfigError
from fedbonsai.fleets.flower import certificates, reach
from fedbonsai.fleets.flower.gate import Gate
from fedbonsai.fleets.flower.processes import free_port


def files_of(folder, names):
    certificates.make_server(folder, names)
    return [folder / name for name in (certificates.CA, certificates.SERVER, certificates.SERVER_KEY)]


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    files = files_of(tmp_path_factory.mktemp("reach"), ["localhost"])
    port = free_port()
    gate = Gate("127.0.0.1", port, free_port(), *files)
    gate.start()
    yield port, files[0]
    gate.close()
    assert not gate.alive


def test_a_server_that_is_there_is_reached(server):
    port, ca = server
    assert reach.reach(f"localhost:{port}", ca) == ""
    assert reach.reach(f"127.0.0.1:{port}", ca) == ""


def test_who_does_not_answer_may_come_back_and_is_named(server):
    _, ca = server
    assert "does `fedbonsai serve` run there?" in reach.reach(f"127.0.0.1:{free_port()}", ca)
    assert "the name nowhere.invalid is not known" in reach.reach("nowhere.invalid:8443", ca)
    with pytest.raises(ConfigError, match="from 1 to 65535"):
        reach.reach("localhost:70000", ca)


def test_a_strange_authority_and_a_certificate_for_other_names_are_told_apart(server, tmp_path):
    port, ca = server
    with pytest.raises(ConfigError, match=r"not the server of --ca .*CERTIFICATE_VERIFY_FAILED"):
        reach.reach(f"localhost:{port}", files_of(tmp_path / "other", ["localhost"])[0])
    gate = Gate(
        "127.0.0.2", elsewhere := free_port(), free_port(), ca, ca.with_name("server.crt"), ca.with_name("server.key")
    )
    gate.start()
    try:
        with pytest.raises(ConfigError, match=r"for other names: .*'127\.0\.0\.2'.*fedbonsai keys server 127\.0\.0\.2"):
            reach.reach(f"127.0.0.2:{elsewhere}", ca)
    finally:
        gate.close()
    (tmp_path / "noise").write_text("noise")
    with pytest.raises(ConfigError, match="is no certificate"):
        reach.reach(f"localhost:{port}", tmp_path / "noise")


@pytest.mark.parametrize(("ahead", "way"), [(7, "ahead of"), (-310, "behind"), (4, ""), (-300, "")])
def test_a_clock_that_flower_would_refuse_is_told(server, monkeypatch, ahead, way):
    port, ca = server
    told = datetime.datetime.now(datetime.UTC).replace(microsecond=0)  # how old an answer is depends on the machine
    real = reach.parsedate_to_datetime
    monkeypatch.setattr(reach, "parsedate_to_datetime", lambda text: told if real(text) else None)
    monkeypatch.setattr(reach.time, "time", lambda: told.timestamp() + 0.5 + ahead)
    if not way:
        assert reach.reach(f"localhost:{port}", ca) == ""
        return
    with pytest.raises(ConfigError, match=rf"this clock is \d+ s {way} that of .*timedatectl"):
        reach.reach(f"localhost:{port}", ca)


def test_a_certificate_that_is_not_valid_yet_names_the_clock(tmp_path, monkeypatch):
    monkeypatch.setattr(certificates, "BEFORE", -certificates.BEFORE)  # as a device sees it whose clock stands still
    files = files_of(tmp_path, ["localhost"])
    gate = Gate("127.0.0.1", port := free_port(), free_port(), *files)
    gate.start()
    try:
        with pytest.raises(ConfigError, match=r"does not hold today: .*not yet valid; this clock says"):
            reach.reach(f"localhost:{port}", files[0])
    finally:
        gate.close()


@pytest.mark.parametrize("answer", [b"SSH-2.0-OpenSSH_9.2\r\n", b"HTTP/1.1 400 Bad Request\r\n\r\n"])
def test_another_program_at_the_port_is_no_server(server, answer):
    _, ca = server
    with socket.create_server(("127.0.0.1", 0)) as there:

        def talk():
            peer, _ = there.accept()
            with peer:
                peer.sendall(answer)
                peer.recv(1 << 16)

        thread = threading.Thread(target=talk)
        thread.start()
        with pytest.raises(ConfigError, match="is no server of fedbonsai"):
            reach.reach(f"localhost:{there.getsockname()[1]}", ca)
        thread.join()
