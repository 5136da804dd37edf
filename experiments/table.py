"""The tables of numbers, made from the committed JSON of experiments and benchmarks.

python -m experiments.table           # print docs/results.md, which has all of them
python -m experiments.table --write   # write docs/results.md and claims.md, and the sections of README.md and other documents

The README shows how many bytes a goal took, a picture, and the runs of `fair_har` that its plan lists under
``tool.results.highlights``.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cache, partial
from inspect import signature
from pathlib import Path
from typing import Any

from experiments.attack_table import attacks
from experiments.claims import claims
from experiments.fair_table import fair, keeps_protocol, short
from experiments.picture import TASKS as PICTURED
from experiments.picture import Lines, draw, lines
from experiments.plans import experiments, plan_of
from experiments.privacy_table import privacy
from experiments.reported import Reported, statement, verdict
from experiments.task_table import tasks
from experiments.time_table import times as waiting_times
from fedbonsai.arch import Arch, networks
from fedbonsai.model import Model
from fedbonsai.stages.pruning.figures import figures
from fedbonsai.sweeps.statistics import estimate
from fedbonsai.training.optimizers import SGD

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "results.md"
CLAIMS = ROOT / "docs" / "claims.md"
EXPORT, GUIDE = ROOT / "docs" / "export.md", ROOT / "docs" / "privacy.md"
ROBUST = ROOT / "docs" / "robust.md"
BEGIN, END = "<!-- results:begin -->", "<!-- results:end -->"

PICTURES = {"digits": (1, 8, 10), "mnist": (1, 28, 10), "cifar10": (3, 32, 10)}  # channels, pixels, classes
INPUTS = {  # options that a network takes from the data, and the shape of one input
    name: ({"channels": channels, "size": size, "classes": classes}, (channels, size, size))
    for name, (channels, size, classes) in PICTURES.items()
} | {"har-phone-watch": ({"features": 6, "length": 100, "classes": 5}, (100, 6))}
PARTITIONS = {
    "iid": "IID",
    "dirichlet": "Dirichlet {alpha}",
    "pathological": "{classes_per_client} classes each",
    "shards": "{shards_per_client} shards each",
    "natural": "by {by}",
}


Group = tuple[str, str, list[dict[str, Any]]]

ACCURACY = [
    "Accuracy on the test set is the mean of the last five evaluated rounds, mean ± standard deviation over the seeds, and",
    "its 95 % interval (Student's, over the seeds, cut at 0 and 100); megabytes are all that was encoded up and down, mean",
    "over the seeds.",
    "`fedbonsai sweep experiments/EXPERIMENT/plan.toml` runs them. † personalised: each client's own model on its own",
    "validation part, weighted by samples; no global model's accuracy. ‡ split: several networks that answer together, each",
    "cut in two over the devices of a cluster; no device holds all of them.",
    "The last column holds a row against what its paper or its authors' code reports, by the number of the note below the",
    "table; it is empty where we know of no figure. Their data and networks are others than ours.",
    "*Kept* is the share of the weights that a method may prune, of the last round's model; *parameters* is how many numbers",
    "the model then has, with all that is never pruned. Methods differ in that (FedTiny keeps its output layer and, when small,",
    "its first layer whole), so equal shares are not equal sizes: compare accuracies at equal *parameters*.",
]
COUNTED = ["Multiplications and training memory are counted for the last round's model, where a method prunes."]
FIRST = ["experiment", "setting", "data", "seeds", "accuracy, %", "95 % interval", "MB up", "MB down"]
FIRST += ["kept", "parameters"]
COUNTS = ["MMACs", "memory, kB"]
LAST = ["commit", "machine", "its paper or code"]
TASKS, PRIVACY = "tasks", "privacy"  # with tables of their own
FEWEST, FAIR = ("fedavg", "smallest"), "fair_har"  # runs of `fewest_bytes`, and the experiment, that the README shows


def section() -> str:
    """Everything between the README's markers."""
    heads = [
        "![Accuracy against megabytes and against parameters, a line for each method, on three tasks](docs/images/pareto.svg)",
        "",
        "Each line is a method at several densities; what lies further up and left is better. Left column by the",
        "[protocol](docs/evidence.md), the others by settings that were set by hand. Means over the seeds; tables with",
        "their number and intervals are in [all results](docs/results.md).",
        "",
    ]
    return "\n".join([*heads, *fewest(FEWEST), "", *short(FAIR, results_of(FAIR))])


