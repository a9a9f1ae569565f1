import json
import math
import os

import numpy as np
import pytest

from evaluation.arrays import ArrayStore
from evaluation.records import Record, RecordStore, file_digest
from flowprior.io import atomic_path, atomic_write

FINGERPRINT = {"config": {"noise": 0.1, "size": (3, 32)}, "weights": "abc"}
A, B = {"method": "glow", "noise": 0.1}, {"method": "dip", "noise": 0.1}


def filled(path, count=3):
    with RecordStore(path, FINGERPRINT) as store:
        store.append(Record(A, i, {"psnr": 20.5 + i}) for i in range(count))
    return path


def test_records_come_back(tmp_path):
    path = filled(tmp_path / "new" / "records.jsonl")
    with RecordStore(path, FINGERPRINT) as store:
        store.append([Record(B, 0, {"psnr": np.float32(0.5), "steps": np.int64(7)})])
        assert store.done(A) == {0, 1, 2}
        assert store.done(dict(reversed(A.items()))) == {0, 1, 2}
        assert store.done(B, part="sampling") == frozenset()
    with RecordStore(path, FINGERPRINT) as store:
        assert len(store) == 4
        assert store.get(A, 2) == Record(A, 2, {"psnr": 22.5})
        metrics = store.get(B, 0).metrics
    assert metrics == {"psnr": 0.5, "steps": 7}
    assert isinstance(metrics["steps"], int)


def test_values_that_are_not_finite_come_back_from_strict_json(tmp_path):
    path = tmp_path / "records.jsonl"
    values = {"a": math.nan, "b": math.inf, "c": -math.inf, "d": 1.0}
    with RecordStore(path, FINGERPRINT) as store:
        store.append([Record(A, 0, values)])

    def refuse(constant):
        raise AssertionError(constant)

    lines = [json.loads(line, parse_constant=refuse) for line in path.read_text().splitlines()]
    assert lines[1]["metrics"] == {"a": "nan", "b": "inf", "c": "-inf", "d": 1.0}
    with RecordStore(path, FINGERPRINT) as store:
        metrics = store.get(A, 0).metrics
    assert math.isnan(metrics.pop("a"))
    assert metrics == {"b": math.inf, "c": -math.inf, "d": 1.0}


def test_duplicates_are_refused_and_leave_nothing(tmp_path):
    path = filled(tmp_path / "records.jsonl")
    before = path.read_bytes()
    with RecordStore(path, FINGERPRINT) as store:
        for images in ([7, 1], [8, 8]):
            with pytest.raises(ValueError, match="already has image"):
                store.append(Record(A, i, {}) for i in images)
        assert store.done(A) == {0, 1, 2}
        store.append([Record(A, 1, {}, part="sampling")])
    assert path.read_bytes().startswith(before)
    assert path.read_bytes().count(b"\n") == 5


def test_any_torn_end_is_dropped(tmp_path):
    path = filled(tmp_path / "records.jsonl")
    whole = path.read_bytes()
    ends = [i + 1 for i, byte in enumerate(whole) if byte == ord("\n")]
    for size in range(len(whole) + 1):
        path.write_bytes(whole[:size])
        with RecordStore(path, FINGERPRINT) as store:
            expected = max(0, sum(end <= size for end in ends) - 1)
            assert store.done(A) == set(range(expected))
            store.append(Record(A, i, {"psnr": 20.5 + i}) for i in range(expected, 3))
        assert path.read_bytes() == whole


@pytest.mark.parametrize("bad", [b"", b"{", b"[]", b'{"labels": {}, "image": 0}', b"\xff\x00"])
def test_corrupt_line_is_named_and_nothing_changes(tmp_path, bad):
    path = filled(tmp_path / "records.jsonl")
    lines = path.read_bytes().splitlines()
    lines[2] = bad
    path.write_bytes(b"\n".join(lines) + b"\ntorn")
    before = path.read_bytes()
    with pytest.raises(ValueError, match=r"records\.jsonl, line 3: corrupt"):
        RecordStore(path, FINGERPRINT)
    assert path.read_bytes() == before


def test_second_record_of_an_image_in_the_file_is_named(tmp_path):
    path = filled(tmp_path / "records.jsonl")
    path.write_bytes(path.read_bytes() + path.read_bytes().splitlines(keepends=True)[1])
    with pytest.raises(ValueError, match=r"line 5: second record"):
        RecordStore(path, FINGERPRINT)


@pytest.mark.parametrize("content", [b"my thesis, no newline", b"a,b\n1,2\n", b"{}\n"])
def test_foreign_file_is_not_touched(tmp_path, content):
    path = tmp_path / "thesis.txt"
    path.write_bytes(content)
    with pytest.raises(ValueError, match="not a file of evaluation records"):
        RecordStore(path, FINGERPRINT)
    assert path.read_bytes() == content


def test_another_fingerprint_names_only_what_differs(tmp_path):
    path = filled(tmp_path / "records.jsonl")
    before = path.read_bytes()
    changed = {"config": {"noise": 0.2, "size": [3, 32]}, "weights": "abc", "seed": 1}
    with pytest.raises(ValueError, match="another setting") as error:
        RecordStore(path, changed)
    assert "config.noise was 0.1, is now 0.2; seed was (absent), is now 1." in str(error.value)
    assert "size" not in str(error.value)
    assert "weights" not in str(error.value)
    assert path.read_bytes() == before


def test_file_in_use_is_refused(tmp_path):
    path = filled(tmp_path / "records.jsonl")
    with (
        RecordStore(path, FINGERPRINT),
        pytest.raises(BlockingIOError, match=r"another process.*records\.jsonl"),
    ):
        RecordStore(path, FINGERPRINT)
    RecordStore(path, FINGERPRINT).close()


def full(*_):
    raise OSError(28, "No space left on device")


def test_full_disk_leaves_no_part_of_a_record(tmp_path, monkeypatch):
    path = filled(tmp_path / "records.jsonl")
    before = path.read_bytes()
    with RecordStore(path, FINGERPRINT) as store:
        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", full)
            with pytest.raises(OSError, match=r"No space left.*records\.jsonl"):
                store.append([Record(A, 3, {})])
        assert path.read_bytes() == before
        store.append([Record(A, 3, {})])
    with RecordStore(path, FINGERPRINT) as store:
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
    assert "noise 0.1/3" not in store
    with pytest.raises(ValueError, match=r"noise-0-1-3-\w+\.npz, .* missing or damaged"):
        store.load("noise 0.1/3")
    store.save("noise 0.1/3", {"x": np.arange(3)})
    store.save("noise 0.1/3", {"x": np.arange(4)})
    assert store.load("noise 0.1/3")["x"].tolist() == [0, 1, 2, 3]


def test_file_digest(tmp_path):
    path = tmp_path / "weights"
    path.write_bytes(b"abc")
    assert file_digest(path).startswith("ba7816bf8f01cfea")
