import json
from pathlib import Path

import pytest

import fedbonsai
from fedbonsai.cli import main
from fedbonsai.devices.measure import NETWORKS
from fedbonsai.devices.profile import profile

QUICK = ["--rounds", "2", "--data.limit", "200", "--data.clients", "4", "--data.partition", "iid", "--quiet"]


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(("what", "name"), [("devices", "raspberry-pi-4"), ("links", "lte")])
def test_ls(what, name, capsys):
    assert main(["ls", what]) == 0
    assert name in capsys.readouterr().out


@pytest.mark.slow
def test_devices_and_link_are_short_for_the_clocks_settings(capsys):
    words = ["run", "fedavg", *QUICK, "--devices", "raspberry-pi-4", "--link", "lte"]
    assert main(words) == 0
    out = capsys.readouterr().out
    assert "of simulated time" in out
    assert "(raspberry-pi-4)" in out
    run = fedbonsai.load("runs/fedavg-digits-0")
    assert (run.config.clock.devices, run.config.clock.link) == ("raspberry-pi-4", "lte")
    assert run.seconds > 0 < run.joules
    assert main(["report", "runs/fedavg-digits-0", "--target", "0.1"]) == 0
    out = capsys.readouterr().out
    assert "Costs to 10.0 % test accuracy" in out
    assert main(["report", "runs/fedavg-digits-0", "--target", "7"]) == 2
    assert main(["run", "--resume", "runs/fedavg-digits-0", "--devices", "jetson-nano"]) == 2


@pytest.mark.slow
def test_progress_has_time_and_energy(capsys):
    assert main(["run", "fedavg", *QUICK[:-1], "--devices", "phone-mid"]) == 0
    assert "simulated 0." in capsys.readouterr().out


@pytest.mark.slow
def test_unknown_devices_and_links_are_named(capsys):
    assert main(["run", "fedavg", *QUICK, "--devices", "raspberry-pi-44"]) == 2
    assert "did you mean 'raspberry-pi-4'" in capsys.readouterr().err
    assert main(["run", "fedavg", *QUICK, "--link", "lte"]) == 2
    assert "no clock that link could concern" in capsys.readouterr().err
    assert not Path("runs").exists()


def test_profile_refuses_before_it_measures(capsys):
    Path("held.toml").write_text("")
    for words in (["held.toml"], ["--network", "vgg99"], ["--seconds", "0"], ["--link", "pigeon"]):
        assert main(["profile", *words]) == 2
    assert Path("held.toml").read_text() == ""


@pytest.mark.slow
@pytest.mark.parametrize("count", [5, pytest.param(len(NETWORKS), marks=pytest.mark.exhaustive)])
def test_profile_measures_this_machine_and_a_run_can_use_it(capsys, monkeypatch, count):
    # the last network alone takes as long as all the others
    monkeypatch.setattr("fedbonsai.devices.measure.NETWORKS", NETWORKS[:count])
    assert (
        main(
            ["profile", "here.toml", "--seconds", "0.01", "--network", "mlp", "--name", "here", "--compute-watts", "31"]
        )
        == 0
    )
    made = profile("here.toml")
    assert made.name == "here"
    assert 1e8 < made.conv.value < 1e13
    assert made.structured.at(0.1) < 1.0
    assert made.masked.at(0.1) > 0.5  # dense kernels
    assert (made.compute.value, made.compute.mark) == (31.0, "measured")
    assert made.idle.mark == "assumed"
    assert 50e6 < made.runtime.value < 2e9
    capsys.readouterr()
    assert main(["run", "fedavg", *QUICK, "--devices", "here.toml"]) == 0
    rows = [json.loads(line) for line in Path("runs/fedavg-digits-0/metrics.jsonl").read_text().splitlines()]
    assert all(row["joules"] > 0 for row in rows)
