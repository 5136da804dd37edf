"""Memory that a process may take: the machine's, or what its control group or one above it allows."""

import pytest

from fedbonsai.devices.room import LEAST, advice, allowed

GB = 1 << 30


def tree(root, total, group="", **limits):
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/meminfo").write_text(f"MemTotal:       {total >> 10} kB\nMemFree: 1 kB\n")
    if group:
        (root / "proc/self/cgroup").write_text(group)
    for place, limit in limits.items():
        file = root / "sys/fs/cgroup" / place.replace("__", "/")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.with_name(file.name.replace("_dot_", ".")).write_text(limit)
    return root


def test_without_groups_it_is_the_machines(tmp_path):
    assert allowed(tree(tmp_path, 4 * GB)) == 4096
    assert allowed(tmp_path / "nothing") is None


@pytest.mark.parametrize(
    ("own", "above", "expected"), [("max", "max", 2048), (f"{GB}", "max", 1024), ("max", f"{GB // 2}", 512)]
)
def test_version_2(tmp_path, own, above, expected):
    limits = {"a__b__memory_dot_max": own, "a__memory_dot_max": above}
    assert allowed(tree(tmp_path, 2 * GB, "0::/a/b\n", **limits)) == expected


def test_version_1(tmp_path):
    group = "9:name=systemd:/x\n4:memory:/a\n0::/\n"
    limits = {"memory__memory_dot_limit_in_bytes": str(1 << 62), "memory__a__memory_dot_limit_in_bytes": str(GB)}
    assert allowed(tree(tmp_path, 2 * GB, group, **limits)) == 1024


def test_who_has_too_little_is_told():
    assert advice(LEAST) == advice(None) == ""
    assert f"{LEAST - 1} MB" in advice(LEAST - 1)
