"""What lies in a folder: files of rows, a folder for each class, or a folder or file for each client."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from fedbonsai.data.audio import ENDINGS
from fedbonsai.data.classes import few
from fedbonsai.data.kinds import Kind, Values
from fedbonsai.data.shards import CLIENT, FILES, Shard, of_file, of_folder
from fedbonsai.errors import ConfigError

TESTS = ("test", "validation", "valid")  # names of a split that serves as the test set, the best first
STRAY = {"__macosx", "thumbs.db", "ehthumbs.db", "desktop.ini", "@eadir", "$recycle.bin", "lost+found"}
IMAGES = {".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff"}

ARRAY = "x.npy"  # a folder that has it holds arrays

Found = dict[str, list[Path]]


def stray(path: Path) -> bool:
    """Whether systems, not people, put it there: hidden files and folders, and what archives and discs leave behind."""
    return path.name.startswith(".") or path.name.lower() in STRAY


def splits(folder: Path) -> Found:
    """Files by split: those named so, in the folder or in its ``data`` folder; none where there are no such names.

    Raises:
        ConfigError: not all parts of a split.
    """
    for place in (folder, folder / "data"):
        found = {
            split: sorted(
                file
                for ending in FILES
                for pattern in (f"{split}-*{ending}", f"{split}{ending}")
                for file in place.glob(pattern)
            )
            for split in ("train", *TESTS)
        }
        if found["train"]:
            return {split: _complete(files) for split, files in found.items() if files}
    return {}


def marked(path: Path) -> list[tuple[str, int, int]]:
    """All files under a path with their sizes and times, by which a cache is found again."""
    files = [path] if path.is_file() else sorted(each for each in path.rglob("*") if each.is_file() and not stray(each))
    return [(str(file.resolve()), (at := file.stat()).st_size, at.st_mtime_ns) for file in files]


def local(path: Path) -> dict[str, list[Shard]]:
    """Files of a path by split; the column `CLIENT` is theirs where folders or files are clients'.

    Raises:
        ConfigError: there is nothing that can be read.
    """
    try:
        if path.is_file() and path.suffix.lower() in FILES:
            return {"train": [of_file(path)]}
        if (path / ARRAY).is_file():
            return {"train": [of_folder(path)]}
        if found := splits(path):
            return {split: [of_file(file) for file in files] for split, files in found.items()}
        parts = {name: path / name for name in ("train", *TESTS) if (path / name).is_dir()}
        if "train" in parts:
            return {split: _tree(place) for split, place in parts.items()}
        if shards := _tree(path):
            return {"train": shards}
        others = sorted(file.name for file in path.iterdir() if file.suffix in FILES and not stray(file))
        state = "holds no train-*.parquet" + (f" (but {', '.join(others[:5])})" if others else "")
    except (FileNotFoundError, NotADirectoryError):
        state = "is not a folder"
    except OSError as error:
        state = f"cannot be read: {error.strerror}"
    raise ConfigError(
        f"data.path = {str(path)!r} {state}; expected train-*.parquet and test-*.parquet (or .csv, .npz), or a folder data/ of "
        "them, one folder of pictures or recordings for each class, or one folder or file for each client"
    )


def unread(folder: Path) -> list[str]:
    """Names of files of rows that lie beside those of a data set and are none of it."""
    found = splits(folder)
    if not found:
        return []
    wanted = {*found["train"], *next((found[name] for name in TESTS if name in found), ())}
    beside = found["train"][0].parent.iterdir()
    return sorted(file.name for file in beside if file.suffix in FILES and file not in wanted and not stray(file))


def _complete(files: list[Path]) -> list[Path]:
    """The files of a split, unless their names (``-00001-of-00003``) tell that parts are missing or of another writing."""
    parts = [match for file in files if (match := re.search(r"-(\d+)-of-(\d+)\.\w+$", file.name))]
    wanted = {int(match[2]) for match in parts}
    if parts and wanted != {len(parts)}:
        raise ConfigError(
            f"{files[0].parent} holds {len(parts)} files {', '.join(file.name for file in files[:5])} of "
            f"{' or '.join(map(str, sorted(wanted)))}: copy all parts of one writing there and take others away"
        )
    return files


def _tree(folder: Path) -> list[Shard]:
    """Files of a folder without splits: of classes, or of clients."""
    if (folder / ARRAY).is_file():
        return [of_folder(folder)]
    inside = [each for each in sorted(folder.iterdir()) if not stray(each)]
    rows = [each for each in inside if each.is_file() and each.suffix.lower() in FILES]
    if rows:
        named = any(file.stem.lower().startswith(("train", *TESTS)) for file in rows)
        return [] if named or len(rows) < 2 else [of_file(file).of_client(file.stem) for file in rows]
    places = [each for each in inside if each.is_dir()]
    if any(_media(place) for place in places):
        return [_of_classes(folder, places)]
    shards: list[Shard] = []
    for place in places:
        if (place / ARRAY).is_file():
            shards.append(of_folder(place).of_client(place.name))
            continue
        below = [each for each in sorted(place.iterdir()) if not stray(each)]
        if files := [each for each in below if each.is_file() and each.suffix.lower() in FILES]:
            shards += [of_file(file).of_client(place.name) for file in files]
        elif any(_media(each) for each in below if each.is_dir()):
            shards.append(_of_classes(place, [each for each in below if each.is_dir()]).of_client(place.name))
    return shards


def _media(folder: Path) -> list[Path]:
    """Pictures and recordings in a folder."""
    return [
        each
        for each in sorted(folder.iterdir())
        if each.suffix.lower() in IMAGES | ENDINGS and each.is_file() and not stray(each)
    ]


def _of_classes(folder: Path, places: Sequence[Path]) -> Shard:
    """A folder of pictures, or of recordings, for each class.

    Raises:
        ConfigError: it holds both.
    """
    files = [(file, place.name) for place in places for file in _media(place)]
    sounds = [file for file, _ in files if file.suffix.lower() in ENDINGS]
    if sounds and len(sounds) < len(files):
        raise ConfigError(
            f"{folder} holds pictures and recordings ({few([file.name for file in sounds])}); expected only one of the kinds"
        )
    name = "sound" if sounds else "image"
    kinds = {name: Kind(name, "sound" if sounds else "picture"), "label": Kind("text", "text")}

    def rows(names: Sequence[str]) -> Mapping[str, Values]:
        values: dict[str, Values] = {
            name: [{"bytes": None, "path": str(file)} for file, _ in files],
            "label": [label for _, label in files],
        }
        return {each: values[each] for each in names}

    return Shard(str(folder), len(files), kinds, rows)


__all__ = ["CLIENT", "IMAGES", "TESTS", "local", "marked", "splits", "stray", "unread"]
