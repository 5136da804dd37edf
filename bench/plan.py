"""How good the answers of `fedbonsai plan` are: regret in small spaces, beside random search and the advice for everybody.

    FEDBONSAI_DATA=folder python -m bench.plan exhaust     # every setting of every task once: minutes a task
    python -m bench.plan                                   # planner, random search and advice on what that gave

Four tasks on parts of data sets (a picture, a series, a sound, a table), each with a space of 32 settings and a limit of
bytes a device. All settings are run once, without a limit, into ``bench/results/plan/TASK.json``; then the planner itself
(its journal, sampler and rungs) is played on that table with other seeds, and stopped when it has used a quarter, a half
or all of the rounds that the table took. Regret is the best test measure of any setting at the limit minus that of the
setting which was chosen, by validation, when time was up; points of the measure, lower is better.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import statistics
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from bench.record import RESULTS, facts, save
from fedbonsai.planning.journal import Journal
from fedbonsai.planning.limits import Limits
from fedbonsai.planning.order import order
from fedbonsai.planning.plan import question
from fedbonsai.planning.pool import OutOfTime
from fedbonsai.planning.probe import MARGIN, Probe
from fedbonsai.planning.question import Question
from fedbonsai.planning.search import Search, described, directions
from fedbonsai.planning.space import CODECS, NETWORKS, UNSERVED, Knob, Space, in_turn
from fedbonsai.planning.standing import Standing
from fedbonsai.planning.trial import Leg, walk

ROUNDS = 12
SHARES = {"a quarter": 0.25, "a half": 0.5, "all": 1.0}
SEEDS = 10
TABLES = RESULTS / "plan"
MEMORY = Path("/dev/shm")  # the journal sees each line on the disk, for which a table need not wait
DENSE = {"codec": "fp32"}


@dataclass(frozen=True)
class Job:
    """A task: a part of a data set, networks for it, and a limit."""

    data: str
    train: int
    test: int
    limit: str
    networks: tuple[str, str]
    kind: str
    settings: Mapping[str, object] = field(default_factory=dict[str, object])
    labels_below: int = 0
    """If positive: only samples of these classes, of which so few samples can teach something."""

    @property
    def space(self) -> Space:
        """Eight ways to train, two networks, two steps."""
        recipes = {"fedavg": {}, "small-dense": {}, "fl-pqsu": UNSERVED, "fedtiny": {}, "synflow": {}}
        knobs = (
            Knob("lr", {name: {"method.optimizer.lr": float(name)} for name in ("0.05", "0.2")}),
            Knob("codec", CODECS, ("fedavg",)),
            Knob("density", {"0.2": {"method.density": 0.2}}, ("small-dense", "fedtiny", "synflow")),
        )
        networks = {name: NETWORKS[self.kind][name] for name in self.networks}
        space = Space(recipes, networks, knobs)
        begun = [{"recipe": "fedavg", "codec": codec} for codec in CODECS]
        begun += [{"recipe": name} for name in recipes if name != "fedavg"]
        return replace(space, advice=in_turn(space, begun))

    @property
    def advice(self) -> dict[str, str]:
        """What docs/choose.md tells everybody for whom bytes are scarce: STC with the README's chains, as it comes."""
        return self.space.whole({"recipe": "fedavg", "codec": "top 0.5 %, ternary"})

    def labels(self) -> list[dict[str, str]]:
        """Every setting."""
        found: list[dict[str, str]] = [{}]
        values: dict[str, Sequence[str]] = {}

        def pick(name: str, labels: Sequence[str]) -> str:
            values[name] = labels
            return chosen.get(name, labels[0])

        every: list[dict[str, str]] = []
        while found:
            chosen = found.pop()
            values.clear()
            labels = self.space.choose(pick)
            open_ = next((name for name in labels if name not in chosen), None)
            if open_ is None:
                every.append(labels)
            else:
                found += [{**chosen, open_: value} for value in reversed(values[open_])]
        return every


SERIES = ("cnn1d 16-24-32", "cnn1d 8-12-16")
JOBS = {
    "picture": Job("mnist", 500, 400, "400kB", ("cnn-bn", "mlp"), "pictures"),
    "series": Job("har-phone-watch", 2400, 2000, "100kB", SERIES, "series"),
    "sound": Job("speech-commands-ar-mfcc", 2400, 600, "100kB", SERIES, "series", labels_below=10),
    "table": Job(
        "credit-default",
        4800,
        6000,
        "60kB",
        ("tabular-mlp 64-32", "tabular-mlp 32"),
        "tables",
        {"data.x": ["*"], "objective.name": "binary", "objective.metric": "auroc"},
    ),
}


