"""A device in a process of its own, as `fedbonsai join` makes one, without Flower's node beside it."""

import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import tomli_w

from fedbonsai.fleets.flower.device import table_of
from fedbonsai.fleets.flower.resident import Remote

DEVICE = """
import sys
from pathlib import Path
sys.modules.update(dict.fromkeys(sys.argv[2:]))  # as if they were not installed
from fedbonsai.cli.join import _resident
from fedbonsai.fleets.flower.device import read_device
folder = Path(sys.argv[1])
kept = _resident(read_device(folder / "device.toml"), folder)
print("ready", flush=True)
sys.stdin.readline()
print(*sorted(name for name, module in sys.modules.items() if module is not None), flush=True)
"""


@contextmanager
def elsewhere(device, *without, modules=None):
    """Its hand.

    Args:
        device: its configuration.
        without: modules that are hidden from it.
        modules: a set that takes the names of those that it imported meanwhile.
    """
    folder = Path(device.folder)
    folder.mkdir()
    (folder / "device.toml").write_text(tomli_w.dumps(table_of(device)))
    command = [sys.executable, "-c", DEVICE, str(folder), *without]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout.readline() == "ready\n"
            yield Remote(folder)
            process.stdin.write("\n")
            process.stdin.flush()
            imported = process.stdout.readline().split()
            assert "fedbonsai" in imported
            if modules is not None:
                modules |= set(imported)
        finally:
            process.kill()
