"""Tables of some rows of a config, chosen by their labels."""

import pytest

from tests.inversion_tables import (
    DATA,
    make_folder,
    noise,
    rows_of,
    run_here,
    solver,
    write_config,
)

SETTINGS = {
    "priors": {"glow": "weights"},
    "data": DATA,
    "images": 2,
    "iterations": 20,
    "start": "constant",
    "tune_images": 2,
    "methods": {
        "tv": {"solver": solver("TotalVariation", weight=5.0), "tune": {"weight": [1.0, 5.0]}},
        "of the blur": {"solver": solver("TotalVariation", weight=2.0)},
    },
    "experiments": [
        {
            "labels": {"blur": 1.0, "kind": "a"},
            "operator": "gaussian_blur",
            "options": {"tau": 1.0},
            "noise": noise(0.1),
        },
        {
            "labels": {"blur": 0, "kind": "b"},
            "operator": "denoising",
            "noise": noise(0.2),
            "methods": ["tv"],
        },
    ],
}


@pytest.fixture
def run(tmp_path):
    folder = make_folder(tmp_path)
    write_config(folder / "table.yaml", SETTINGS)

    def command(*options):
        arguments = ("--config", "table.yaml", "--output", "out", "--tune", *options)
        return run_here(folder, *arguments)

    return command


def test_one_experiment_and_then_all(run, tmp_path):
    assert run("--evaluation.only", "{blur: 0}") == 0
    first = rows_of(tmp_path / "out")
    assert [row["labels"]["blur"] for row in first] == [0, 0]
    assert run() == 0
    rows = rows_of(tmp_path / "out")
    assert [row["labels"]["blur"] for row in rows] == [1.0, 1.0, 1.0, 0, 0]
    for row, again in zip(first, rows[3:], strict=True):  # measured once: seconds are the same
        assert row["metrics"] == again["metrics"]
    quality = {row["labels"]["method"]: row["metrics"]["psnr"]["mean"] for row in first}
    assert quality["tv"] > quality["data"]


def test_one_method_and_then_all(run, tmp_path):
    assert run("--evaluation.only", "{method: of the blur}") == 0  # which has nothing to tune
    first = rows_of(tmp_path / "out")
    assert [row["labels"]["method"] for row in first] == ["data", "of the blur"]
    assert run("--evaluation.only", "{method: [tv, of the blur], blur: 1}") == 0
    some = rows_of(tmp_path / "out")
    assert [row["labels"]["method"] for row in some] == ["data", "tv", "of the blur"]
    assert run() == 0
    rows = rows_of(tmp_path / "out")
    assert len(rows) == 5
    for row, again in zip(some, rows[:3], strict=True):
        assert row["metrics"] == again["metrics"]
    assert first[1]["metrics"] == rows[2]["metrics"]


@pytest.mark.parametrize(
    ("only", "message"),
    [
        ("{blur: 7}", "only: no row has blur 7; there are 1.0, 0"),
        ("{blur: '0'}", "only: no row has blur '0'; there are 1.0, 0"),
        ("{kind: []}", "only: kind must have at least one value"),
        ("{kind: null}", "only: no row has kind None; there are 'a', 'b'"),
        ("{kind: [a, c]}", "only: no row has kind 'c'; there are 'a', 'b'"),
        ("{tau: 7}", "only: no row has a label 'tau'; there are blur, kind, method"),
        ("{method: of the blur, blur: 0}", "only: no row has all of method 'of the blur', blur 0"),
    ],
)
def test_labels_that_no_row_has_are_named(run, capsys, only, message):
    assert run("--evaluation.only", only) == 2
    assert message in capsys.readouterr().err.strip().splitlines()[-1]


def test_data_alone(run, tmp_path):
    assert run("--evaluation.only", "{method: data, kind: b}") == 0
    assert [row["labels"]["method"] for row in rows_of(tmp_path / "out")] == ["data"]