def part(job: Job, folder: Path) -> None:
    """Write a part of a data set: rows by a fixed draw, with the columns' metadata."""
    home = Path(os.environ["FEDBONSAI_DATA"]) / job.data
    for split, count in (("train", job.train), ("test", job.test)):
        table = pa.concat_tables([pq.read_table(file) for file in sorted(home.glob(f"{split}-*.parquet"))])
        if job.labels_below:
            table = table.filter(pc.less(table["label"], job.labels_below))
        chosen = np.sort(np.random.default_rng(0).permutation(len(table))[:count])
        pq.write_table(table.take(chosen), folder / f"{split}-0.parquet")


def asked(job: Job, folder: Path | None) -> Question:
    """The question of a job; of a table nothing is read."""
    if folder is not None:
        settings = {"data.path": str(folder), "data.clients": 8, "data.valid": 0.25, **job.settings}
        return question(settings, space=job.space, rounds=ROUNDS)
    from fedbonsai.objectives import Binary, Classification
    from fedbonsai.planning.question import Aim

    objective = Binary(metric="auroc") if job.kind == "tables" else Classification()
    return Question({"seed": 0}, Limits.of({"bytes": job.limit}), Aim(), job.space, ROUNDS, objective)


def exhaust(name: str) -> None:
    """Run every setting of a job, and write the table; what was run before is kept."""
    job, file = JOBS[name], TABLES / f"{name}.json"
    TABLES.mkdir(parents=True, exist_ok=True)
    known: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))["settings"] if file.exists() else {}
    with tempfile.TemporaryDirectory() as home:
        data = Path(home) / job.data
        data.mkdir()
        part(job, data)
        whole = asked(job, data)
        for number, labels in enumerate(job.labels()):
            if described(labels) in known:
                continue
            try:
                config = whole.config(labels)
                standing = walk(Leg(config, Path(home) / str(number), ROUNDS))
            except Exception as error:
                standing = Standing(failed=str(error))
            known[described(labels)] = standing.plain()
            said = (
                standing.failed
                or f"{standing.value(ROUNDS):.4f}, {standing.bytes[-1]:,.0f} bytes, {standing.took:.1f} s"
            )
            print(f"{name}: {described(labels)}: {said}", flush=True)
            file.write_text(json.dumps({**facts(), "settings": known}, indent=None) + "\n", encoding="utf-8")


class Table:
    """What carries settings out by looking them up; its work is counted in rounds.

    Args:
        known: standings of all settings.
        limits: of the question.
        ends: rounds after which ``reached`` is called, ascending; after the last one time is up.
        reached: called then.
    """

    def __init__(
        self, known: Mapping[str, Standing], limits: Limits, ends: Sequence[float], reached: Callable[[], object]
    ) -> None:
        self.known, self.limits, self.ends, self.reached = known, limits, list(ends), reached
        self.used = 0
        self._done: dict[str, int] = {}

    def probe(self, labels: Sequence[Mapping[str, str]]) -> Sequence[Probe]:
        """What a look before training gives: bytes of the first rounds."""
        return [self._probe(self.known[described(each)]) for each in labels]

    def _probe(self, standing: Standing) -> Probe:
        if standing.failed:
            return Probe(standing.failed, "cannot run")
        first, second = standing.bytes[:2]
        return Probe(begin={"bytes": first}, each={"bytes": second - first}, fixed={})

    def walk(
        self, legs: Sequence[tuple[int, Mapping[str, str], int, int]], came: Callable[[int, Standing], object]
    ) -> None:
        """Carry settings on, as a budget would end them."""
        for number, labels, length, upto in legs:
            name = described(labels)
            standing = self.known[name]
            rounds = min(upto, length, standing.within(self.limits) + 1)
            self.used += max(0, rounds - self._done.get(name, 0))
            self._done[name] = max(rounds, self._done.get(name, 0))
            while self.ends and self.used > self.ends[0]:
                self.ends.pop(0)
                self.reached()
            if not self.ends:
                raise OutOfTime
            over = rounds == length or rounds > standing.within(self.limits)
            came(number, replace(standing.first(rounds), ended=over))

    def left(self, number: int) -> Standing | None:
        """Nothing: a leg takes no time here."""
        return None


def judged(standing: Standing, whole: Question) -> float:
    """The test measure of a setting at the limit."""
    return standing.test(standing.within(whole.limits))


def work(known: Mapping[str, Standing], whole: Question) -> int:
    """Rounds of all settings, each until a budget would end it."""
    return sum(min(each.rounds, each.within(whole.limits) + 1) for each in known.values() if not each.failed)


