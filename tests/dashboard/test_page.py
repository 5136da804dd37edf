"""The page as HTML, the terminal's table, JSON and metrics: one set of facts, and nothing a device says is markup."""

import dataclasses
import json
import xml.etree.ElementTree as xml
from html.parser import HTMLParser

import pytest

from fedbonsai.cli import main
from fedbonsai.dashboard import tables
from fedbonsai.dashboard.curves import drawing
from fedbonsai.dashboard.facts import Facts
from fedbonsai.dashboard.page import page
from fedbonsai.dashboard.runs import Curve
from fedbonsai.dashboard.words import COLUMNS, UNKNOWN, cells
from tests.dashboard.places import NOW, federation_in, many, run_in


class Reader(HTMLParser):
    """What stands on a page: its tags, the rows of its table, and all of its text."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.rows, self.text, self.inside = [], [], "", False
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag == "tr":
            self.rows.append([])
        self.inside = tag in ("td", "th") or (self.inside and tag == "span")
        if tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_endtag(self, tag):
        self.inside = self.inside and tag not in ("td", "th")

    def handle_data(self, data):
        self.text += data
        if self.inside:
            self.rows[-1][-1] += data


@pytest.fixture(scope="module")
def fleet(tmp_path_factory):
    return Facts(many(tmp_path_factory.mktemp("many") / "federation")).picture(NOW)


def test_the_table_has_each_device_once_and_says_what_the_json_says(fleet):
    head, *rows = Reader(page(fleet)).rows
    assert head == [column.head for column in COLUMNS]
    assert len(rows) == len(fleet.devices) == 201
    told = {row[0]: row for row in rows}
    for held in json.loads(tables.encoded(tables.devices(fleet)))["devices"]:
        device = next(each for each in fleet.devices if each.name == held["name"])
        assert held == dataclasses.asdict(device)
        assert told[held["name"]] == [" ".join(cell.splitlines()) for cell in cells(device, NOW)]
        assert told[held["name"]][1] == held["state"]
        assert told[held["name"]][4] == (held["version"] or UNKNOWN)
        rounds = {"pi-007": "11, 1 silent"}.get(held["name"], str(held["rounds"]))
        assert told[held["name"]][7] == (UNKNOWN if held["rounds"] is None else rounds)


def test_who_is_refused_or_away_stands_above_who_is_there(fleet):
    first = [row[0] for row in Reader(page(fleet)).rows[1:]]
    assert first[:2] == ["pi-003", "pi-new"]
    assert sorted(first[2:]) == first[2:]  # no server runs, so nobody is known to be away


def test_nothing_that_a_device_says_is_markup_and_nothing_is_fetched_or_run(fleet):
    read = Reader(page(fleet))
    assert "<script>alert(1)</script><img src=x onerror=alert(2)>&quot;'" in read.text
    tags = {tag for tag, _ in read.tags}
    assert not tags & {"script", "img", "iframe", "object", "form", "input", "button", "style"}
    for tag, attributes in read.tags:
        assert not [name for name in attributes if name.startswith("on") or name == "style"], tag
        for name in ("href", "src"):
            assert attributes.get(name, "data:,") in (
                *("data:,", "style.css", "?", "?still", "api/devices", "api/runs", "api/server", "metrics"),
            )
    assert "\x1b" not in page(fleet)


def test_a_page_is_loaded_again_by_itself_or_held(fleet):
    again = [attributes for tag, attributes in Reader(page(fleet)).tags if attributes.get("http-equiv") == "refresh"]
    assert [each["content"] for each in again] == ["10"]
    assert not [1 for _, attributes in Reader(page(fleet, still=True)).tags if "http-equiv" in attributes]


def test_a_federation_of_nobody_says_what_to_do(tmp_path):
    picture = Facts(federation_in(tmp_path / "federation")).picture(NOW)
    read = Reader(page(picture))
    assert read.rows == []
    assert "copy a device's .pub file" in read.text
    assert "fedbonsai run RECIPE --fleet flower" in read.text
    assert tables.devices(picture)["devices"] == tables.runs(picture)["runs"] == []


def test_a_curve_lies_where_its_figures_say():
    root = xml.fromstring(drawing(Curve("<a>", "higher", ((1, 0.0), (3, 1.0), (5, 0.5)))))
    (line,) = root.iter("polyline")
    points = [tuple(map(float, point.split(","))) for point in line.get("points").split()]
    assert points == [(44.0, 78.0), (178.0, 8.0), (312.0, 43.0)]
    assert root.find("title").text == "<a>: 0 in round 1, 0.5 in round 5; higher is better"
    flat = xml.fromstring(drawing(Curve("loss", "lower", ((1, 2.0), (2, 2.0)))))
    assert {point.split(",")[1] for point in next(flat.iter("polyline")).get("points").split()} == {"43.0"}


def test_metrics_are_prometheus_text(tmp_path):
    federation = federation_in(tmp_path / "federation", ["a"], {"a": NOW - 1.5})
    run_in(federation, "one", 2)
    told = tables.metrics(Facts(federation).picture(NOW)).splitlines()
    assert f'fedbonsai_device_last_seen_seconds{{device="a"}} {NOW - 1.5!r}' in told
    assert 'fedbonsai_device_online{device="a"} 0.0' in told
    assert not [line for line in told if line.startswith("fedbonsai_device_rounds_total{")]  # not known, so not said
    assert f'fedbonsai_run_rounds_total{{run="{tmp_path}/runs/one"}} 2.0' in told
    assert all(line.startswith(("# HELP fedbonsai_", "# TYPE fedbonsai_", "fedbonsai_")) for line in told)
    assert tables._label('a"\\\n') == 'a\\"\\\\\\n'


def test_the_terminal_prints_the_same_table_and_the_same_json(tmp_path, capsys, monkeypatch):
    federation = many(tmp_path / "federation", 12)
    monkeypatch.setattr("fedbonsai.dashboard.facts.time.time", lambda: NOW)
    assert main(["devices", "--folder", str(federation.folder)]) == 0
    out = capsys.readouterr().out
    picture = Facts(federation).picture(NOW)
    head, *rows = out.splitlines()
    assert head.split()[:2] == ["device", "state"]
    for row, device in zip(rows, picture.devices, strict=False):
        at = 0
        for cell in cells(device, NOW):
            at = row.index(" ".join(cell.split("\n")).strip(), at)
    assert "\x1b" not in out
    assert f"urgent: server does not run; start it: fedbonsai serve --folder {federation.folder}" in out
    assert main(["devices", "--folder", str(federation.folder), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == json.loads(tables.encoded(tables.devices(picture)))
    assert main(["devices", "--folder", str(tmp_path)]) == 2
    assert "fedbonsai keys server ADDRESS" in capsys.readouterr().err
