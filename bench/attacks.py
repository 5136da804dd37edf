"""What liars do to each mean of updates: ``python -m bench.attacks``, which goes on where it stopped.

Every mean by every attack by the share of devices that lie, on two tasks that travel with the package, each dealt out to twenty
devices; one seed, and one order of who lies. Accuracy is on the test set after the last round. Of the backdoor there is also
its success: the share of the test samples of other classes that are taken for the target once they are marked.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import torch

from bench.record import RESULTS, facts
from fedbonsai.errors import ConfigError
from fedbonsai.fleets.attacks import Backdoor
from fedbonsai.runs import recipes
from fedbonsai.runs.loop import loop
from fedbonsai.runs.setup import RunContext, run_context
from fedbonsai.training.evaluate import evaluate

PAGE = RESULTS / "attacks.json"
DEVICES = 20
COMMON = {"data.clients": DEVICES, "data.valid": 0.0, "fleet.threads": 1}
TASKS: dict[str, tuple[str, dict[str, Any]]] = {
    "digits": (
        "fedavg",
        {
            "rounds": 15,
            "data.partition": "dirichlet",
            "data.alpha": 1.0,
            "model.name": "mlp",
            "model.options": {"widths": [32]},
            "method.optimizer": {"lr": 0.1, "momentum": 0.5, "batch": 16, "epochs": 1},
        },
    ),
    "motion": (
        "motion",
        {
            "rounds": 16,
            "data.partition": "iid",
            "model.options": {"norm": "group", "widths": [16, 24]},
            "method.optimizer": {"lr": 0.3, "momentum": 0.9, "batch": 16, "epochs": 1},
        },
    ),
}
MEANS: dict[str, dict[str, Any]] = {
    "plain": {"name": "plain"},
    "median": {"name": "median"},
    "trimmed": {"name": "trimmed", "share": 0.4},
    "bounded": {"name": "bounded"},
    "krum": {"name": "krum", "share": 0.4},
    "multi-krum": {"name": "krum", "share": 0.4, "keep": 0},
    "geometric": {"name": "geometric"},
}
TASKS["digits to the end"] = (TASKS["digits"][0], {**TASKS["digits"][1], "rounds": 45})
ONLY = {"digits to the end": (("sign-flip", 0.2),)}  # attacks and shares of a task that is not tried by all of them
ATTACKS = (
    "sign-flip",
    "scaling",
    "a-little",
    "inner-product",
    "label-flip",
    "backdoor",
    "not-a-number",
    "overflow",
    "claim",
)
SHARES = (0.2, 0.4, 0.1, 0.3)  # in this order, since each run is written as it ends


def cells(tasks: list[str]) -> Iterator[tuple[str, str, str, float]]:
    """Task, mean, attack and share of liars of every run; without liars the attack is "none"."""
    for task in tasks:
        yield from ((task, mean, "none", 0.0) for mean in MEANS)
        tried = ONLY.get(task, [(attack, share) for share in SHARES for attack in ATTACKS])
        yield from ((task, mean, attack, share) for attack, share in tried for mean in MEANS)


def attacked(task: str, mean: str, attack: str, share: float) -> dict[str, Any]:
    """Figures of one run."""
    recipe, base = TASKS[task]
    told: dict[str, Any] = {**COMMON, **base, "evaluate_every": base["rounds"], "method.mean": MEANS[mean]}
    if share:
        # a change so scaled replaces the model where devices count alike
        more = {"factor": 1 / share} if attack == "backdoor" else {}
        told |= {"fleet.liars.share": share, "fleet.liars.attack": {"name": attack, **more}}
    config = recipes.load(recipe, "", told)
    scene = run_context(config)
    began = time.perf_counter()
    ended = loop(config, scene, "attacks")
    model = scene.method.model(ended.state)
    found: dict[str, Any] = {
        "accuracy": round(evaluate(model, scene.federation.test, "cpu").value, 4),
        "seconds": round(time.perf_counter() - began, 2),
    }
    if ended.futile:
        found["ended"] = ended.futile.partition(":")[0]
    attack_made = config.fleet.liars.attack
    if isinstance(attack_made, Backdoor):
        found["success"] = round(_success(scene, model, attack_made), 4)
    return found


def _success(scene: RunContext, model: Any, attack: Backdoor) -> float:
    """Share of the test samples of other classes that are taken for the target once they are marked."""
    test = scene.federation.test
    others = attack.marked(test)[test.y != attack.target]
    return evaluate(model, replace(others, y=torch.full_like(others.y, attack.target)), "cpu").value


def main() -> None:
    """Run what is not there yet; each run is written as it ends."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tasks", nargs="+", default=list(TASKS), choices=list(TASKS))
    tasks: list[str] = parser.parse_args().tasks
    torch.set_num_threads(1)
    held: list[Mapping[str, Any]] = json.loads(PAGE.read_text(encoding="utf-8"))["runs"] if PAGE.exists() else []
    done = {(each["task"], each["mean"], each["attack"], each["share"]): dict(each) for each in held}
    for cell in cells(tasks):
        if cell in done:
            continue
        try:
            found = attacked(*cell)
        except ConfigError as error:
            raise SystemExit(f"{cell}: {error}") from error
        done[cell] = {**dict(zip(("task", "mean", "attack", "share"), cell, strict=True)), **found}
        text = ",\n".join(json.dumps(each) for each in done.values())
        head = json.dumps(facts(), indent=1).removesuffix("\n}")
        PAGE.write_text(f'{head},\n "devices": {DEVICES},\n "runs": [\n{text}\n]}}\n', encoding="utf-8")
        print(*cell, found, flush=True)


if __name__ == "__main__":
    main()
