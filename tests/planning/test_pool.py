"""Processes until a moment."""

import os
import signal
import time

import pytest

from fedbonsai.errors import ConfigError
from fedbonsai.planning.pool import OutOfTime, Pool


def slept(seconds):
    time.sleep(seconds)
    return seconds


def killed(_):
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.slow
def test_results_come_with_their_places_and_time_ends_what_is_not_done():
    with Pool(2) as pool:
        assert sorted(pool.each(slept, [0.2, 0.1, 0.0])) == [(0, 0.2), (1, 0.1), (2, 0.0)]
        pool.until = time.monotonic() + 1
        begun = time.monotonic()
        with pytest.raises(OutOfTime):
            list(pool.each(slept, [100.0]))
        assert time.monotonic() - begun < 60
        pool.until = float("inf")
        assert list(pool.each(slept, [0.0])) == [(0, 0.0)], "it begins again"
        assert not list(pool.each(slept, []))


@pytest.mark.slow
def test_a_process_that_was_killed_is_told():
    with Pool(1) as pool, pytest.raises(ConfigError, match="take fewer --workers"):
        list(pool.each(killed, [0]))
