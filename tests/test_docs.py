"""The guides do what they say: their code runs, and prints the numbers that stand below it."""

import contextlib
import io
import logging
import math
import re
import sys
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

import evaluate
import train
from flowprior.command_line import run_command

ROOT = Path(__file__).resolve().parent.parent
PAGES = [
    "README.md",
    "docs/inversion.md",
    "docs/extend.md",
    "docs/flows.md",
    "docs/gaussianization.md",
    "docs/uncertainty.md",
    "docs/own_data.md",
    "docs/choosing.md",
    "docs/seismic.md",
    "docs/seismic_posterior.md",
]
LINKED = [*PAGES, "docs/clusters.md", "docs/digits.md"]
SHORT = ("own_data",)
BLOCK = re.compile(r"^(?:<!-- (no score) -->\n)?```(\w+)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
NAMED = re.compile(r"# ((?:runs/)?\w+\.(?:py|yaml))\n")
NUMBER = re.compile(r"(?<![\w.])-?\d+(?:\.\d+)?")
LINK = re.compile(r"\]\(([^)\s]+)\)")
COMMAND = re.compile(r"\b(train|evaluate)\.py --config (\S+?)(?=[`\s])")
SCORE = re.compile(r"data (-?[\d.]+) dB, recovered (-?[\d.]+) dB")
MAINS = {"evaluate.py": evaluate.main, "train.py": train.main}
PICTURED = ("README.md", "docs/inversion.md")
LEAST_GAIN = 3.0
UNITS = 3
"""Allowed difference in units of the last digit shown."""
RECOVERED = re.compile(r"(?:recovered|flow[^\n:]*:) (-?\d+\.\d+) dB")
SPREAD = 1.5
"""That of recovered images, in dB: the rounding of a CPU decides which minimum is found."""


@dataclass(frozen=True)
class Block:
    """A fenced block: its language, its text, and the line of the page that its text starts at.

    One that recovers images prints a score, unless `<!-- no score -->` stands above it, because it
    is about something else.
    """

    language: str
    text: str
    line: int
    no_score: bool = False

    @property
    def scored(self) -> bool:
        """Whether it must print how well it recovers."""
        return self.language == "python" and "invert(" in self.text and not self.no_score

    @property
    def file_name(self) -> str | None:
        """The file that the block is the content of, if its first line says so."""
        found = NAMED.match(self.text)
        return found[1] if found else None


def blocks(page: str) -> list[Block]:
    text = (ROOT / page).read_text()
    return [
        Block(m[2], m[3], text[: m.start(3)].count("\n") + 1, bool(m[1]))
        for m in BLOCK.finditer(text)
    ]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty current folder, with the weights, for a page's files and modules."""
    (tmp_path / "weights").symlink_to(ROOT / "weights")
    (tmp_path / "docs").symlink_to(ROOT / "docs")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    known = set(sys.modules)
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield tmp_path
    for name in set(sys.modules) - known:
        if str(tmp_path) in (getattr(sys.modules[name], "__file__", None) or ""):
            del sys.modules[name]


def run_page(page: str, folder: Path) -> None:
    """Run a page's blocks in order, in one namespace, and compare what they print."""
    namespace: dict = {"__name__": "page"}
    printed = ""
    for block in blocks(page):
        if block.file_name:
            (folder / block.file_name).parent.mkdir(exist_ok=True)
            (folder / block.file_name).write_text(block.text)
        elif block.language == "python":
            code = compile("\n" * (block.line - 1) + block.text, ROOT / page, "exec")
            with contextlib.redirect_stdout(io.StringIO()) as output:
                exec(code, namespace)
            printed = output.getvalue()
            check_gains(printed, f"{page}:{block.line}", block.scored)
        elif block.language == "bash":
            run_commands(block.text, folder)
        elif block.language == "text":
            check_output(block.text, printed, f"{page}:{block.line}")


def run_commands(text: str, folder: Path) -> None:
    """Run those commands that are about one of the page's own configs, or a short one."""
    for command in text.splitlines():
        script, *arguments = command.removeprefix("python ").split()
        if script in MAINS and (arguments[1] in SHORT or (folder / arguments[1]).is_file()):
            with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(io.StringIO()):
                patch.setattr(sys, "argv", [script, *arguments])
                assert run_command(MAINS[script]) == 0, command


def check_output(shown: str, printed: str, where: str) -> None:
    """The text must be equal but for numbers, and those to the digits shown."""
    for said, is_now in zip(RECOVERED.findall(shown), RECOVERED.findall(printed), strict=False):
        differ = abs(float(said) - float(is_now))
        assert differ <= SPREAD, f"{where} says {said} dB, printed was {is_now}:\n{printed}"
    shown, printed = (RECOVERED.sub("# dB", text) for text in (shown, printed))
    words, expected = NUMBER.sub("#", shown), NUMBER.sub("#", printed)
    assert words.split() == expected.split(), f"{where} shows\n{shown}\nprinted was\n{printed}"
    for said, is_now in zip(NUMBER.findall(shown), NUMBER.findall(printed), strict=True):
        assert agree(said, is_now), f"{where} says {said}, printed was {is_now}:\n{printed}"


def agree(said: str, is_now: str) -> bool:
    """Whether two numbers are equal; with decimals, up to a few units of the last digit."""
    digits = len(said.partition(".")[2])
    if not digits:
        return said == is_now
    return math.isclose(float(said), float(is_now), rel_tol=0, abs_tol=(UNITS + 0.01) * 10**-digits)


def check_gains(printed: str, where: str, scored: bool = False) -> None:
    """Images that were recovered are better than their data by the least gain."""
    scores = SCORE.findall(printed)
    assert scores or not scored, f"{where} does not print how well it recovers:\n{printed}"
    for data, recovered in scores:
        gain = float(recovered) - float(data)
        assert gain >= LEAST_GAIN, f"{where}: recovered better by {gain:.2f} dB only:\n{printed}"


def test_wrong_numbers_words_and_gains_are_noticed() -> None:
    check_output("a 1.2 s, 3 rows", "a 1.5 s, 3 rows", "")
    for printed in ("a 1.6 s, 3 rows", "a 1.2 s, 4 rows", "b 1.2 s, 3 rows", "a 1.2 s"):
        with pytest.raises(AssertionError):
            check_output("a 1.2 s, 3 rows", printed, "")
    check_output("data 1.2 dB, recovered 9.2 dB", "data 1.2 dB, recovered 8.2 dB", "")
    for printed in (
        "data 1.8 dB, recovered 9.2 dB",
        "data 1.2 dB, recovered 7.2 dB",
        "data 1.2 dB",
    ):
        with pytest.raises(AssertionError):
            check_output("data 1.2 dB, recovered 9.2 dB", printed, "")
    check_gains("MAP: data 10.0 dB, recovered 13.1 dB", "")
    with pytest.raises(AssertionError):
        check_gains("MAP: data 10.0 dB, recovered 12.9 dB", "")
    with pytest.raises(AssertionError):
        check_gains("MAP (11, 4)", "", scored=True)


@pytest.mark.parametrize("page", LINKED)
def test_links_and_configs_exist(page: str) -> None:
    text = (ROOT / page).read_text()
    targets = [t for t in LINK.findall(text) if "://" not in t]
    for target in targets:
        path, _, anchor = target.partition("#")
        file = (ROOT / page).parent / path if path else ROOT / page
        assert file.exists(), f"{page}: there is no {target}"
        assert not anchor or anchor in anchors(file.read_text()), f"{page}: no heading {target}"
    own = {block.file_name for block in blocks(page)}
    for script, name in COMMAND.findall(text):
        folder = ROOT / "configs" / script
        known = name in own or (folder / f"{name}.yaml").is_file()
        assert known, f"{page}: there is no config {name}"


def anchors(text: str) -> set[str]:
    """Names of a page's headings in links."""
    headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES)
def test_page_does_what_it_says(page: str, folder: Path) -> None:
    run_page(page, folder)
    assert page not in PICTURED or (folder / "runs/recovered.png").stat().st_size
