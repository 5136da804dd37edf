"""What people write is read as they wrote it: marks, line ends, other encodings named."""

import codecs
import json

import pytest

from fedbonsai.devices.link import link
from fedbonsai.errors import ConfigError
from fedbonsai.runs.recipes import load
from fedbonsai.text import decoded, text_of

RECIPE = 'rounds = 3\nname = "żółw"\n\n[method]\nname = "averaging"\n'


@pytest.mark.parametrize("mark", [b"", codecs.BOM_UTF8])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_marks_and_line_ends_are_read(tmp_path, mark, end):
    file = tmp_path / "my.toml"
    file.write_bytes(mark + RECIPE.replace("\n", end).encode())
    assert text_of(file) == RECIPE
    config = load(str(file))
    assert (config.rounds, config.name) == (3, "żółw")


@pytest.mark.parametrize(
    ("raw", "name"),
    [
        (RECIPE.encode("utf-16"), "UTF-16"),
        (RECIPE.encode("utf-16-be"), "UTF-16"),  # without a mark
        ("x = 1".encode("utf-16-le"), "UTF-16"),
        (RECIPE.encode("utf-32"), "UTF-32"),
        (b"a = 1\nb = '\xff'\n", r"not UTF-8 \(byte 0xff in line 2\)"),
        (b"a = '\x00'" + b" " * 80, "bytes of zero"),
    ],
)
def test_what_is_not_utf_8_is_named(tmp_path, raw, name):
    file = tmp_path / "wired.toml"
    file.write_bytes(raw)
    for read in (lambda: load(str(file)), lambda: link(str(file)), lambda: text_of(file)):
        with pytest.raises(ConfigError, match=rf"wired\.toml cannot be read: it .*{name}.*save it as UTF-8"):
            read()


def test_json_with_a_mark_is_read():
    assert json.loads(decoded(codecs.BOM_UTF8 + b'{"a": 1}\r\n', "split.json")) == {"a": 1}
