import json
import math
import os
from dataclasses import dataclass, replace

import numpy as np
import pytest

from evaluation.arrays import ArrayStore, file_names
from evaluation.base import Cell
from evaluation.records import RecordStore
from flowprior.identity import code_digest, digest, file_digest, identity
from flowprior.io import atomic_path, atomic_write

SETTINGS = {"noise": 0.1, "size": (3, 32), "weights": "abc"}
A = Cell({"method": "glow", "noise": 0.1}, range(9), SETTINGS)
B = Cell({"method": "dip", "noise": 0.1}, range(9), SETTINGS)


def filled(path, count=3):
    with RecordStore(path, [A]) as store:
        store.append(A, {i: {"psnr": 20.5 + i} for i in range(count)})
    return path


def test_records_come_back(tmp_path):
    path = filled(tmp_path / "new" / "records.jsonl")
    reordered = replace(A, labels=dict(reversed(A.labels.items())))
    with RecordStore(path, [reordered, B]) as store:
        metrics = {"psnr": np.float32(0.5), "steps": np.int64(7)}
        store.append(B, {0: metrics, 1: metrics}, with_arrays=[1])
        assert store.done(reordered) == {0, 1, 2}
        assert store.done(replace(B, repeat=1)) == frozenset()
    with RecordStore(path, [A, B]) as store:
        assert store.metrics(A, 2) == {"psnr": 22.5}
        assert store.metrics(B, 0) == {"psnr": 0.5, "steps": 7}
        assert isinstance(store.metrics(B, 0)["steps"], int)
        assert [store.has_arrays(B, image) for image in (0, 1)] == [False, True]
        assert not store.has_arrays(A, 1)


def test_settings_stand_once_for_each_cell(tmp_path):
    path = filled(tmp_path / "records.jsonl")
    with RecordStore(path, [A, B]) as store:
        store.append(A, {3: {}})
        store.append(B, {0: {}})
        store.append(A, {4: {}})
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [line["settings"] for line in lines if "settings" in line] == [
        {"noise": 0.1, "size": [3, 32], "weights": "abc"}
    ] * 2


def test_values_that_are_not_finite_come_back_from_strict_json(tmp_path):
    path = tmp_path / "records.jsonl"
    values = {"a": math.nan, "b": math.inf, "c": -math.inf, "d": 1.0}
    with RecordStore(path, [A]) as store:
        store.append(A, {0: values})

    def refuse(constant):
        raise AssertionError(constant)

    lines = [json.loads(line, parse_constant=refuse) for line in path.read_text().splitlines()]
    assert lines[2]["metrics"] == {"a": "nan", "b": "inf", "c": "-inf", "d": 1.0}
    with RecordStore(path, [A]) as store:
        metrics = store.metrics(A, 0)
    assert math.isnan(metrics.pop("a"))
    assert metrics == {"b": math.inf, "c": -math.inf, "d": 1.0}


def test_duplicates_are_refused_and_leave_nothing(tmp_path):
    path = filled(tmp_path / "records.jsonl")
    before = path.read_bytes()
    with RecordStore(path, [A]) as store:
        with pytest.raises(ValueError, match="image 1 of method glow"):
            store.append(A, {7: {}, 1: {}})
        assert path.read_bytes() == before
        store.append(replace(A, repeat=1), {1: {}})
    assert path.read_bytes().startswith(before)


def test_any_torn_end_is_dropped(tmp_path):
    path = filled(tmp_path / "records.jsonl")
    whole = path.read_bytes()
    ends = [i + 1 for i, byte in enumerate(whole) if byte == ord("\n")]
    for size in range(len(whole) + 1):
        path.write_bytes(whole[:size])
        with RecordStore(path, [A]) as store:
            expected = max(0, sum(end <= size for end in ends) - 2)
            assert store.done(A) == set(range(expected))
            store.append(A, {i: {"psnr": 20.5 + i} for i in range(expected, 3)})
        assert path.read_bytes() == whole


@pytest.mark.parametrize(
    "bad", [b"", b"{", b"[]", b'{"cell": "other", "image": 0, "metrics": {}}', b"\xff\x00"]
)
def test_corrupt_line_is_named_and_nothing_changes(tmp_path, bad):
    path = filled(tmp_path / "records.jsonl")
    lines = path.read_bytes().splitlines()
    lines[2] = bad
    path.write_bytes(b"\n".join(lines) + b"\ntorn")
    before = path.read_bytes()
    with pytest.raises(ValueError, match=r"records\.jsonl, line 3"):
        RecordStore(path, [A])
    assert path.read_bytes() == before


def test_second_record_of_an_image_in_the_file_is_named(tmp_path):
    path = filled(tmp_path / "records.jsonl")
    path.write_bytes(path.read_bytes() + path.read_bytes().splitlines(keepends=True)[2])
    with pytest.raises(ValueError, match="line 6"):
        RecordStore(path, [A])


OLD = b'{"flowprior_records": 1, "fingerprint": {}}\n{"labels": {}, "image": 0, "metrics": {}}\n'


@pytest.mark.parametrize(
    ("content", "word"),
    [
        (b"my thesis, no newline", "not a file of evaluation records"),
        (b"a,b\n1,2\n", "not a file of evaluation records"),
        (b"{}\n", "not a file of evaluation records"),
        (OLD, "another version"),
    ],
)
def test_foreign_and_old_files_are_not_touched(tmp_path, content, word):
    path = tmp_path / "thesis.txt"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=word):
        RecordStore(path, [A])
    assert path.read_bytes() == content


