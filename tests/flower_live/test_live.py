"""A real SuperLink and two SuperNodes on loopback, with TLS and authentication, started by the verbs themselves.

All of it takes some minutes: ``make test-flower``. Elsewhere one round of one method and the gate are enough.
"""

import json
import os
import platform
import ssl
import threading
import time
import urllib.error
import urllib.request
from dataclasses import replace

import pytest

import fedbonsai
from fedbonsai.core import Answers, Silence
from fedbonsai.fleets.flower import certificates
from fedbonsai.fleets.wrappers import Wrapper
from fedbonsai.runs import recipes
from fedbonsai.runs.folder import Checkpoint, Folder
from fedbonsai.runs.loop import loop
from fedbonsai.runs.run import execute
from fedbonsai.runs.setup import run_context
from fedbonsai.runs.submit import submit
from fedbonsai.wire import encode
from tests.cases import CASES, SMALL
from tests.flower_live.federation import CLIENTS, DATA, LARGE, Place
from tests.moments import HANGS

pytestmark = pytest.mark.slow
ALL = bool(os.environ.get("FEDBONSAI_LIVE"))
SYSTEMS = {
    "fedavg": True,
    "fl-pqsu": ALL,
    "prunefl": ALL,
    "fedtiny": ALL,
    "sparse-collaborative-split": ALL,
    "sparse-collaborative": ALL,
    "wireless-pruning": ALL,
    "topk-ef": ALL,
}
FEW = {  # an exchange takes seconds here, so batches are large where a batch is an exchange
    "topk-ef": {"method.cohort": 0},
    "sparse-collaborative": {"method.optimizer.batch": 120},
}
everything = pytest.mark.skipif(not ALL, reason="takes minutes: make test-flower")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    made = Place(tmp_path_factory.mktemp("live"))
    try:
        made.serve()
        for number in range(CLIENTS):
            made.wait("serve", f"{number:03} is in")
            made.join(f"{number:03}", number)
        yield made
    finally:
        made.close()


def case_named(name):
    return next(case for case in CASES if str(case) == name)


def final(folder):
    return bytes(encode(Checkpoint(Folder(folder)).load()[1]))


def simulated(config, folder):
    execute(replace(config, fleet=replace(config.fleet, kind="local")), folder)
    return final(folder)


@pytest.mark.parametrize("name", [name for name, wanted in SYSTEMS.items() if wanted])
def test_a_method_ends_on_devices_as_in_a_simulation_to_the_byte(place, tmp_path, name):
    config = place.config(case_named(name), **FEW.get(name, {}))
    run = submit(config, tmp_path / "devices", False)
    assert run.info["status"] == "finished"
    assert final(tmp_path / "devices") == simulated(config, tmp_path / "simulation")
    if not ALL:
        return
    # the ledger counts heads and payloads, Flower also its own objects around them, and the hello of each device
    moved = place.traffic()
    rows = run.ledger()
    for way, theirs in (("down", "outbound-bytes"), ("up", "inbound-bytes")):
        messages = CLIENTS + sum(row["messages"] for row in rows if row["direction"] == way)
        framing = moved[theirs] - run.bytes[way]
        print(f"{name}: {way} {run.bytes[way]} bytes, Flower's framing {framing / messages:.0f} bytes a message")
        assert 0 < framing < 4000 * messages


@everything
def test_the_page_shows_who_is_there_and_what_they_did(place, tmp_path):
    def shown(what):
        with urllib.request.urlopen(f"http://127.0.0.1:{place.page}{what}", timeout=HANGS) as answer:
            return answer.read().decode()

    config = place.config(case_named("fedavg"))
    run = submit(replace(config, rounds=2), tmp_path / "shown", False)
    time.sleep(6)  # seconds between two words of the server
    print(page := shown("/"))
    devices = {device["name"]: device for device in json.loads(shown("/api/devices"))["devices"]}
    assert sorted(devices) == ["000", "001"]
    ledger = [row for row in run.ledger() if row["client"] == "001"]
    for device in devices.values():
        assert (device["state"], device["enrolled"], device["fits"]) == ("online", True, True)
        assert (device["version"], device["machine"]) == (fedbonsai.__version__, platform.machine())
        assert 0 < device["seconds"] < HANGS
    (job,) = (job for job in (place.federation / "jobs").glob("shown-*.devices.json"))
    entry = json.loads(job.read_text())["001"]
    assert entry["rounds"] == 2
    for way in ("down", "up"):
        assert entry[way] == sum(row["bytes"] for row in ledger if row["direction"] == way)
    told = next(each for each in json.loads(shown("/api/runs"))["runs"] if each["name"] == "shown")
    assert (told["status"], told["round"], told["rounds"]) == ("finished", 2, 2)
    assert told["score"] == run.score
    assert "001" in page
    assert "<polyline" in page
    assert "001" in place.call("devices", "--folder", str(place.federation))


