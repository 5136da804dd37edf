"""A secure sum over real daemons: devices know each other by a roster, and one without it takes no part."""

import os
from dataclasses import replace

import pytest

from fedbonsai.runs.folder import Checkpoint, Folder
from fedbonsai.runs.run import execute
from fedbonsai.runs.submit import submit
from fedbonsai.wire import encode
from tests.cases import CASES
from tests.flower_live.federation import Place

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not os.environ.get("FEDBONSAI_LIVE"), reason="takes minutes: make test-flower"),
]
COUNT = 4


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    made = Place(tmp_path_factory.mktemp("secure"), count=COUNT)
    roster = made.folder / "roster"
    roster.write_text("".join((made.folder / "keys" / f"{number:03}.pub").read_text() for number in range(COUNT)))
    try:
        made.serve()
        for number in range(COUNT):
            made.wait("serve", f"{number:03} is in")
            made.join(f"{number:03}", number, None, "--roster", str(roster))
        yield made
    finally:
        made.close()


def final(folder):
    return bytes(encode(Checkpoint(Folder(folder)).load()[1]))


def test_a_secure_sum_ends_on_devices_as_in_a_simulation_and_as_in_the_open_to_the_byte(place, tmp_path):
    case = next(case for case in CASES if str(case) == "fedavg-secure")
    config = place.config(case, rounds=2)
    run = submit(config, tmp_path / "devices", False)
    assert run.info["status"] == "finished"
    secure = replace(config.method.secure, masked=False)
    open_ = replace(config, method=replace(config.method, secure=secure))
    for name, one in (("simulation", config), ("open", open_)):
        execute(replace(one, fleet=replace(one.fleet, kind="local")), tmp_path / name)
        assert final(tmp_path / "devices") == final(tmp_path / name)
    assert {row["kind"] for row in run.ledger() if row["direction"] == "up"} == case.up

    # one is back without the roster: it is left out, says why, and the others go on
    place.leave("003")
    said = len(place.said("join-003"))
    place.join("003", 3)
    place.wait("join-003", "joins", after=said)
    run = submit(place.config(case, rounds=1, seed=1), tmp_path / "again", False)
    assert run.info["status"] == "finished"
    row = next(iter(Folder(tmp_path / "again").rows()))
    assert [each["client"] for each in row["reasons"]] == ["003"]
    assert "no roster of the federation's devices is here" in row["reasons"][0]["reason"]
