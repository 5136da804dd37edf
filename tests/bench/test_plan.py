"""The benchmark of the planner: what it plays on, and what the document says of it."""

import json
import math
from pathlib import Path

import pytest
from bench.plan import JOBS, SHARES, TABLES, Table, asked, markdown, work

from fedbonsai.planning.pool import OutOfTime
from fedbonsai.planning.search import described
from fedbonsai.planning.standing import Standing

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("name", JOBS)
def test_a_table_has_every_setting_of_its_space(name):
    known = json.loads((TABLES / f"{name}.json").read_text())["settings"]
    assert known.keys() == {described(labels) for labels in JOBS[name].labels()}
    assert len(known) == 32
    fit = [Standing.of(each) for each in known.values() if not each["failed"]]
    assert all(each.rounds == 12 and not math.isnan(each.test(12)) for each in fit)


def test_the_document_has_the_numbers_of_the_last_comparison():
    tasks = json.loads((ROOT / "bench" / "results" / "plan.json").read_text())["tasks"]
    assert markdown(tasks) in (ROOT / "docs" / "plan.md").read_text()


def test_work_is_counted_once_and_ends_when_it_is_used_up():
    job = JOBS["series"]
    whole, labels = asked(job, None), job.labels()[0]
    flat = Standing(values=(0.5,) * 12, tests=(0.5,) * 12, bytes=tuple(10_000.0 * (t + 1) for t in range(12)))
    known, ends = {described(labels): flat}, []
    assert work(known, whole) == 11, "100 kB are for ten rounds, and a budget ends a run after the one that exceeds it"
    runner = Table(known, whole.limits, [4, 10], lambda: ends.append(runner.used))
    came = {}
    for upto in (4, 4, 2):
        runner.walk([(0, labels, 12, upto)], came.__setitem__)
    assert (runner.used, ends, came[0].rounds, came[0].ended) == (4, [], 2, False)
    with pytest.raises(OutOfTime):
        runner.walk([(0, labels, 12, 12)], came.__setitem__)
    assert ends == [11, 11]
    assert len(SHARES) == 3