def test_other_settings_name_only_what_differs(tmp_path):
    path = filled(tmp_path / "records.jsonl")
    before = path.read_bytes()
    changed = {"noise": 0.2, "size": [3, 64], "weights": "abc", "seed": 1}
    with pytest.raises(ValueError, match="method glow") as error:
        RecordStore(path, [B, replace(A, settings=changed)])
    for change in ("noise was 0.1, is now 0.2", "size.1 was 32, is now 64", "seed was (absent)"):
        assert change in str(error.value)
    assert "weights" not in str(error.value)
    assert path.read_bytes() == before


def test_a_cell_without_a_record_may_change_its_settings(tmp_path):
    path = tmp_path / "records.jsonl"
    whole = filled(path).read_bytes()
    path.write_bytes(b"".join(whole.splitlines(keepends=True)[:2]) + b'{"cell')
    changed = replace(A, settings={"noise": 0.2})
    with RecordStore(path, [changed]) as store:
        store.append(changed, {0: {}})
    with pytest.raises(ValueError, match=r"noise was 0\.2, is now 0\.1"):
        RecordStore(path, [A])


def test_other_rows_come_and_go(tmp_path):
    path = filled(tmp_path / "records.jsonl")
    with RecordStore(path, [B]) as store:
        store.append(B, {0: {"psnr": 1.0}})
    with RecordStore(path, [A, B]) as store:
        assert (store.done(A), store.done(B)) == ({0, 1, 2}, {0})


def test_file_in_use_is_refused(tmp_path):
    path = filled(tmp_path / "records.jsonl")
    with (
        RecordStore(path, [A]),
        pytest.raises(BlockingIOError, match=r"another process.*records\.jsonl"),
    ):
        RecordStore(path, [A])
    RecordStore(path, [A]).close()


def full(*_):
    raise OSError(28, "No space left on device")


def test_full_disk_leaves_no_part_of_a_record(tmp_path, monkeypatch):
    path = filled(tmp_path / "records.jsonl")
    before = path.read_bytes()
    with RecordStore(path, [A]) as store:
        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", full)
            with pytest.raises(OSError, match=r"No space left.*records\.jsonl"):
                store.append(A, {3: {}})
        assert path.read_bytes() == before
        store.append(A, {3: {}})
    with RecordStore(path, [A]) as store:
        assert store.done(A) == {0, 1, 2, 3}


@pytest.mark.parametrize("function", ["fsync", "replace"])
def test_full_disk_keeps_the_old_file(tmp_path, monkeypatch, function):
    path = tmp_path / "table.json"
    atomic_write(path, "old")
    monkeypatch.setattr(os, function, full)
    with pytest.raises(OSError, match=r"No space left.*table\.json") as error:
        atomic_write(path, "new")
    assert error.value.errno == 28
    assert error.value.filename == str(path)
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["table.json"]


def write_half(path):
    with atomic_path(path) as temporary:
        assert temporary.suffix == path.suffix
        temporary.write_bytes(b"half")
        raise KeyboardInterrupt


def test_atomic_write_is_all_or_nothing(tmp_path):
    path = tmp_path / "a.npz"
    atomic_write(path, b"old")
    with pytest.raises(KeyboardInterrupt):
        write_half(path)
    assert path.read_bytes() == b"old"
    with pytest.raises(FileNotFoundError, match=r"input\.txt"), atomic_path(path):
        (tmp_path / "input.txt").read_text()
    with pytest.raises(FileNotFoundError, match=r"missing/b\.txt"):
        atomic_write(tmp_path / "missing" / "b.txt", "")
    atomic_write(path, "σ")
    assert path.read_bytes() == "σ".encode()
    assert os.listdir(tmp_path) == ["a.npz"]


def test_atomic_write_follows_links_and_the_umask(tmp_path):
    target, link = tmp_path / "target", tmp_path / "link"
    target.write_text("old")
    link.symlink_to(target)
    umask = os.umask(0o027)
    try:
        atomic_write(link, "new")
    finally:
        os.umask(umask)
    assert link.is_symlink()
    assert target.read_text() == "new"
    assert target.stat().st_mode & 0o777 == 0o640


def test_arrays_come_back(tmp_path):
    store = ArrayStore(tmp_path / "arrays")
    assert not store.has(A.key, 3)
    with pytest.raises(ValueError, match=r"/3\.npz, .* missing or damaged"):
        store.load(A.key, 3)
    store.save(A.key, 3, {"x": np.arange(3)})
    store.save(A.key, 3, {"x": np.arange(4)})
    store.save(B.key, 3, {"x": np.arange(5)})
    assert store.load(A.key, 3)["x"].tolist() == [0, 1, 2, 3]
    assert store.has(A.key, 3)


def test_file_names_are_distinct_on_any_file_system():
    names = file_names(["flow+", "flow", "Flow", "flow-2"])
    assert len({name.casefold() for name in names.values()}) == 4


def test_file_digest(tmp_path):
    path = tmp_path / "weights"
    path.write_bytes(b"abc")
    assert file_digest(path).startswith("ba7816bf8f01cfea")


@dataclass
class Solver:
    """A user's own."""

    steps: int = 3
    weight: float = math.inf


def test_fingerprint_of_a_users_dataclass_has_its_defaults_and_code():
    found = identity({"solver": Solver(), "sizes": (1, 2)})
    assert found["sizes"] == [1, 2]
    assert found["solver"] == {
        "class": f"{__name__}.Solver",
        "code": code_digest(Solver),
        "steps": 3,
        "weight": "inf",
    }
    assert json.loads(json.dumps(found)) == found


def test_only_code_of_others_is_digested(tmp_path, monkeypatch):
    (tmp_path / "my_ops.py").write_text("class RowMean: ...\n")
    monkeypatch.syspath_prepend(tmp_path)
    from my_ops import RowMean

    assert code_digest(RowMean) == digest(file_digest(tmp_path / "my_ops.py"))
    assert code_digest(RecordStore) is None
    assert code_digest(np.ndarray) is None
