"""Text is UTF-8 whatever the locale: whoever opens text or talks to a process in text says so."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FILES = [
    *(file for part in ("src", "bench", "experiments") for file in sorted((ROOT / part).rglob("*.py"))),
    ROOT / "demo.py",
]


def undecided(source: str) -> list[int]:
    """Lines of the calls whose encoding depends on the locale."""
    return [node.lineno for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call) and _locale(node)]


def _locale(call: ast.Call) -> bool:
    named = {word.arg: word.value for word in call.keywords}
    attribute = isinstance(call.func, ast.Attribute)
    function = call.func.attr if attribute else getattr(call.func, "id", "")
    if "encoding" in named:
        return False
    if any(isinstance(named.get(word), ast.Constant) and named[word].value for word in ("text", "universal_newlines")):
        return True
    if function in ("read_text", "write_text"):
        return len(call.args) < (1 if function == "read_text" else 2)
    words = [str(word.value) for word in [*call.args, named.get("mode")] if isinstance(word, ast.Constant)]
    modes = [word for word in words if word and set(word) <= set("rwxabt+")]
    if function in ("open", "fdopen") and not modes:  # what has an argument that is no mode may be no file
        return not attribute or not call.args
    return function in ("open", "fdopen", "NamedTemporaryFile", "TemporaryFile") and any("b" not in m for m in modes)


@pytest.mark.parametrize(
    "source",
    [
        "path.read_text()",
        "path.read_text(errors='replace')",
        "path.write_text(text)",
        "open(path)",
        "open(path, 'w')",
        "path.open()",
        "path.open(mode='a')",
        "os.fdopen(number, 'r')",
        "NamedTemporaryFile('w', delete=False)",
        "subprocess.run(words, text=True)",
    ],
)
def test_the_check_sees(source):
    assert undecided(source)
    assert not undecided(source.removesuffix(")") + ("" if source.endswith("()") else ", ") + "encoding='utf-8')")


@pytest.mark.parametrize(
    "source", ["open(path, 'rb')", "path.open('ab')", "fleet.open(scope)", "os.open(path, os.O_RDONLY)", "run(words)"]
)
def test_the_check_leaves_alone(source):
    assert not undecided(source)


@pytest.mark.parametrize("part", ["src", "bench", "experiments", "demo.py"])
def test_no_text_depends_on_the_locale(part):
    found = {
        str(file.relative_to(ROOT)): lines
        for file in FILES
        if file.relative_to(ROOT).parts[0] == part and (lines := undecided(file.read_text(encoding="utf-8")))
    }
    assert not found
