"""What workers say of what they computed."""

from fedbonsai.arch import Arch
from fedbonsai.fleets.worker import Books, packed, unpacked
from fedbonsai.work import Episode


def test_what_was_computed_comes_back_and_what_is_the_same_is_made_once():
    ours, theirs = Books(), Books()
    one, two = (Episode(Arch("mlp"), {"w": (2, 3)}, (4,), backward=n) for n in (5, 6))
    sent = [ours.encoded(work) for work in ((), (one,), (one,), (two, one), ())]
    assert sent[1] is sent[2]
    came = [theirs.decoded(bytes(raw)) for raw in sent]
    assert came == [(), (one,), (one,), (two, one), ()]
    assert came[1] is came[2]


def test_an_empty_memory_is_no_bytes():
    assert packed({}) == b""
    assert unpacked(b"") == {}
    assert unpacked(packed({"a": 1})) == {"a": 1}