def planned(known: Mapping[str, Standing], whole: Question, seed: int) -> list[float]:
    """Test measure of the planner's choice after each share of all work."""
    found: list[float] = []
    ends = [share * work(known, whole) for share in SHARES.values()]
    with tempfile.TemporaryDirectory(dir=MEMORY if MEMORY.exists() else None) as home:
        journal = Journal(Path(home), whole.space, directions(whole), seed)

        def reached() -> None:
            best = search.feasible()
            found.append(judged(known[described(best[0].asked.labels)], whole) if best else float("nan"))

        search = Search(whole, journal, Table(known, whole.limits, ends, reached), say=lambda text: None)
        with contextlib.suppress(OutOfTime):
            search.run()
        while len(found) < len(ends):  # nothing was left to do
            reached()
    return found


def drawn(known: Mapping[str, Standing], whole: Question, seed: int) -> list[float]:
    """The same of random search: settings in random order, each to its end, the best by validation."""
    return [_drawn(known, whole, share, seed) for share in SHARES.values()]


def _drawn(known: Mapping[str, Standing], whole: Question, share: float, seed: int) -> float:
    names = sorted(known)
    random.Random(seed).shuffle(names)
    left, tried = share * work(known, whole), dict[int, Standing]()
    for place, name in enumerate(names):
        standing = known[name]
        if standing.failed:
            continue
        rounds = min(standing.rounds, standing.within(whole.limits) + 1)
        left -= rounds
        if left < 0:
            break
        if standing.within(whole.limits):
            tried[place] = standing
    chosen = order(tried, whole.aim, whole.objective.measure, whole.limits)
    return judged(tried[chosen[0]], whole) if chosen else float("nan")


def compared(name: str) -> dict[str, Any]:
    """Mean regrets of a job."""
    job = JOBS[name]
    table = json.loads((TABLES / f"{name}.json").read_text(encoding="utf-8"))
    known = {label: Standing.of(plain) for label, plain in table["settings"].items()}
    whole = asked(job, None)
    fit = {label: each for label, each in known.items() if not each.failed and each.within(whole.limits)}
    best = max(judged(each, whole) for each in fit.values())
    by_validation = order(dict(enumerate(fit.values())), whole.aim, whole.objective.measure, whole.limits)[0]
    ways = {"plan": planned, "random search": drawn}
    return {
        "data": job.data,
        "measure": whole.objective.metric,
        "limit": job.limit,
        "settings": len(known),
        "that meet the limit": len(fit),
        "rounds of all": work(known, whole),
        "seconds of all": round(sum(each.took for each in known.values())),
        "table": {key: table[key] for key in ("machine", "commit", "date")},
        "best": best,
        "regret of the best by validation": 100 * (best - judged(list(fit.values())[by_validation], whole)),
        "regret of the advice": 100 * (best - judged(known[described(job.advice)], whole)),
        "regret": {
            way: _regrets(best, [choose(known, whole, seed) for seed in range(SEEDS)]) for way, choose in ways.items()
        },
    }


def _regrets(best: float, reached: Sequence[Sequence[float]]) -> dict[str, dict[str, float]]:
    """Mean and worst regret after each share, in points."""
    return {
        words: _summary([100 * (best - value) for value in each])
        for words, each in zip(SHARES, zip(*reached, strict=True), strict=True)
    }


def _summary(regrets: Sequence[float]) -> dict[str, float]:
    return {"mean": statistics.fmean(regrets), "worst": max(regrets)}


def markdown(tasks: Mapping[str, Mapping[str, Any]]) -> str:
    """The regrets as docs/plan.md has them."""
    head = ["task", "best at the limit", "advice", "all, by validation"]
    head += [f"{way}, {words}" for words in SHARES for way in ("plan", "random search")]
    lines = [f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
    for name, each in tasks.items():
        fixed = [each["best"] * 100, each["regret of the advice"], each["regret of the best by validation"]]
        means = [each["regret"][way][words]["mean"] for words in SHARES for way in ("plan", "random search")]
        cells = [
            f"{name}: {each['data']}, {each['measure']}, {each['limit']}",
            *(f"{value:.1f}" for value in (*fixed, *means)),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main(words: Sequence[str]) -> None:
    """Run the tables, or compare on them."""
    if words[:1] == ["exhaust"]:
        for name in words[1:] or JOBS:
            exhaust(name)
        return
    there = [name for name in JOBS if (TABLES / f"{name}.json").exists()]
    found = {name: compared(name) for name in there}
    for name, each in found.items():
        advice, whole = each["regret of the advice"], each["regret of the best by validation"]
        print(f"{name}: regret of the advice {advice:.2f}, of the best by validation {whole:.2f}")
        for way, shares in each["regret"].items():
            cells = [f"{words} {value['mean']:.2f} (worst {value['worst']:.2f})" for words, value in shares.items()]
            print(f"  {way}: {', '.join(cells)}")
    print(markdown(found))
    save("plan", {"rounds": ROUNDS, "seeds": SEEDS, "margin": MARGIN, "tasks": found})


if __name__ == "__main__":
    main(sys.argv[1:])