def test_experiment_of_the_data_alone_stays(tmp_path):
    folder = make_folder(tmp_path)
    first, second = SETTINGS["experiments"]
    experiments = [first, {**second, "methods": []}]
    write_config(folder / "table.yaml", {**SETTINGS, "experiments": experiments})
    assert run_here(folder, "--config", "table.yaml", "--output", "out") == 0
    methods = [row["labels"]["method"] for row in rows_of(tmp_path / "out")]
    assert methods == ["data", "tv", "of the blur", "data"]


def test_rows_that_were_not_tuned_are_told_although_others_were(run, tmp_path, capsys):
    folder = tmp_path
    assert run("--evaluation.only", "{blur: 0}") == 0
    plain = ("--config", "table.yaml", "--output", "out")
    assert run_here(folder, *plain, "--evaluation.only", "{blur: 1, method: tv}") == 0
    capsys.readouterr()
    assert run() == 2
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert "holds results of blur 1, kind a, method tv that were not tuned" in line
    assert run("--evaluation.only", "{blur: 0}") == 0


def test_row_with_the_label_of_its_option_is_tuned(tmp_path):
    folder = make_folder(tmp_path)
    tuned = {**SETTINGS["methods"]["tv"], "labels": {"method": "tv", "weight": "tuned"}}
    methods = {**SETTINGS["methods"], "tv": tuned}
    write_config(folder / "table.yaml", {**SETTINGS, "methods": methods})
    arguments = ("--config", "table.yaml", "--output", "out", "--tune")
    for _ in range(2):
        assert run_here(folder, *arguments, "--evaluation.only", "{weight: tuned}") == 0
    rows = rows_of(tmp_path / "out")
    assert [row["labels"]["method"] for row in rows] == ["data", "tv"] * 2


def test_methods_that_were_not_chosen_do_not_block(tmp_path):
    folder = make_folder(tmp_path)
    blocked = {"solver": solver("TotalVariation", weight=2.0), "start": "data"}
    random = {
        "labels": {"kind": "c"},
        "operator": "random_gaussian",
        "options": {"measurements": 50},
        "noise": noise(0.1),
        "methods": ["tv", "of the blur"],
    }
    methods = {**SETTINGS["methods"], "of the blur": blocked}
    settings = {**SETTINGS, "methods": methods, "experiments": [random]}
    write_config(folder / "table.yaml", settings)
    arguments = ("--config", "table.yaml", "--output", "out")
    assert run_here(folder, *arguments) == 2
    assert run_here(folder, *arguments, "--evaluation.only", "{method: tv}") == 0


def test_weights_that_no_row_needs_may_be_missing(tmp_path, capsys):
    folder = make_folder(tmp_path)
    methods = {"map": {"solver": solver()}, "tv": SETTINGS["methods"]["tv"]}
    only_map = {**SETTINGS["experiments"][1], "methods": ["map", "tv"]}
    settings = {**SETTINGS, "priors": {"glow": "weights", "later": "trained_later"}}
    settings |= {"methods": methods, "experiments": [only_map], "iterations": 3}
    write_config(folder / "table.yaml", settings)
    arguments = ("--config", "table.yaml", "--output", "out")
    assert run_here(folder, *arguments) == 2
    assert "trained_later" in capsys.readouterr().err.strip().splitlines()[-1]
    assert run_here(folder, *arguments, "--evaluation.only", "{prior: [glow, null]}") == 0
    first = rows_of(tmp_path / "out")
    assert [row["labels"].get("prior") for row in first] == [None, "glow", None]
    (folder / "weights").rename(folder / "trained_later")
    (folder / "weights").symlink_to("trained_later")
    assert run_here(folder, *arguments) == 0
    rows = rows_of(tmp_path / "out")
    assert [row["labels"].get("prior") for row in rows] == [None, "glow", "later", None]
    assert [row["metrics"] for row in first] == [rows[n]["metrics"] for n in (0, 1, 3)]
