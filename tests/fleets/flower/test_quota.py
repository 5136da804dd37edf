"""What a device may send in an hour: it drains, is told once, and another cannot use it up."""

from base64 import b64encode

import pytest
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_ssh_public_key

from fedbonsai.cli import main
from fedbonsai.fleets.flower import certificates
from fedbonsai.fleets.flower.federation import Federation
from fedbonsai.fleets.flower.gate import Gate
from fedbonsai.fleets.flower.processes import free_port
from fedbonsai.fleets.flower.quota import Quota
from tests.fleets.flower.test_gate import INNER_PORT, SEEN, ask, door

assert door  # the fixture


def test_what_was_sent_drains_within_an_hour():
    now = [0.0]
    quota = Quota(3600, clock=lambda: now[0])
    assert quota.allows(b"a", 3600)
    quota.spend(b"a", 3000)
    assert quota.allows(b"a", 600)
    assert not quota.allows(b"a", 601)
    assert quota.allows(b"b", 3600)
    assert quota.told() == [b"a"]
    assert quota.told() == []
    now[0] = 1000.0
    assert quota.allows(b"a", 1600)
    assert not quota.allows(b"a", 1601)
    now[0] = 4000.0
    assert quota.allows(b"a", 3600)
    assert not quota._levels  # nothing is kept of who has not sent of late


@pytest.mark.slow
def test_the_gate_refuses_by_the_size_that_is_announced(door):
    _, files = door
    quota = Quota(5000)
    made = Gate("127.0.0.1", port := free_port(), INNER_PORT[0], *files, quota)
    made.start()
    mine = {"flwr-public-key": "abc"}
    try:
        assert ask((port, files), "/v1/fleet/push-object", bytes(3000), headers=mine)[0] == 200
        assert ask((port, files), "/v1/fleet/push-object", bytes(3000), headers=mine)[0] == 429
        assert SEEN == []  # nothing of it reached the SuperLink
        assert ask((port, files), "/v1/fleet/push-object", bytes(1000), headers=mine)[0] == 200
        assert ask((port, files), "/v1/fleet/push-object", bytes(3000), headers={"flwr-public-key": "x"})[0] == 200
        assert quota.told() == [b"abc"]
    finally:
        made.close()


@pytest.mark.slow
def test_what_the_link_refused_costs_nobody(door):
    _, files = door
    quota = Quota(5000)
    made = Gate("127.0.0.1", port := free_port(), INNER_PORT[0], *files, quota)
    made.start()
    try:
        for _ in range(3):  # somebody without the key says that he is abc
            headers = {"flwr-public-key": "abc", "x-refuse": "401"}
            assert ask((port, files), "/v1/fleet/push-object", bytes(3000), headers=headers)[0] == 401
        assert quota.allows(b"abc", 5000)
    finally:
        made.close()


def test_a_refused_device_has_a_name(tmp_path):
    for name in ("pi-01", "pi-02"):
        certificates.make_device(tmp_path, name)
    keys = {name: (tmp_path / f"{name}.pub").read_text().strip() for name in ("pi-01", "pi-02")}
    federation = Federation(tmp_path)
    federation.known.write_text(str({n: {"key": key, "node": "1"} for n, key in keys.items()}).replace("'", '"'))
    key = load_ssh_public_key(keys["pi-02"].encode())
    header = b64encode(key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    assert federation.named(header) == "pi-02"
    assert federation.named(b"abc") == "a device"


@pytest.mark.parametrize("given", ["0", "many", "0GB"])
def test_a_quota_that_cannot_be_meant(given, capsys):
    assert main(["serve", "--quota", given]) == 2
    assert f"--quota = '{given}': expected a number above 0" in capsys.readouterr().err
