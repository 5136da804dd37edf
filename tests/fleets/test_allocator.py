import os
import subprocess
import sys

import pytest

from fedbonsai.devices.footprint import TIDY

SCRIPT = """
import sys
from fedbonsai.devices import footprint
from fedbonsai.fleets.allocator import keep_memory
footprint._resident(False)
if sys.argv[1:]:
    keep_memory()
footprint.trained(footprint.Job("resnet-tiny", (3, 32, 32)))
print(footprint._resident(True))
"""


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="mallopt is glibc's")
def test_kept_memory_raises_the_peak_of_a_step_and_a_devices_environment_lowers_it():
    def peak(*keep, **environment):
        words = [sys.executable, "-c", SCRIPT, *keep]
        done = subprocess.run(words, capture_output=True, text=True, check=True, env=os.environ | environment)
        return int(done.stdout)

    assert peak("keep") - peak(**TIDY) > 20e6


def test_what_is_imported_is_looked_through_for_garbage_no_more():
    script = """
import gc
from fedbonsai.fleets.allocator import keep_memory
keep_memory()
first, later = gc.get_freeze_count(), [[] for _ in range(1000)]
keep_memory()
print(first, gc.get_freeze_count(), len(gc.get_objects()))
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    first, second, seen = map(int, done.stdout.split())
    assert first == second > 1000
    assert 1000 <= seen < first
