"""Workers begin where and with what their parent is at that moment, and have torch without importing it."""

import os
import sys

import pytest

from fedbonsai import forked

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="workers are spawned there")


def tell(pipe, name):
    """What a worker finds as it begins."""
    pipe.send((os.environ.get(name), os.environ.get("GONE"), os.getcwd(), "torch" in sys.modules, os.getppid()))


def found(name):
    context = forked.context()
    ours, theirs = context.Pipe()
    worker = forked.process(context, tell, theirs, name, daemon=True)
    worker.start()
    try:
        return ours.recv()
    finally:
        worker.join()


@pytest.mark.slow
def test_a_later_worker_has_the_environment_and_the_folder_of_its_own_moment(tmp_path, monkeypatch):
    monkeypatch.setenv("FORKED", "first")
    monkeypatch.setenv("GONE", "not yet")
    *first, server = found("FORKED")
    assert first == ["first", "not yet", os.getcwd(), True]
    monkeypatch.setenv("FORKED", "second")
    monkeypatch.delenv("GONE")
    monkeypatch.chdir(tmp_path)
    *second, again = found("FORKED")
    assert second == ["second", None, str(tmp_path), True]
    assert server == again != os.getpid(), "both were forked from one process, which imported torch once"
