"""A system lives in one room: what only one method uses lies beside it, and no room looks into another."""

import ast
from collections import defaultdict
from functools import cache
from pathlib import Path

SRC = Path(__file__).parents[1] / "src"
ROOMS = SRC / "fedbonsai" / "methods"


def name_of(file: Path) -> str:
    return ".".join(file.relative_to(SRC).with_suffix("").parts).removesuffix(".__init__")


FILES = {name_of(file): file for file in SRC.rglob("*.py")}


@cache
def imports(name: str) -> set[str]:
    """Modules of the library that a module imports."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(FILES[name].read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module:
            whole = [f"{node.module}.{alias.name}" for alias in node.names]
            found |= {full if full in FILES else node.module for full in whole}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return {module for module in found if module in FILES}


def room(name: str) -> str:
    """The room of a method that a module lies in; empty for all other modules."""
    parts = name.split(".")
    return parts[2] if parts[:2] == ["fedbonsai", "methods"] and len(parts) > 3 else ""


def reached(name: str) -> set[str]:
    """Every module that a module leads to."""
    seen, todo = set[str](), [name]
    while todo:
        new = imports(todo.pop()) - seen
        seen |= new
        todo += new
    return seen


def test_every_method_has_a_room_with_a_card_and_recipes():
    for folder in {file.parent for file in ROOMS.glob("*/method.py")}:
        assert (folder / "README.md").is_file()
        assert list((folder / "recipes").glob("*.toml")), folder


def test_a_stage_has_at_least_two_users():
    users = defaultdict[str, set[str]](set)
    for name in FILES:
        for module in reached(name):
            users[module].add(room(name) or f"beside {name}" * name.startswith("fedbonsai.stages") or name)
    for name in FILES:
        if name.startswith("fedbonsai.stages.") and FILES[name].name != "__init__.py":
            found = {user for user in users[name] if user and not user.startswith(("beside", "fedbonsai.cli"))}
            rooms = {user for user in found if not user.startswith("fedbonsai")}
            assert len(rooms) != 1, f"{name} serves {rooms} alone: it belongs into that room"


def test_a_file_of_more_than_350_lines_says_why():
    for name, file in FILES.items():
        text = file.read_text(encoding="utf-8")
        assert text.count("\n") <= 350 or "in this one file, because" in text.split('"""')[1], name


def test_no_room_looks_into_another():
    wrong = [
        f"{name} imports {module}"
        for name in FILES
        for module in imports(name)
        if room(name) and room(module) and room(name) != room(module)
    ]
    assert not wrong


def test_messages_and_tasks_that_are_called_by_a_room_stand_in_it():
    for name, file in FILES.items():
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.FunctionDef | ast.ClassDef):
                continue
            for mark in node.decorator_list:
                if isinstance(mark, ast.Call) and getattr(mark.func, "id", "") in ("message", "task"):
                    said = mark.args[0].value.split("/")[0].replace("-", "_")
                    if (ROOMS / said).is_dir():
                        assert room(name) == said, f"{mark.args[0].value} stands in {name}"
