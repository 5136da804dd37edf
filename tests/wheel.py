"""What is about to be released, tried as somebody would who knows only the file: ``make wheel``.

Not a test module: it needs the archives that ``make wheel`` builds. The wheel is installed into an environment of its
own, which sees the packages of this one (torch is not fetched again) and not the repository.
"""

import os
import re
import subprocess
import sys
import tarfile
import tempfile
import tomllib
import venv
import zipfile
from email import message_from_bytes
from pathlib import Path

ROOT = Path(__file__).parents[1]
RELATIVE = re.compile(r"\]\((?![a-z]+:|#)([^)\s]+)")
USED = (
    "--help",
    "ls recipes",
    "ls methods",
    "run fedavg --rounds 1 --data.clients 2 --devices raspberry-pi-4 --link lte --name tried --quiet",
    "report runs/tried",
)


def files() -> set[str]:
    """What the library consists of: modules, cards, recipes, profiles, the parts of a page."""
    every = (file for file in (ROOT / "src").rglob("*") if file.is_file() and file.suffix != ".pyc")
    return {file.relative_to(ROOT / "src").as_posix() for file in every if ".egg-info" not in str(file)}


def carried(wheel: Path, source: Path) -> None:
    """Both archives have all files, and the wheel no others."""
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
        assert names == files(), f"{wheel.name} differs from src/ in {sorted(names ^ files())}"
    with tarfile.open(source) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
        needed = {f"src/{name}" for name in files()} | {"LICENSE", "README.md", "constraints.txt", "pyproject.toml"}
        assert needed <= names, f"{source.name} lacks {sorted(needed - names)}"


def described(wheel: Path) -> None:
    """The version is that of the file, and what a package index shows has no link that leads nowhere."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    with zipfile.ZipFile(wheel) as archive:
        name = next(name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        metadata = message_from_bytes(archive.read(name))
    text = metadata.get_payload()
    assert metadata["Version"] == project["version"]
    assert metadata["Description-Content-Type"] == "text/markdown"
    assert len(text) > 5000
    prose = re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)
    assert not RELATIVE.findall(prose), f"relative links: {RELATIVE.findall(prose)}"


def used(wheel: Path, folder: Path) -> None:
    """Install it where nothing of the repository is, and use what needs its files."""
    venv.create(folder / "fresh", with_pip=False)
    python = folder / "fresh" / "bin" / "python"
    pip = [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet", "--no-deps", "--no-index"]
    subprocess.run([*pip, str(wheel)], check=True)
    site = next((folder / "fresh").glob("lib/python*/site-packages"))
    (site / "tested.pth").write_text("\n".join(path for path in sys.path if path.endswith("site-packages")))
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment["FEDBONSAI_CACHE"] = str(folder / "cache")

    def said(*words: str) -> str:
        return subprocess.run(words, cwd=folder, env=environment, check=True, capture_output=True, text=True).stdout

    where = said(str(python), "-c", "import fedbonsai; print(fedbonsai.__file__)")
    assert Path(where.strip()).is_relative_to(site), f"{where} is not what was installed"
    for words in USED:
        assert said(str(folder / "fresh" / "bin" / "fedbonsai"), *words.split()), words


if __name__ == "__main__":
    built = Path(sys.argv[1])
    (wheel,), (source,) = built.glob("*.whl"), built.glob("*.tar.gz")
    carried(wheel, source)
    described(wheel)
    with tempfile.TemporaryDirectory() as folder:
        used(wheel.resolve(), Path(folder))
    print(f"{wheel.name}: {len(files())} files, its commands work where nothing else of the repository is")
