"""Devices on hosts of their own, behind links of 1 Mbit/s and 50 ms that lose one packet in fifty each way."""

import os
from contextlib import ExitStack
from dataclasses import replace

import pytest

from fedbonsai.runs.run import execute
from fedbonsai.runs.submit import submit
from tests.cases import CASES
from tests.flower_live.federation import CLIENTS, Place
from tests.flower_live.hosts import Host, Relay, possible
from tests.flower_live.test_live import final

LOSS = 0.02
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not os.environ.get("FEDBONSAI_LIVE"), reason="takes minutes: make test-flower"),
]


def test_a_run_over_slow_links_ends_as_a_simulation(tmp_path):
    if not possible():
        pytest.skip("network namespaces or tbf cannot be made here")
    loss = LOSS if possible(LOSS) else 0.0
    with ExitStack() as stack:
        hosts = []
        for number in range(CLIENTS):
            hosts.append(Host(number, "1mbit", loss))
            stack.callback(hosts[-1].close)
        place = Place(tmp_path / "place", tuple(host.near for host in hosts))
        stack.callback(place.close)
        place.serve()
        for number, host in enumerate(hosts):
            relay = Relay(host.near, place.port, 0.05)
            stack.callback(relay.close)
            place.wait("serve", f"{number:03} is in")
            place.join(f"{number:03}", number, server=relay.address, inside=host.inside)
        config = place.config(CASES[0], **{"model.options": {"widths": [1024]}})
        run = submit(config, tmp_path / "devices", False)
        lost = [host.lost() for host in hosts] if loss else []
    execute(replace(config, fleet=replace(config.fleet, kind="local")), tmp_path / "simulation")
    assert final(tmp_path / "devices") == final(tmp_path / "simulation")
    assert all(min(ends) > 0 for ends in lost), lost
    print(f"packets lost at the ends of each link: {lost}" if loss else "packet loss is untested: no cls_bpf here")
    (row,) = run.metrics
    there_and_back = (row["bytes_down"] + row["bytes_up"]) / CLIENTS
    print(f"{there_and_back / 1e3:.0f} kB there and back for each device: {row['seconds']:.1f} s")
    assert row["seconds"] > 8 * there_and_back / 1e6  # the link was as slow as it should be
