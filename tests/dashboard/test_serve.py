"""What `serve` makes of ``--dashboard``."""

import os
import socket

import pytest

from fedbonsai.cli import main
from fedbonsai.cli.serve import LAST_PORT, _open, _page
from fedbonsai.errors import ConfigError
from fedbonsai.fleets.flower.processes import free_port
from tests.dashboard.places import federation_in


@pytest.fixture
def federation(tmp_path):
    return federation_in(tmp_path / "federation")


def test_the_page_is_on_this_machine_unless_it_is_wanted_elsewhere(federation, capsys):
    assert _page("none", 8443, federation) is None
    assert _page("", LAST_PORT, federation) is None
    assert _page("", 8443, federation).where == "http://127.0.0.1:8444/"
    assert _page("[::1]:9000", 8443, federation).where == "http://[::1]:9000/"
    assert not federation.token.exists()
    assert capsys.readouterr().out == ""
    assert _page("0.0.0.0:9000", 8443, federation).where == "https://0.0.0.0:9000/"
    token = federation.token.read_text().strip()
    assert token in capsys.readouterr().out
    _page("0.0.0.0:9000", 8443, federation)
    said = capsys.readouterr().out
    assert str(federation.token) in said
    assert token not in said  # it is printed once


def test_a_port_that_is_taken_ends_the_server_only_where_it_was_asked_for(federation, capsys):
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        _open(_page("", port - 1, federation), False)
        assert "no page for the operator: nothing can listen" in capsys.readouterr().err
        with pytest.raises(ConfigError, match="choose another --dashboard"):
            _open(_page(f"127.0.0.1:{port}", 1, federation), True)
    _open(None, False)
    page = _page(f"127.0.0.1:{free_port()}", 1, federation)
    _open(page, True)
    assert page.where in capsys.readouterr().out
    page.close()


def test_an_address_that_is_none_is_refused_before_anything_is_started(federation, capsys, monkeypatch):
    monkeypatch.chdir(federation.folder.parent)
    assert main(["serve", "--dashboard", "everywhere"]) == 2
    assert "expected HOST:PORT" in capsys.readouterr().err
    assert not federation.link.exists()
    federation.token.write_text("x")
    os.chmod(federation.token, 0o600)
    assert main(["serve", "--dashboard", "0.0.0.0:9000"]) == 2
    assert "holds no token" in capsys.readouterr().err
    assert not federation.link.exists()