@everything
def test_the_recipe_of_a_plan_ends_on_devices_as_in_a_simulation(place, tmp_path):
    same = {name: value for name, value in (SMALL | DATA).items() if name.startswith("data.")}
    planned = fedbonsai.plan(
        folder=tmp_path / "plan",
        **{name.replace(".", "__"): value for name, value in (same | {"data.valid": 0.1}).items()},  # as they joined
        recipes=["fedavg"],
        networks=["mlp"],
        limits={"bytes": "200kB"},
        trials=2,
        rounds=2,
        finalists=1,
        seeds=1,
        workers=1,
    )
    assert planned.sentence().startswith("Take fedavg")
    flower = {"folder": str(place.federation), "devices": CLIENTS, "deadline": 120.0}
    config = recipes.load(str(tmp_path / "plan" / "best.toml"), "", {"fleet.kind": "flower", "fleet.flower": flower})
    assert submit(config, tmp_path / "devices", False).info["status"] == "finished"
    assert final(tmp_path / "devices") == simulated(config, tmp_path / "simulation")


@everything
def test_strangers_and_strange_authorities_are_refused(place, tmp_path):
    place.call("keys", "device", "stranger", "--folder", str(place.folder / "keys"))
    place.join("stranger")
    place.wait("join-stranger", "is its .pub file in the server's folder")
    assert "could not establish a connection" in place.said("join-stranger")
    place.running["join-stranger"].terminate()
    place.ended("join-stranger")
    certificates.make_server(tmp_path / "other", ["localhost"])
    place.call("keys", "device", "fooled", "--folder", str(place.folder / "keys"))
    place.join("fooled", 0, tmp_path / "other" / "ca.crt")
    assert place.ended("join-fooled", 60) == 2
    assert "CERTIFICATE_VERIFY_FAILED" in place.said("join-fooled")
    assert not (place.folder / "device-fooled" / "node.pid").exists()


def test_the_gate_lets_devices_through_and_nobody_else(place):
    trusted = ssl.create_default_context(cafile=str(place.federation / "ca.crt"))

    def post(path, data=b"", method="POST"):
        request = urllib.request.Request(f"https://localhost:{place.port}{path}", data, method=method)
        try:
            with urllib.request.urlopen(request, context=trusted, timeout=HANGS) as answer:
                return answer.status
        except urllib.error.HTTPError as error:
            return error.code

    for path in (
        "/v1/control/list-runs",
        "/v1/control/start-run",
        "/v1/control/register-node",
        "/v1/runtime/pull-messages",
        "/v1/fleet/../control/list-runs",
        "/v1/fleet/%2e%2e/control/list-runs",
        "/v1/fleet/pull-messages?x=1",
        "/",
    ):
        assert post(path) == 404, path
    assert post("/docs", None, "GET") == 404
    assert post("/health", None, "GET") == 404
    # a device's request without a registered key reaches the SuperLink, which refuses it
    assert post("/v1/fleet/pull-messages") in (400, 401, 403, 415, 422)


class Without(Wrapper):
    """Asks all but one device."""

    def __init__(self, inner, id):
        super().__init__(inner)
        self.id = id

    def ask(self, task, send, at_least=1):
        answers = self.inner.ask(task, {device: what for device, what in send.items() if device.id != self.id}, 0)

        def rest():
            yield from answers
            yield from (Silence(device, "left out") for device in send if device.id == self.id)

        return Answers(rest(), at_least)


@everything
def test_a_device_that_answers_with_rubbish_spoils_neither_the_server_nor_the_mean(place, tmp_path):
    config = place.config(case_named("fedavg"), rounds=4)
    place.leave("001")
    place.join("001", 1, None, "--imports", "tests.flower_live.liar")
    try:
        run = submit(config, tmp_path / "devices", False)
    finally:
        place.leave("001")
        place.join("001", 1)
    made = run_context(replace(config, fleet=replace(config.fleet, kind="local")))
    made.fleet = Without(made.fleet, "001")
    assert final(tmp_path / "devices") == bytes(encode(loop(config, made, "run").state))
    sent = [row["bytes"] for row in run.ledger() if (row["client"], row["direction"]) == ("001", "up")]
    assert max(sent) > LARGE  # it came, was booked, and was not used


@everything
def test_rounds_that_do_not_wait(place, tmp_path):
    """A round ends with the first device's answer; the other's comes in a later one, and counts less."""
    more = {"buffer.size": 1, "rounds": 6, "method.cohort": 0}
    run = submit(place.config(case_named("topk-ef"), **more), tmp_path / "devices", False)
    assert run.info["status"] == "finished"
    assert [row["answered"] for row in run.metrics] == [1] * 6
    assert any(row.get("stale_max") for row in run.metrics)


@everything
def test_a_node_and_the_server_are_killed_and_the_run_ends_as_if_nothing_had_been(place, tmp_path):
    config = place.config(case_named("topk-ef"), rounds=4, **{"method.cohort": 0})
    whole = simulated(config, tmp_path / "simulation")
    folder = tmp_path / "devices"
    fault = []

    def run():
        try:
            submit(config, folder, False)
        except BaseException as error:
            fault.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    until = time.monotonic() + HANGS
    while len(Folder(folder).rows()) < 2:
        assert time.monotonic() < until
        assert not fault, fault
        time.sleep(0.2)
    place.kill("serve")
    place.kill("join-001")
    assert 2 <= len(Folder(folder).rows()) < 4
    place.serve()
    place.join("001", 1)
    place.wait("serve", "goes on from its last finished round")
    thread.join(240)
    assert not thread.is_alive()
    assert final(folder) == whole, fault


@everything
def test_a_device_whose_key_is_taken_away_is_out(place):
    (place.federation / "devices" / "001.pub").unlink()
    place.wait("serve", "001 is out")
    place.wait("join-001", "is its .pub file in the server's folder")
    assert place.ended("join-001") == 1