def drawn() -> Lines:
    """What the README's picture shows."""
    there = {task: results_of(task) for task in PICTURED}
    return lines(by_experiment(), {task: dense(found[0])["parameters"] for task, found in there.items() if found})


def page() -> str:
    """The whole of docs/results.md."""
    lines = [
        "# Results",
        "",
        "Made by `python -m experiments.table --write` from the committed JSON.",
        "",
        "## Accuracy",
        "",
    ]
    lines += [
        *ACCURACY,
        *COUNTED,
        "",
        *table([group for group in groups() if plain(group[0])], [*FIRST, *COUNTS, *LAST]),
        "",
    ]
    lines += ["## By one protocol", "", *fair({name: results_of(name) for name in experiments()})]
    lines += ["## Tasks", "", *tasks(names(TASKS), results_of(TASKS)), ""]
    lines += ["## Privacy", "", *guide(), ""]
    lines += ["## Not run", "", *absent(), "", "## Bytes to a goal", "", *reach(), "", *fewest(), "", *_parts(), ""]
    lines += ["## Seconds to a goal", "", *waiting_times(names("buffered"), results_of("buffered")), ""]
    lines += ["## Speed", "", *speed(), "", "## Size", "", *sizes()]
    return "\n".join(lines).rstrip() + "\n"


def claimed() -> str:
    """The whole of docs/claims.md."""
    everything = by_experiment()
    seconds = json.loads((ROOT / "experiments/seconds_to_accuracy/seconds.json").read_text(encoding="utf-8"))
    for result in seconds:
        everything.setdefault("seconds_to_accuracy", {}).setdefault(result["name"], []).append(result)
    return "\n".join(claims(everything)) + "\n"


def plain(experiment: str) -> bool:
    """Whether an experiment stands in the table of accuracies, and has none of its own."""
    return experiment not in (TASKS, PRIVACY) and not keeps_protocol(experiment)


def guide() -> list[str]:
    """Accuracy against epsilon, for docs/privacy.md."""
    return privacy(names(PRIVACY), results_of(PRIVACY), data_of)


