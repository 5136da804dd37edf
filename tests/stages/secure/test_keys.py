"""Keys, shares and identities: who has what finds the same, and who has less finds nothing."""

import os
from itertools import combinations

import pytest

from fedbonsai.errors import ConfigError, Silent
from fedbonsai.fleets.flower.certificates import make_device
from fedbonsai.identity import Simulated, Unenrolled, read_identity, read_roster
from fedbonsai.stages.secure import keys
from fedbonsai.stages.secure.graph import needed, neighbours


def test_two_neighbours_find_the_same_mask_and_nobody_else_does():
    a, b, c = (bytes([i]) * 16 for i in range(3))
    one, two, three = (keys.private(secret) for secret in (a, b, c))
    mask = keys.mask_between(one, keys.public(b), b"s", 100)
    assert mask == keys.mask_between(two, keys.public(a), b"s", 100)
    assert mask != keys.mask_between(three, keys.public(a), b"s", 100)
    assert mask != keys.mask_between(one, keys.public(b), b"another session", 100)
    assert mask != keys.own_mask(a, b"s", 100)


def test_the_stream_is_aes_128_in_counter_mode():
    # NIST SP 800-38A, F.5.1 has a counter that does not begin at zero; FIPS 197, C.1 is one block of the cipher itself
    from cryptography.hazmat.primitives.ciphers import Cipher
    from cryptography.hazmat.primitives.ciphers.algorithms import AES
    from cryptography.hazmat.primitives.ciphers.modes import ECB

    key = bytes(range(16))
    blocks = Cipher(AES(key), ECB()).encryptor().update(b"".join(i.to_bytes(16, "big") for i in range(3)))
    assert keys.expand(key, 40) == blocks[:40]


@pytest.mark.parametrize("bad", [b"", bytes(31), bytes(32)])
def test_what_is_no_public_key_is_refused(bad):
    with pytest.raises(Silent, match="not a public key"):
        keys.common(keys.private(bytes(16)), bad, b"mask")
    assert not keys.usable(bad)
    assert keys.usable(keys.public(bytes(16)))


def test_shares_travel_sealed_and_only_their_way():
    a, b = os.urandom(16), os.urandom(16)
    sealed = keys.seal(keys.private(a), keys.public(b), b"s/a/b", b"x" * 32)
    assert len(sealed) == keys.SEALED
    assert keys.unseal(keys.private(b), keys.public(a), b"s/a/b", sealed) == b"x" * 32
    for route, text in ((b"s/b/a", sealed), (b"s/a/b", sealed[:-1] + bytes([sealed[-1] ^ 1]))):
        with pytest.raises(Silent, match="altered"):
            keys.unseal(keys.private(b), keys.public(a), route, text)


def test_any_three_of_five_shares_tell_a_secret_and_two_do_not():
    secret = os.urandom(16)
    shares = dict(enumerate(keys.split(secret, 3, 5), 1))
    for some in combinations(shares, 3):
        assert keys.join({number: shares[number] for number in some}) == secret
    assert keys.join({1: shares[1], 2: shares[2]}) != secret


def test_a_ring_has_so_many_neighbours_each_in_both_directions_and_the_seed_decides():
    ids = [f"{i:02}" for i in range(11)]
    ring = neighbours(ids, 4, 1)
    assert {len(around) for around in ring.values()} == {4}
    assert all(id in ring[other] and id != other for id, around in ring.items() for other in around)
    assert ring == neighbours(ids, 4, 1) != neighbours(ids, 4, 2)
    assert all(len(around) == 4 for around in neighbours(ids[:5], 4, 0).values())


@pytest.mark.parametrize(
    ("count", "share", "least"), [(2, 2 / 3, 2), (3, 2 / 3, 3), (9, 2 / 3, 7), (20, 0.5, 11), (4, 0.999, 4)]
)
def test_more_than_the_share_of_the_neighbours_are_needed(count, share, least):
    assert needed(count, share) == least
    assert 2 * least > count


@pytest.fixture
def files(tmp_path):
    for name in ("a", "b"):
        make_device(tmp_path, name)
    (tmp_path / "roster").write_text("# ours\n" + "".join((tmp_path / f"{name}.pub").read_text() for name in "ab"))
    return tmp_path


def test_devices_of_a_roster_know_each_other_by_the_keys_that_let_them_in(files):
    a, b = (read_identity(files / f"{name}.key", files / "roster", files / f"{name}-marks", name) for name in "ab")
    signature = a.sign(b"text")
    assert len(signature) == 96
    assert b.knows("a", b"text", signature)
    assert not b.knows("b", b"text", signature)
    assert not b.knows("a", b"texT", signature)
    assert not b.knows("c", b"text", signature)
    assert not b.knows("a", b"text", signature[:-1])
    assert not b.knows("a", b"text", bytes(96))


def test_what_was_spent_stays_spent_after_a_restart(files):
    first = read_identity(files / "a.key", files / "roster", files / "marks", "a")
    first.spend(b"x")
    again = read_identity(files / "a.key", files / "roster", files / "marks", "a")
    again.spend(b"y")
    for one in (first, again):
        with pytest.raises(Silent, match="asked and answered before"):
            one.spend(b"x")


@pytest.mark.parametrize(
    ("lines", "why"),
    [
        ("b", r"names 'a' not"),
        ("ax", r"line 2: .*expected the one line of a device's .pub file"),
        ("aa", r"line 2: 'a' has a line before"),
    ],
)
def test_a_roster_that_cannot_be_meant_is_refused(files, lines, why):
    text = {"a": (files / "a.pub").read_text(), "b": (files / "b.pub").read_text(), "x": "ssh-rsa AAAA\n"}
    (files / "roster").write_text("".join(text[line] for line in lines))
    with pytest.raises(ConfigError, match=why):
        read_identity(files / "a.key", files / "roster", files / "marks", "a")


def test_a_roster_with_another_key_of_this_device_is_refused(files):
    kind, key, _ = (files / "b.pub").read_text().split()
    (files / "roster").write_text(f"{kind} {key} a\n")
    with pytest.raises(ConfigError, match="names 'a' with another key"):
        read_identity(files / "a.key", files / "roster", files / "marks", "a")
    with pytest.raises(ConfigError, match="cannot be read"):
        read_roster(files / "none")


def test_a_device_without_a_roster_says_what_it_lacks():
    for what in (Unenrolled().sign, Unenrolled().spend):
        with pytest.raises(Silent, match="fedbonsai join --roster"):
            what(b"text")
    assert not Unenrolled().knows("a", b"text", Simulated("a").sign(b"text"))


def test_simulated_devices_have_keys_that_follow_from_their_ids():
    a, b = Simulated("a"), Simulated("b")
    assert b.knows("a", b"text", a.sign(b"text"))
    assert not b.knows("b", b"text", a.sign(b"text"))
