"""When devices were last seen, by their names."""

import json

from flwr.supercore.primitives.asymmetric import public_key_to_bytes
from flwr.supernode.node_auth_http_interceptor import b64encode

from fedbonsai.cli import main
from fedbonsai.fleets.flower import certificates
from fedbonsai.fleets.flower.federation import Federation
from fedbonsai.fleets.flower.sightings import header_of, note, sightings


def test_a_key_is_named_in_a_header_as_flower_names_it(tmp_path):
    from cryptography.hazmat.primitives import serialization

    certificates.make_device(tmp_path, "pi")
    held = serialization.load_ssh_private_key((tmp_path / "pi.key").read_bytes(), None)
    assert header_of((tmp_path / "pi.pub").read_text()) == b64encode(public_key_to_bytes(held.public_key()))
    assert header_of("no key") == header_of("") == b""


def test_who_was_seen_is_added_and_who_is_out_is_left_out(tmp_path):
    keys = {}
    for name in ("a", "b"):
        certificates.make_device(tmp_path, name)
        keys[name] = " ".join((tmp_path / f"{name}.pub").read_text().split()[:2])
    file = tmp_path / "seen.json"
    a, b = (header_of(keys[name]) for name in ("a", "b"))
    note(file, {a: 5.0, b"stranger": 6.0}, keys)
    assert sightings(file) == {"a": 5.0}
    note(file, {b: 7.0}, keys)
    assert sightings(file) == {"a": 5.0, "b": 7.0}
    note(file, {a: 9.0}, {"a": keys["a"]})
    assert sightings(file) == {"a": 9.0}
    for text in ("{", "[]", '{"a": "x"}', '{"a": null}'):
        file.write_text(text)
        assert sightings(file) == {}


def test_a_federation_names_keys_that_wait_and_why(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    main(["keys", "server", "localhost"])
    federation = Federation(tmp_path / "federation")
    for name in ("in", "new", "näme"):
        (federation.devices / f"{name}.pub").write_text("ecdsa-sha2-nistp384 AAAA")
    federation.known.write_text(json.dumps({"in": {"key": "ecdsa-sha2-nistp384 AAAA", "node": "7"}}))
    (federation.devices / "new.pub").write_bytes(b"\xff\xfe\xff")  # no text
    assert federation.waiting() == {"new": "", "näme": ""}
    federation.enrol()
    assert federation.registered() == {"in": "ecdsa-sha2-nistp384 AAAA"}
    assert federation.waiting().keys() == {"new", "näme"}
    assert "a device's name has letters" in federation.waiting()["näme"]
    assert federation.waiting()["new"]
    federation.saw({b"x": 1.0})
    assert federation.last_seen() == {}
