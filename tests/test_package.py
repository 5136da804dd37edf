"""What pyproject.toml says is true: needed packages are declared, tested versions allowed, and what is said once is so."""

import ast
import importlib.metadata
import re
import sys
import tomllib
from pathlib import Path

import pytest
from hatch_build import elsewhere
from packaging.requirements import Requirement

from fedbonsai.cli.doctor import parts
from fedbonsai.fleets.flower import compat
from tests.oldest import FOR_THE_REPOSITORY, OF_ONE_TORCH, oldest

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]
TESTED = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().splitlines())
USERS = [extra for extra in EXTRAS if extra not in FOR_THE_REPOSITORY]
# these take a module's name as text
BY_NAME = {"import_module", "__import__", "find_spec", "extra", "need", "_package"}


def plain(name: str) -> str:
    """A package's name as package indexes compare it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def declared(*extras: str) -> set[str]:
    needs = (need for part in (PROJECT["dependencies"], *(EXTRAS[extra] for extra in extras)) for need in part)
    return {plain(Requirement(need).name) for need in needs}


def imported(text: str) -> set[str]:
    """Top-level names that a module imports, in functions and by a name as text too."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            found.add(node.module)
        elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            if called in BY_NAME and isinstance(node.args[0].value, str):
                found.add(node.args[0].value)
    return {name.split(".")[0] for name in found}


def undeclared(folder: Path, allowed: set[str]) -> list[str]:
    """What modules import of others that only happens to be there."""
    homes = importlib.metadata.packages_distributions()
    own = {"fedbonsai", "tests", "bench", "experiments", "hatch_build", *sys.stdlib_module_names}
    return [
        f"{file.relative_to(folder)} imports {name}"
        for file in sorted(folder.rglob("*.py"))
        for name in sorted(imported(file.read_text()) - own)
        if not {plain(home) for home in homes.get(name, ())} & allowed
    ]


@pytest.mark.slow
def test_what_the_library_imports_is_declared():
    assert not undeclared(ROOT / "src", declared(*USERS))


@pytest.mark.slow
def test_what_the_tests_import_is_declared():
    assert not undeclared(ROOT / "tests", declared(*EXTRAS))


@pytest.mark.slow
@pytest.mark.parametrize(
    "text",
    ["import httpx", "def f():\n    from httpx import get", "import_module('httpx.x')", "need('httpx')"],
)
def test_every_way_to_import_is_seen(text, tmp_path):
    (tmp_path / "module.py").write_text(f"import torch\n{text}\n")
    assert undeclared(tmp_path, declared()) == ["module.py imports httpx"]
    assert not undeclared(tmp_path, declared("flower"))


def test_the_tested_versions_are_allowed_and_complete():
    tested = {plain(name): version for name, version in TESTED.items()}
    for needs in (PROJECT["dependencies"], *EXTRAS.values()):
        for need in map(Requirement, needs):
            if need.name != "fedbonsai":
                assert need.specifier.contains(tested[plain(need.name)]), f"{need}, tested {tested[plain(need.name)]}"


def test_every_lower_bound_is_in_the_oldest_environment():
    pinned = [line.split("==") for line in oldest(PROJECT, "2.99")]
    assert {plain(name) for name, _ in pinned} == declared(*USERS) - set(OF_ONE_TORCH)
    assert ["torch", "2.99"] in pinned
    assert ["flwr", ".".join(map(str, compat.OLDEST))] in pinned


def test_flower_is_declared_from_where_it_is_not_refused(monkeypatch):
    from fedbonsai.errors import ConfigError

    bound = next(Requirement(need) for need in EXTRAS["flower"] if need.startswith("flwr"))
    major, minor = compat.OLDEST
    assert f">={major}.{minor}" in str(bound.specifier)
    for found, fits in ((f"{major}.{minor}.0", True), (f"{major}.{minor - 1}.9", False), ("0.99.0", False)):
        assert bound.specifier.contains(found) is fits
        monkeypatch.setattr(compat, "version", lambda name, found=found: found)
        if fits:
            compat.require()
        else:
            with pytest.raises(ConfigError, match=f"flwr {found} is too old; {major}.{minor} or newer"):
                compat.require()


def test_doctor_looks_for_what_is_declared(monkeypatch):
    lines = [f"{need}; extra == '{extra}'" for extra, needs in EXTRAS.items() for need in needs]
    monkeypatch.setattr("fedbonsai.cli.doctor.requires", lambda name: [*PROJECT["dependencies"], *lines])
    wanted = {extra: EXTRAS[extra] for extra in USERS} | {"base": PROJECT["dependencies"]}
    assert parts() == {part: [Requirement(need).name for need in needs] for part, needs in wanted.items()}


def test_the_version_stands_in_one_place():
    written = re.compile(rf"(?<![\d.]){re.escape(PROJECT['version'])}(?![\d.])")
    assert not [file for file in (ROOT / "src").rglob("*.py") if written.search(file.read_text())]


README = """See [costs](docs/costs.md#links), [Flower](https://flower.ai), [below](#numbers) and

![a report](docs/images/report.png)

```python
table[0](docs)
```
"""


def test_a_readme_outside_of_the_repository_has_no_relative_links():
    told = elsewhere(README, "", "1.2")
    assert "See costs (`docs/costs.md#links`), [Flower](https://flower.ai), [below](#numbers) and" in told
    assert "\na report (`docs/images/report.png`)\n" in told
    led = elsewhere(README, "https://example.org/fedbonsai", "1.2")
    assert "[costs](https://example.org/fedbonsai/blob/v1.2/docs/costs.md#links)" in led
    assert "![a report](https://example.org/fedbonsai/raw/v1.2/docs/images/report.png)" in led
    assert all("table[0](docs)" in text for text in (told, led))


def test_help_lists_every_target_that_is_a_command():
    text = (ROOT / "Makefile").read_text()
    commands = set(re.search(r"^\.PHONY: (.*)$", text, re.MULTILINE)[1].split())
    assert commands == set(re.findall(r"^([a-z-]+):.*## ", text, re.MULTILINE))
    assert commands == set(re.findall(r"^([a-z-]+):(?! *=)", text, re.MULTILINE))


def test_every_test_is_collected():
    names = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["pytest"]["ini_options"]["python_files"]
    for file in (ROOT / "tests").rglob("*.py"):
        found = [n.name for n in ast.parse(file.read_text()).body if isinstance(n, ast.FunctionDef | ast.ClassDef)]
        tests = [name for name in found if name.startswith(("test", "Test"))]
        assert len(tests) == len(set(tests)), f"{file}: of two tests with one name only the last one is run"
        assert bool(tests) == any(file.match(name) for name in names), f"{file}: {tests or 'no test'}"
