"""runtime.resources: what control groups (version 1 and 2), the machine and the process's own limits leave."""

import resource

import pytest

from runtime import resources


@pytest.fixture
def groups(tmp_path, monkeypatch):
    """Folders of a made-up system: groups(line of /proc/self/cgroup, {file: content})."""
    monkeypatch.setattr(resources, "GROUPS", tmp_path / "cgroup")
    monkeypatch.setattr(resources, "OWN_GROUPS", tmp_path / "own")
    monkeypatch.setattr(resources, "_machine_free", lambda: 10**12)

    def make(line, files):
        (tmp_path / "own").write_text(line + "\n")
        for name, content in files.items():
            path = tmp_path / "cgroup" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(f"{content}\n")
        return resources.resident_room()

    return make


def test_version_2_leaves_its_limit_without_what_is_used_but_with_the_page_cache(groups):
    files = {"job/memory.max": 5000, "job/memory.current": 3000, "job/memory.stat": "anon 2000\nfile 1000"}
    assert groups("0::/job", files) == 3000


def test_every_group_above_counts(groups):
    files = {"a/memory.max": 4000, "a/memory.current": 3500, "a/b/memory.max": "max", "a/b/memory.current": 100}
    assert groups("0::/a/b", files) == 500


def test_version_1_has_other_names(groups):
    files = {"memory/job/memory.limit_in_bytes": 5000, "memory/job/memory.usage_in_bytes": 3000,
             "memory/job/memory.stat": "total_cache 500"}
    assert groups("4:cpu,memory:/job", files) == 2500


def test_version_1_without_a_limit(groups):
    files = {"memory/memory.limit_in_bytes": 9223372036854771712, "memory/memory.usage_in_bytes": 3000}
    assert groups("4:memory:/", files) == 10**12


def test_inside_a_container_the_group_s_own_path_is_the_root(groups):
    assert groups("0::/outside/name", {"memory.max": 5000, "memory.current": 1000}) == 4000


def test_a_group_that_is_full_leaves_nothing(groups):
    assert groups("0::/job", {"job/memory.max": 5000, "job/memory.current": 6000}) == 0


@pytest.mark.parametrize("limit, room", [(resource.RLIMIT_AS, resources.address_room),
                                         (resource.RLIMIT_DATA, resources.data_room)])
def test_the_process_s_own_limits(monkeypatch, limit, room):
    assert room() == resources.UNLIMITED
    monkeypatch.setattr(resource, "getrlimit",
                        lambda asked: (2**40, 2**40) if asked == limit else (resource.RLIM_INFINITY,) * 2)
    assert 2**39 < room() < 2**40  # less what is used already
    assert resources.free_host_memory() <= room()


def test_the_processor_s_entries_are_the_first_one_s(monkeypatch):
    lines = ["processor\t: 0", "model name\t: One: 2 GHz", "flags\t\t: fpu avx2", "model name\t: Other"]
    monkeypatch.setattr(resources, "lines_of", lambda path: lines)
    assert resources.processor("model name") == "One: 2 GHz" and resources.processor("flags") == "fpu avx2"
    assert resources.processor("Features") == ""
