"""The folder of a run of which a file is damaged or gone: every verb says which file, and never goes on with a part."""

import json
import shutil
from pathlib import Path

import pytest

import fedbonsai
from fedbonsai.cli import main

VERBS = {
    "report": lambda run: ["report", str(run), "--out", str(run.with_suffix(".md"))],
    "watch": lambda run: ["watch", str(run)],
    "export": lambda run: ["export", str(run), "--to", "compact", "--out", str(run.with_suffix(".fbn"))],
    "resume": lambda run: ["run", "--resume", str(run), "--quiet"],
}
QUICK = {"rounds": 2, "data__clients": 3, "data__limit": 90, "data__partition": "iid", "model__name": "mlp"}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run that is finished."""
    return fedbonsai.run("fedavg", name="whole", runs=tmp_path_factory.mktemp("runs"), progress=False, **QUICK).path


def cut(file: Path):
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def last(folder: Path, pattern: str) -> Path:
    return sorted(folder.glob(pattern))[-1]


def first_line_gone(file: Path):
    file.write_text("".join(file.read_text().splitlines(keepends=True)[1:]))


DAMAGES = {  # what happens to the folder, which verbs notice, what they name
    "no line": (lambda run: (run / "metrics.jsonl").write_text("\n"), "report watch export resume", "metrics.jsonl is dam"),
    "no rows": (lambda run: (run / "metrics.jsonl").write_text("[]\n3\n"), "report watch export resume", "metrics.jsonl is"),
    "a line gone": (lambda run: first_line_gone(run / "metrics.jsonl"), "report watch export resume", "line 1 is of round 2"),
    "metrics gone": (lambda run: (run / "metrics.jsonl").unlink(), "report resume", "metrics.jsonl has the lines of 0 rounds"),
    "info cut": (lambda run: cut(run / "run.json"), "report watch export resume", "run.json is damaged"),
    "info a list": (lambda run: (run / "run.json").write_text("[1]"), "report watch export resume", "expected a table, it"),
    "info gone": (lambda run: (run / "run.json").unlink(), "report watch export resume", "no run.json"),
    "config": (lambda run: (run / "config.toml").write_text("rounds"), "report watch export resume", "config.toml: not valid"),
    "ledger": (lambda run: cut(last(run, "ledger/*.parquet")), "report resume", "round-00002.parquet is damaged"),
    "state": (lambda run: cut(last(run, "checkpoint/state-*.msg")), "resume", "checkpoint is damaged"),
    "manifest": (lambda run: (run / "checkpoint/manifest.json").write_text("[]"), "export resume", "checkpoint is damaged"),
    "round": (lambda run: (run / "checkpoint/manifest.json").write_text('{"round": "x"}'), "resume", "checkpoint is damaged"),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("damage", DAMAGES)
def test_every_verb_names_the_file_that_is_damaged(damage, whole, tmp_path, capsys):
    harm, noticing, name = DAMAGES[damage]
    for verb in noticing.split():
        run = tmp_path / verb
        shutil.copytree(whole, run)
        harm(run)
        before = {file: file.read_bytes() for file in run.rglob("*") if file.is_file() and file.name != "run.json"}
        assert main(VERBS[verb](run)) == 2, verb
        said = capsys.readouterr().err
        assert said.startswith("fedbonsai: ")
        assert "Traceback" not in said
        if (damage, verb) != ("metrics gone", "report"):
            assert name in said, verb
        assert {file: file.read_bytes() for file in before} == before  # nothing of what is left is touched
    assert main(["ls", "runs", "--runs", str(tmp_path)]) == 0


@pytest.mark.slow
def test_what_a_run_can_make_anew_is_made_anew(whole, tmp_path):
    run = tmp_path / "a"
    shutil.copytree(whole, run)
    for name in ("model.safetensors", "split.json"):
        (run / name).unlink()
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"round": 2, "att')  # its writer was killed
    assert main(["report", str(run), "--out", str(tmp_path / "r.md")]) == 0
    assert main(["run", "--resume", str(run), "--quiet"]) == 0
    for name in ("model.safetensors", "split.json", "metrics.jsonl"):
        assert (run / name).read_bytes() == (whole / name).read_bytes()
    assert json.loads((run / "run.json").read_text())["status"] == "finished"
