"""The memory that a container may take."""

import pytest

from mlx_dgemma.checkpoint import memory


@pytest.mark.parametrize(
    ("lines", "groups", "expected"),
    [
        ("0::/a/b\n", {"a": (3e9, 1e9, 5e8), "a/b": ("max", 1e9, 0)}, 2_500_000_000),  # the parent's limit counts
        ("0::/a/b\n", {"": (3e9, 1e9, 0), "a/b": (2e9, 1e9, 0)}, 1_000_000_000),
        ("0::/docker/x\n", {"": (1e9, 4e8, 1e8)}, 700_000_000),  # seen from within, the container's group is the root
        ("0::/a\n", {"a": (1e9, 2e9, 0)}, 0),
        ("0::/a\n", {"a": ("max", 2e9, 0)}, None),
        ("", {}, None),
    ],
)
def test_the_limit_of_a_container(tmp_path, monkeypatch, lines, groups, expected):
    (tmp_path / "cgroup").write_text(lines)
    for name, (limit, used, files) in groups.items():
        folder = tmp_path / "fs" / name
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "memory.max").write_text(f"{limit if limit == 'max' else int(limit)}\n")
        (folder / "memory.current").write_text(f"{int(used)}\n")
        (folder / "memory.stat").write_text(f"anon 5\ninactive_file {int(files)}\n")
    monkeypatch.setattr(memory, "GROUPS", tmp_path / "cgroup")
    monkeypatch.setattr(memory, "MOUNT", tmp_path / "fs")
    assert min(memory._free_in_groups(), default=None) == expected
    assert memory.available() <= (expected if expected is not None else 10**15)


def test_the_limit_of_a_container_of_the_older_kind(tmp_path, monkeypatch):
    (tmp_path / "cgroup").write_text("9:name=systemd:/\n4:cpu,memory:/a\n3:cpuset:/\n")
    (tmp_path / "fs" / "memory" / "a").mkdir(parents=True)
    files = {"memory.limit_in_bytes": 629145600, "memory.usage_in_bytes": 10**7, "memory.stat": "total_inactive_file 5"}
    for name, value in files.items():
        (tmp_path / "fs" / "memory" / "a" / name).write_text(f"{value}\n")
    monkeypatch.setattr(memory, "GROUPS", tmp_path / "cgroup")
    monkeypatch.setattr(memory, "MOUNT", tmp_path / "fs")
    assert list(memory._free_in_groups()) == [619145605] and memory.available() == 619145605
