"""Imports point one way; the picture is in ARCHITECTURE.md. A new package gets a row in `MAY`."""

import ast
from pathlib import Path

import pytest

SRC = Path(__file__).parents[1] / "src" / "fedbonsai"

GROUND = {
    "bases",
    "choice",
    "disk",
    "errors",
    "forked",
    "identity",
    "inputs",
    "lock",
    "measured",
    "modules",
    "places",
    "settings",
    "telling",
    "text",
    "tree",
    "wire",
}
MODEL = GROUND | {"arch", "cached_module", "model", "objectives"}
CORE = MODEL | {"work", "core", "training"}
MAY = {  # package or module directly under fedbonsai -> what it may import of its siblings
    "errors": set(),
    "disk": {"errors"},
    "forked": set(),
    "identity": {"errors"},
    "lock": set(),
    "measured": {"places", "telling"},
    "modules": {"errors"},
    "places": set(),
    "settings": set(),
    "text": {"errors"},
    "telling": set(),
    "tree": {"errors"},
    "wire": {"errors", "tree"},
    "bases": {"errors", "tree", "wire"},
    "choice": set(),
    "inputs": {"errors", "wire"},
    "objectives": GROUND,
    "arch": GROUND | {"objectives"},
    "cached_module": GROUND | {"objectives", "arch"},
    "model": GROUND | {"objectives", "arch", "cached_module"},
    "work": MODEL,
    "core": MODEL | {"work"},
    "sparse": MODEL,
    "training": MODEL | {"work", "core", "sparse"},
    "local": {"training"},
    "zoo": MODEL,
    "devices": CORE,
    "data": GROUND | {"core", "objectives"},
    "stages": CORE | {"devices"},
    "methods": CORE | {"zoo", "stages", "devices"},
    "fleets": CORE | {"stages", "devices", "data"},
    "runs": CORE | {"zoo", "devices", "data", "stages", "methods", "fleets"},
    "reports": CORE | {"runs"},
    "sweeps": CORE | {"data", "runs", "reports"},
    "export": CORE | {"stages", "runs"},
    "dashboard": CORE | {"fleets", "runs"},
    "planning": CORE | {"zoo", "devices", "data", "stages", "methods", "fleets", "runs", "reports", "export", "sweeps"},
}
ALL = {"__init__", "api", "cli"}  # these see everything; nothing but cli and __init__ sees them
BY_NAME = {("arch", "zoo")}  # imported late, by its name as a string, to register the shipped networks


def modules():
    return sorted(SRC.rglob("*.py"))


def package(file: Path) -> str:
    return file.relative_to(SRC).with_suffix("").parts[0]


def of_library(name: str) -> str:
    """What a dotted name is directly under fedbonsai; a public name is of ``__init__``."""
    part = name.split(".")[1] if "." in name else "__init__"
    return part if (SRC / part).is_dir() or (SRC / f"{part}.py").exists() else "__init__"


def imported(file: Path) -> set[str]:
    """Dotted names that a module imports anywhere, in functions and for type checking too."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{file}: relative import"
            whole = node.module == "fedbonsai"
            found |= {f"fedbonsai.{alias.name}" for alias in node.names} if whole else {node.module}
        elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            if called in ("import_module", "__import__"):
                found.add(str(node.args[0].value))
    return found


def test_every_package_has_a_row():
    assert {package(file) for file in modules()} - ALL <= MAY.keys()


def test_the_rows_have_no_circle():
    done: set[str] = set()
    while ready := {name for name, may in MAY.items() if name not in done and may - {name} <= done}:
        done |= ready
    assert done == set(MAY)


@pytest.mark.parametrize("name", sorted({package(file) for file in modules()} - ALL))
def test_imports_point_one_way(name):
    may = MAY[name] | {name} | {to for here, to in BY_NAME if here == name}
    wrong = [
        f"{file.relative_to(SRC)} imports {target}"
        for file in modules()
        if package(file) == name
        for target in sorted(imported(file))
        if target.split(".")[0] == "fedbonsai" and of_library(target) not in may
    ]
    assert not wrong


@pytest.mark.slow
def test_only_the_command_line_imports_the_command_line():
    for file in modules():
        if package(file) != "cli":
            assert "cli" not in {of_library(name) for name in imported(file) if name.startswith("fedbonsai.")}, file


@pytest.mark.slow
def test_only_its_own_fleet_knows_flower():
    known = [file for file in modules() if any(name.split(".")[0] == "flwr" for name in imported(file))]
    assert all(file.relative_to(SRC).parts[:2] in (("fleets", "flower"), ("fleets", "flower.py")) for file in known)


def test_no_two_packages_of_stages_need_each_other():
    whole = {file.parent.name for file in (SRC / "stages").glob("*/__init__.py")}
    needs: dict[str, set[str]] = {}
    for own in whole:
        names = {
            name.split(".")[2]
            for file in (SRC / "stages" / own).rglob("*.py")
            for name in imported(file)
            if name.startswith("fedbonsai.stages.")
        }
        needs[own] = names & whole - {own}
    assert len(whole) > 5
    assert [(one, other) for one, others in needs.items() for other in others if one in needs[other]] == []
