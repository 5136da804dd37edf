"""The command line as tests start it that stop or hold a run: its moments are certain, however fast the machine is.

A moment is a file ``KIND-ROUNDS``: it comes where a run does what its kind says and has written so many rounds. What is
in the file happens: a signal to the process that was started, once, or ``hold``, which lasts until the file is taken
away. Kinds: ``training`` and ``judging`` in the middle of a network's work, ``checkpoint`` just before the round counts.
"""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from fedbonsai.forked import context, process

HANGS = 900.0  # seconds after which a process counts as hanging; never reached by one that is only slow


def started(words, moments, run=Path(), **more):
    """A process of the command line that looks for moments in a folder; ``run`` is where its run will be."""
    more["env"] = {**os.environ, "MOMENTS": str(moments), "RUN": str(run)}
    return subprocess.Popen([sys.executable, __file__, *words], **more)


def killed_and_resumed(words, runs, name, moments):
    """Start a run that kills itself at each of the moments, and resume it each time, the last time to its end."""
    (folder := runs / "moments").mkdir(parents=True)
    for moment in moments:
        (folder / moment).write_text(f"{signal.SIGKILL:d}")
    told = by_script if "pool" in words else forked
    begin = [*words, "--name", name, "--runs", str(runs)]
    codes = [-signal.SIGKILL] * len(moments) + [0]
    for line, code in zip(
        [begin, *[["run", "--quiet", "--resume", str(runs / name)]] * len(moments)], codes, strict=True
    ):
        assert told(line, folder, runs / name) == code
    assert not list(folder.iterdir()), "not all moments came"


def by_script(words, moments, run):
    """The exit code of a process whose workers look for moments as it does."""
    process = started(words, moments, run)
    ended(process)
    return process.returncode


def forked(words, moments, run):
    """The exit code of a process that begins with all modules imported; one that hangs is not left behind."""
    made = process(context(), obey, words, moments, run)
    made.start()
    made.join(HANGS)
    made.kill()
    return made.exitcode


def obey(words, moments, run):
    """What such a process does: the command line, which looks for moments."""
    from fedbonsai.cli import main

    os.environ |= {"MOMENTS": str(moments), "RUN": str(run), "LEADER": str(os.getpid())}
    watch()
    sys.exit(main(words))


def ended(process):
    """What a process said until its end; one that hangs is not left behind."""
    try:
        return process.communicate(timeout=HANGS)
    finally:
        process.kill()


def until(true, process):
    """Wait until something is so, while a process goes on that brings it about."""
    limit = time.monotonic() + HANGS
    while not true():
        if process.poll() is not None or time.monotonic() > limit:
            process.kill()
            raise AssertionError(process.communicate())
        time.sleep(0.02)


def rounds_of(run):
    """Rounds that a run has written."""
    file = Path(run) / "metrics.jsonl"
    return file.read_bytes().count(b"\n") if file.exists() else 0


def come(kind, run):
    """A run has come to where a moment may be."""
    file = Path(os.environ["MOMENTS"]) / f"{kind}-{rounds_of(run)}"
    try:
        what = file.read_text()
        while what == "hold" and file.exists():
            time.sleep(0.02)
        file.unlink()
    except FileNotFoundError:  # there is none, it is over, or another process was first
        return
    os.kill(int(os.environ["LEADER"]), int(what))


def watch():
    """Look for moments from now on."""
    import torch

    def computes(module, given):
        come("training" if module.training else "judging", os.environ["RUN"])

    def renames(event, given):
        if event == "os.rename" and Path(to := os.fsdecode(given[1])).name == "manifest.json":
            come("checkpoint", Path(to).parent.parent)

    torch.nn.modules.module.register_module_forward_pre_hook(computes)
    sys.addaudithook(renames)


if __name__ in ("__main__", "__mp_main__"):  # the latter in processes that it starts
    watch()
if __name__ == "__main__":
    from fedbonsai.cli import main

    os.environ["LEADER"] = str(os.getpid())
    signal.signal(
        signal.SIGINT, signal.default_int_handler
    )  # ignored where a shell started the tests in the background
    sys.exit(main(sys.argv[1:]))
