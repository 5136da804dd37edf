"""Disks that are full in earnest, of a device and of the server, in a federation of real processes."""

import os
import shutil
import sys

import pytest

from fedbonsai.errors import ConfigError, FedbonsaiError
from fedbonsai.runs.submit import submit
from tests.flower_live.disks import small_disk
from tests.flower_live.federation import CLIENTS, Place
from tests.flower_live.test_live import case_named, final, simulated

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not os.environ.get("FEDBONSAI_LIVE"), reason="takes minutes: make test-flower"),
    pytest.mark.skipif(sys.platform != "linux" or shutil.which("mount") is None, reason="no tmpfs here"),
]
FULL = "No space left on device"


def test_a_full_disk_is_told_and_nothing_is_lost_by_it(tmp_path):
    with small_disk(tmp_path / "place" / "device-000", 4) as small, small_disk(tmp_path / "runs", 4) as runs:
        if small is None or runs is None:
            pytest.skip("nothing can be mounted here")
        place = Place(tmp_path / "place")
        try:
            place.serve()
            for number in range(CLIENTS):
                place.wait("serve", f"{number:03} is in")
                place.join(f"{number:03}", number)
            config = place.config(case_named("topk-ef"), **{"method.cohort": 0})
            submit(config, tmp_path / "before", False)
            # a device: it says so and is silent, the others go on
            small.fill()
            config = place.config(case_named("topk-ef"), **{"method.cohort": 0, "rounds": 2})
            run = submit(config, tmp_path / "device", False)
            assert [(row["answered"], row["silent"]) for row in run.metrics] == [(1, 1)] * 2
            assert all(FULL in str(row["reasons"]) for row in run.metrics)
            assert FULL in place.said("join-000")
            small.free()
            submit(config, tmp_path / "again", False)
            assert final(tmp_path / "again") == simulated(config, tmp_path / "simulation")
            # the server: the run fails with a line that says what to do, and goes on when there is room
            runs.fill()
            with pytest.raises(FedbonsaiError, match="make room"):
                submit(config, tmp_path / "runs" / "server", False)
            runs.free()
            try:
                submit(config, tmp_path / "runs" / "server", True)
            except ConfigError:  # it had not begun
                submit(config, tmp_path / "runs" / "server", False)
            assert final(tmp_path / "runs" / "server") == final(tmp_path / "simulation")
        finally:
            place.close()
