import subprocess
import sys

import pytest

SCRIPT = """
import sys
from fedbonsai.devices import footprint
from fedbonsai.fleets import allocator
footprint._resident(False)
getattr(allocator, sys.argv[1])()
footprint.trained(footprint.Job("resnet-tiny", (3, 32, 32)))
print(footprint._resident(True))
"""


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="mallopt is glibc's")
def test_returning_memory_lowers_the_peak_of_a_step():
    def peak(how):
        words = [sys.executable, "-c", SCRIPT, how]
        return int(subprocess.run(words, capture_output=True, text=True, check=True).stdout)

    assert peak("keep_memory") - peak("return_memory") > 20e6