def table(shown: list[Group], columns: list[str]) -> list[str]:
    """Rows of some settings under a heading, and the notes on what papers report."""
    notes: list[Reported] = []
    everything = by_experiment()
    lines = [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
    for experiment, name, results in shown:
        cells = row(experiment, name, results)
        said = statement(experiment, name)
        if said is not None:
            if said.text not in [note.text for note in notes]:
                notes.append(said)
            number = [note.text for note in notes].index(said.text) + 1
            score = partial(percent, plan_of(experiment).metric)
            cells["its paper or code"] = f"({number}) {verdict(said, name, everything[experiment], score, parameters)}"
        lines.append(f"| {' | '.join(cells.get(column, '') for column in columns)} |")
    return [*lines, "", *(f"{number}. {note.text}" for number, note in enumerate(notes, 1))]


def percent(metric: str, result: Mapping[str, Any]) -> float:
    """Accuracy of a result in percent: on the test set, or by a metric of the method's own."""
    return 100 * (statistics.mean(result["method metrics"][metric][-5:]) if metric else result["last five"])


def parameters(result: Mapping[str, Any]) -> float:
    """How many numbers the last round's model has, where a method prunes."""
    return result["method metrics"]["parameters"][-1]


def absent() -> list[str]:
    """Settings of the plans that have no committed result, or fewer seeds than planned."""
    done = {(experiment, name): len(results) for experiment, name, results in groups()}
    lines: list[str] = []
    for folder in experiments():
        plan = plan_of(folder)
        left = {variant.name: len(variant.seeds) - done.get((folder, variant.name), 0) for variant in plan.variants}
        words = [
            f"{name} ({count} seeds)" if (folder, name) in done else name for name, count in left.items() if count > 0
        ]
        if words:
            lines.append(f"- `{folder}`: {', '.join(words)}")
    return (
        ["Settings of the plans without a result, or with seeds that are missing:", "", *lines]
        if lines
        else ["Nothing."]
    )


@cache
def groups() -> list[Group]:
    """Experiment, setting and its results, one for each seed, in the order of the plans."""
    every: list[Group] = []
    for experiment in experiments():
        found: dict[str, list[dict[str, Any]]] = {name: [] for name in names(experiment)}
        for result in results_of(experiment):
            found.setdefault(result["name"], []).append(result)
        every += [(experiment, name, results) for name, results in found.items() if results]
    return every


def by_experiment() -> dict[str, dict[str, list[dict[str, Any]]]]:
    """Results by experiment and setting."""
    everything: dict[str, dict[str, list[dict[str, Any]]]] = {}
    for experiment, name, results in groups():
        everything.setdefault(experiment, {})[name] = results
    return everything


def names(experiment: str) -> list[str]:
    """Settings of a plan, in its order."""
    return [variant.name for variant in plan_of(experiment).variants]


def results_of(experiment: str) -> list[dict[str, Any]]:
    """Committed results of an experiment."""
    files = sorted((ROOT / "experiments" / experiment / "results").glob("*.json"))
    return [json.loads(file.read_text(encoding="utf-8")) for file in files]


def row(experiment: str, name: str, results: list[dict[str, Any]]) -> dict[str, str]:
    """One line of the accuracy table, by column."""
    metric = plan_of(experiment).metric
    scores = [percent(metric, result) for result in results]
    spread = f" ± {statistics.stdev(scores):.2f}" if len(scores) > 1 else ""
    mean, half = (found := estimate(scores)).mean, found.half
    whole = cache(partial(dense, results[0]))  # counted once for the row's three cells, and only where they need it

    def last(metric: str, show: str, scale: float = 1.0) -> str:
        values = [result["method metrics"][metric][-1] for result in results if result["method metrics"].get(metric)]
        if not values and results[0]["recipe"] == "fedavg" and "configuration" in results[0]:
            values = [whole()[metric]]
        return format(scale * statistics.mean(values), show) if values else ""

    up, down = (f"{statistics.mean(result['bytes'][way] for result in results) / 1e6:.2f}" for way in ("up", "down"))
    return {
        "experiment": experiment,
        "setting": name + " †" * bool(metric) + " ‡" * split(results[0]),
        "data": data_of(results[0]),
        "seeds": str(len(results)),
        "accuracy, %": f"{mean:.2f}{spread}",
        "95 % interval": f"{max(mean - half, 0.0):.1f} to {min(mean + half, 100.0):.1f}" if math.isfinite(half) else "",
        "MB up": up,
        "MB down": down,
        "kept": last("density", ".3f"),
        "parameters": last("parameters", ",.0f"),
        "MMACs": last("macs", ".3f", 1e-6),
        "memory, kB": last("training_memory", ".0f", 1e-3),
        "commit": ", ".join(sorted({str(result["commit"]) for result in results})),
        "machine": ", ".join(
            sorted({f"{result['processor']}, {result['machine']['cores']} cores" for result in results})
        ),
    }


def split(result: Mapping[str, Any]) -> bool:
    """Whether a run trained networks that were cut over the devices of clusters."""
    from fedbonsai.runs.former import settings

    return settings(configuration_of(result)["method"])["name"] == "clusters"


def dense(result: Mapping[str, Any]) -> dict[str, float]:
    """Size and cost of FedAvg's whole network, counted as the methods that prune count theirs."""
    options, shape = INPUTS[result["configuration"]["data"]["name"]]
    table = result["configuration"]["model"]
    arch = Arch(table["name"], {**options, **table["options"]})
    taken = {name: value for name, value in arch.options.items() if name in signature(networks()[arch.name]).parameters}
    model = Model.init(Arch(arch.name, taken), 0)
    method = result["configuration"]["method"]
    given = dict(method.get("optimizer") or method["sgd"])
    given.pop("name", None)
    sgd = SGD(**given)
    return figures(model, {}, shape, sgd) | {"density": 1.0}


def data_of(result: Mapping[str, Any]) -> str:
    """Data, how many images of it, clients and division of a run."""
    configuration = configuration_of(result)
    data = configuration["data"]
    asked = configuration["method"].get("cohort", 0)
    some = f" ({asked} a round)" if asked else ""
    part = f" ({data['limit']} images)" if data.get("limit") else ""
    facts = {"alpha": f"{data['alpha']:g}", "by": data.get("by") or data.get("client", "")}
    how = PARTITIONS[data["partition"]].format(**data | facts)
    return f"{data['name']}{part}, {data['clients'] or 'all'} clients{some}, {how}"


def configuration_of(result: Mapping[str, Any]) -> Mapping[str, Any]:
    """All settings of a run: those that the result holds, else its recipe's with what the result says."""
    if "configuration" in result:
        return result["configuration"]
    from fedbonsai.runs import recipes
    from fedbonsai.runs.structure import unstructure

    return unstructure(recipes.load(result["recipe"], result["preset"], result["settings"]))


def reach() -> list[str]:
    """Bytes until a run first reaches FedAvg's accuracy minus one point, beside FedAvg's own, seed by seed."""
    found: dict[tuple[str, int], dict[str, Any]] = {}
    for file in sorted((ROOT / "experiments" / "bytes_to_accuracy" / "results").glob("*.json")):
        result = json.loads(file.read_text(encoding="utf-8"))
        found[(result["name"], result["seed"])] = result
    lines = [
        "Bytes, both directions, until the test accuracy first reaches that of FedAvg (fp32, mean of its last five rounds)",
        "minus one point; the ratio is FedAvg's own bytes to that accuracy by the run's. Experiment `bytes_to_accuracy`.",
        "The goal is no final accuracy where FedAvg ended while it still gained (last column: points a round, its last five",
        "evaluated rounds against the five before): a longer FedAvg sets a higher goal, for which these ratios say nothing.",
        "",
        "| clients a round | run | seed | goal, % | MB to it | rounds | FedAvg's MB by these | FedAvg's rounds | its last gain |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    rows = 0
    for (name, seed), result in found.items():
        kind, _, tag = (
            name.partition("-") if not name.startswith("topk") else ("topk-ef", "", name.removeprefix("topk-ef-"))
        )
        base = found.get((f"fedavg-{tag}", seed))
        if kind == "fedavg" or base is None:
            continue
        goal = base["last five"] - 0.01
        ours, theirs = first(result, goal), first(base, goal)
        if theirs is None:
            continue
        mine = (f"{ours[1] / 1e6:.2f}", str(ours[0]), f"{theirs[1] / ours[1]:.0f}") if ours else ("not reached", "", "")
        cells = [tag, kind, str(seed), f"{100 * goal:.2f}", *mine, str(theirs[0]), f"{gain(base):+.2f}"]
        lines.append(f"| {' | '.join(cells)} |")
        rows += 1
    return lines if rows else []


def fewest(only: Sequence[str] = ()) -> list[str]:
    """Bytes of each direction until the runs of `fewest_bytes` first reach two accuracies: mean over the seeds, and range.

    Args:
        only: names of the runs; empty: all.
    """
    runs: dict[tuple[str, int], dict[str, Any]] = {}
    for file in sorted((ROOT / "experiments" / "fewest_bytes" / "results").glob("*.json")):
        result = json.loads(file.read_text(encoding="utf-8"))
        runs.setdefault((result["name"], result["seed"]), result)
    found: dict[str, list[dict[str, Any]]] = {}
    for (name, _), result in runs.items():
        found.setdefault(name, []).append(result)
    lines = [
        "Kilobytes until the test accuracy on MNIST first reaches a goal, 10 of 100 clients a round, 28,938 parameters;",
        "mean over the seeds, and range. Experiment `fewest_bytes`: FedAvg, `smallest`, and what differs from it in a part.",
        "",
        "| run | goal, % | seeds that reached it | rounds | kB down | kB up | kB, both | down, % |",
        "|---|---|---|---|---|---|---|---|",
    ]
    order = [name for name in only or names("fewest_bytes") if name in found]
    for name, goal in ((name, goal) for name in order for goal in (0.964, 0.98)):
        curves = [result["curve"] for result in found[name] if result["configuration"]["target"] >= goal]
        hits = [next((row for row in curve if row[1] >= goal), None) for curve in curves]
        there = [hit for hit in hits if hit is not None]
        if not hits:  # such runs end at a lower accuracy
            continue
        down, up = sum(row[3] for row in there), sum(row[2] for row in there)
        cells = [
            _kilobytes(values) for values in zip(*((row[3], row[2], row[2] + row[3]) for row in there), strict=True)
        ]
        share = f"{100 * down / (down + up):.0f}" if there else ""
        rounds = ", ".join(str(row[0]) for row in there)
        cells = [name, f"{100 * goal:.1f}", f"{len(there)} of {len(hits)}", rounds, *(cells or [""] * 3), share]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def _parts() -> list[str]:
    """What the way down would have been without one of its parts, on the same rounds (`experiments.fewest_bytes.parts`)."""
    rows = json.loads((ROOT / "experiments" / "fewest_bytes" / "parts.json").read_text(encoding="utf-8"))["rows"]
    kinds = [name for name in rows[0] if name not in ("seed", "goal", "rounds", "down")]
    lines = [
        "Kilobytes down of `smallest` on the very rounds of these runs, if one part of the way down were otherwise:",
        "",
        f"| seed | goal, % | rounds | as it is | {' | '.join(kinds)} |",
        "|---" * (4 + len(kinds)) + "|",
    ]
    for row in rows:
        cells = [row["seed"], f"{100 * row['goal']:.1f}", row["rounds"]]
        cells += [f"{row[name] / 1e3:.0f}" for name in ("down", *kinds)]
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return lines


def _kilobytes(values: Iterable[int]) -> str:
    numbers = [value / 1e3 for value in values]
    spread = f" ({min(numbers):.0f} to {max(numbers):.0f})" if len(numbers) > 1 else ""
    return f"{statistics.mean(numbers):.0f}{spread}"


def first(result: Mapping[str, Any], goal: float) -> tuple[int, int] | None:
    """Round and bytes at which a curve first reaches an accuracy."""
    return next(((t, up + down) for t, value, up, down in result["curve"] if value >= goal), None)


def gain(result: Mapping[str, Any]) -> float:
    """Points of accuracy a round at the end: the last five evaluated rounds against the five before."""
    rounds, accuracies = zip(*((t, accuracy) for t, accuracy, _, _ in result["curve"][-10:]), strict=True)
    halves = statistics.mean(accuracies[5:]) - statistics.mean(accuracies[:5])
    return 100 * halves / (statistics.mean(rounds[5:]) - statistics.mean(rounds[:5]))


def speed() -> list[str]:
    """One row for each timed piece of work of every benchmark, beside what it is measured against."""
    lines = [
        "Times are medians of interleaved repeats; the ratio is to the first row of its group. `make bench` runs them.",
        "",
        "| benchmark | what | ms | ratio | commit | machine |",
        "|---|---|---|---|---|---|",
    ]
    for file in sorted((ROOT / "bench" / "results").glob("*.json")):
        result = json.loads(file.read_text(encoding="utf-8"))
        for name, times in timed(result, file.stem):
            machine = f"{result['machine']['processor']}, {result['machine']['cores']} cores"
            first = next(iter(times.values()))["median"]
            for what, time in times.items():
                ratio = time["median"] / first
                lines.append(
                    f"| {name} | {what} | {1000 * time['median']:.1f} | {ratio:.2f} | {result['commit']} | {machine} |"
                )
    return lines


def timed(result: Mapping[str, Any], name: str) -> Iterator[tuple[str, dict[str, dict[str, float]]]]:
    """Every table of times in a benchmark's JSON, with its path."""
    for key, value in result.items():
        if key == "times":
            yield name, value
        elif isinstance(value, dict):
            yield from timed(value, f"{name}, {key}")


def sizes() -> list[str]:
    """One row for each chain of codecs in a ResNet-18's shapes, beside what is usual; empty without a benchmark."""
    file = ROOT / "bench" / "results" / "codec.json"
    result = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    rows = [(what, row) for what, row in result.get("resnet18", {}).items() if isinstance(row, dict) and "bytes" in row]
    if not rows:
        return []
    machine = f"{result['machine']['processor']}, {result['machine']['cores']} cores"
    cells = [[what, f"{row['bytes'] / 1e6:.3f}", *(ms(row, way) for way in ("encode", "decode"))] for what, row in rows]
    return [
        f"Codecs on random (Laplace) values in the shapes of a ResNet-18; commit {result['commit']}, {machine}.",
        "",
        "| codecs | MB | encode, ms | decode, ms |",
        "|---|---|---|---|",
        *(f"| {' | '.join(each)} |" for each in cells),
    ]


def exports() -> list[str]:
    """One row for each exported file of a dense and a pruned network, beside the dense one in float32."""
    file = ROOT / "bench" / "results" / "export.json"
    if not file.exists():
        return ["Not measured yet: `python -m bench.export`, then `python -m experiments.table --write`."]
    result = json.loads(file.read_text(encoding="utf-8"))
    machine = f"{result['machine']['processor']}, {result['machine']['cores']} cores"
    lines = [
        f"Median milliseconds for one image on one thread, interleaved, {result['repeats']} repeats; agreement is with the",
        f"trained network, on the test set of digits. Commit {result['commit']}, {machine}; `python -m bench.export`.",
        "",
        "| network | format | weights | bytes | of dense fp32 | ms | of dense fp32 | same class, % | accuracy, % |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    first = {
        row["format"]: row for row in reversed(result["rows"]) if row["weights"] == "fp32" and row["model"] == "dense"
    }
    for row in result["rows"]:
        base = first[row["format"]]
        cells = [
            *(row["model"], row["format"], row["weights"], f"{row['bytes']:,}", f"{row['bytes'] / base['bytes']:.2f}"),
            *(f"{row['ms']:.3f}", f"{row['ms'] / base['ms']:.2f}"),
            *(f"{100 * row[name]:.2f}" for name in ("agreement", "accuracy")),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def ms(row: Mapping[str, float], way: str) -> str:
    """Milliseconds of one direction, where it was timed."""
    return f"{row[f'{way} ms']:.1f}" if f"{way} ms" in row else ""


def held(document: Path) -> str:
    """What stands between the markers of a document now."""
    return document.read_text(encoding="utf-8").partition(BEGIN)[2].partition(END)[0].strip("\n")


def put(document: Path, text: str) -> None:
    """Put a text between the markers of a document."""
    before, begin, rest = document.read_text(encoding="utf-8").partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise SystemExit(f"{document} lacks the markers {BEGIN} and {END}")
    document.write_text(f"{before}{BEGIN}\n{text}\n{END}{after}", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--write", action="store_true", help="write docs/results.md and the sections of documents")
    if not parser.parse_args().write:
        print(page())
        return
    put(ROOT / "README.md", section())
    put(EXPORT, "\n".join(exports()))
    put(ROBUST, "\n".join(attacks()))
    put(GUIDE, "\n".join(guide()))
    PAGE.write_text(page(), encoding="utf-8")
    CLAIMS.write_text(claimed(), encoding="utf-8")
    draw(drawn())
    print(
        "wrote docs/results.md, docs/claims.md and the sections of README.md, docs/export.md, docs/robust.md, docs/privacy.md"
    )


if __name__ == "__main__":
    main()
