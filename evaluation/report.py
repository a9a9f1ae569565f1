"""A report in one HTML file that needs no network and no script."""

from __future__ import annotations

import base64
import html
import importlib.metadata
import os
import platform
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from evaluation.formats import to_html
from evaluation.table import Table

if TYPE_CHECKING:
    from evaluation.outputs import Picture

_STYLE = """
:root { color-scheme: light dark; --text: #1c2126; --soft: #5b6670; --page: #fcfcfb;
  --panel: #f3f4f5; --line: #d5d9dd; }
@media (prefers-color-scheme: dark) { :root { --text: #e2e6ea; --soft: #9aa5af; --page: #15181b;
  --panel: #1f2428; --line: #3a4249; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 2.5rem 1.5rem 4rem; max-width: 110rem; background: var(--page);
  color: var(--text); font: 16px/1.55 system-ui, "Segoe UI", "Noto Sans", Arial, sans-serif; }
h1 { font-size: 1.75rem; line-height: 1.25; margin: 0 0 .25rem; overflow-wrap: anywhere; }
h2 { font-size: 1.15rem; margin: 2.5rem 0 .75rem; }
p { margin: .25rem 0; max-width: 74rem; }
.soft, caption, figcaption { color: var(--soft); font-size: .9rem; }
.scroll { overflow-x: auto; max-width: 100%; padding-bottom: .5rem; }
.results { border-collapse: collapse; font-size: .92rem; border-top: 2px solid var(--text);
  border-bottom: 2px solid var(--text); font-variant-numeric: tabular-nums; }
.note { position: sticky; left: 0; display: inline-block; max-width: calc(100vw - 4rem); }
caption { text-align: left; caption-side: bottom; padding-top: .5rem; }
.results th, .results td { padding: .3rem .55rem; text-align: left; vertical-align: top; }
.results thead th { border-bottom: 1px solid var(--text); vertical-align: bottom;
  min-width: 5.5rem; }
.results td { white-space: nowrap; }
.results .col0 { position: sticky; left: 0; background: var(--page); white-space: normal; }
figure { margin: 0 0 2rem; }
figure img { display: block; max-width: 100%; height: auto; background: #fff; padding: .5rem;
  border: 1px solid var(--line); border-radius: 4px; }
figcaption { margin-top: .5rem; max-width: 46rem; }
pre { background: var(--panel); padding: 1rem; border-radius: 4px; overflow-x: auto;
  font: .85rem/1.5 ui-monospace, "DejaVu Sans Mono", Consolas, monospace; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .2rem 1.5rem; margin: 0; }
dt { color: var(--soft); }
dd { margin: 0; overflow-wrap: anywhere; }
@media print { body { max-width: none; } figure { break-inside: avoid; } }
"""


@dataclass(frozen=True)
class Report:
    """What a report shows.

    Args:
        title: heading.
        table: the results.
        pictures: figures with their captions.
        config_yaml: the settings.
        facts: versions, hardware, times.
        notes: sentences below the table.
    """

    title: str
    table: Table
    pictures: Sequence[Picture]
    config_yaml: str
    facts: Mapping[str, str]
    notes: Sequence[str] = ()

    def html(self) -> str:
        """The whole page; every text that comes from outside is escaped."""
        title = html.escape(self.title)
        summary = " · ".join(self.facts[key] for key in ("Date", "Hardware") if key in self.facts)
        notes = "".join(f'<p class="soft">{html.escape(note)}</p>' for note in self.notes)
        sections = [
            _section("Results", f'<div class="scroll">{to_html(self.table)}</div>{notes}'),
            _section("Figures", "".join(_figure(picture) for picture in self.pictures)),
            _section("Settings", f"<pre>{html.escape(self.config_yaml.strip())}</pre>"),
            _section("Environment", _definitions(self.facts)),
        ]
        return (
            '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
            '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
            f"<title>{title}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n"
            f'<h1>{title}</h1>\n<p class="soft">{html.escape(summary)}</p>\n'
            f"{''.join(sections)}</body>\n</html>\n"
        )


def _section(heading: str, content: str) -> str:
    return f"<section>\n<h2>{heading}</h2>\n{content}\n</section>\n" if content else ""


def _figure(picture: Picture) -> str:
    # The pixels are 150 to the inch; a screen counts 96, and sharp screens use the rest.
    width = round(int.from_bytes(picture.png[16:20]) * 96 / 150)
    data = base64.b64encode(picture.png).decode()
    caption = html.escape(picture.caption)
    return (
        f'<figure><img width="{width}" alt="{html.escape(picture.name)}" '
        f'src="data:image/png;base64,{data}"><figcaption>{caption}</figcaption></figure>\n'
    )


def _definitions(facts: Mapping[str, str]) -> str:
    items = (f"<dt>{html.escape(k)}</dt><dd>{html.escape(v)}</dd>" for k, v in facts.items())
    return f"<dl>{''.join(items)}</dl>"


def environment(seconds: float, measuring_seconds: float) -> dict[str, str]:
    """Versions, hardware, date, command and times, as texts for a reader.

    Args:
        seconds: that this run took.
        measuring_seconds: that all runs spent on measuring.
    """
    names = ["flowprior", "torch", "pytorch-lightning", "numpy", "matplotlib"]
    versions = [f"{name} {version}" for name in names if (version := _version(name))]
    argv = [Path(sys.orig_argv[0]).name, *sys.orig_argv[1:]]
    return {
        "Date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "Command": shlex.join(argv),
        "Hardware": _hardware(),
        "Measuring": f"{_duration(measuring_seconds)}, all runs",
        "This run": _duration(seconds),
        "Versions": ", ".join([f"Python {platform.python_version()}", *versions]),
        "System": f"{platform.system()} {platform.release()}",
    }


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _hardware() -> str:
    import torch

    cores = f"{_processor()}, {len(os.sched_getaffinity(0))} cores"
    if not torch.cuda.is_available():
        return cores
    names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return f"{len(names)} × {' / '.join(dict.fromkeys(names))}; {cores}"


def _processor() -> str:
    information = Path("/proc/cpuinfo")
    if information.exists():
        for line in information.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.1f} s"
    minutes = seconds / 60
    return f"{minutes:.1f} min" if minutes < 120 else f"{minutes / 60:.1f} h"
