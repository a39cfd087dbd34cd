"""The tables of docs/metrics.md, from the code and the alert rules: `python -m tests.metrics_page` writes them there.

A test fails while they differ. The rules are read by their lines, so that no library is needed for it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from metamusesd.metrics import FAMILIES, PREFIX, Family
from metamusesd.supervisor.gauges import COMPUTED

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs/metrics.md"
RULES = ROOT / "etc/prometheus/metamusesd.rules.yml"
BEGIN, END = "<!-- {}: written by python -m tests.metrics_page -->", "<!-- end -->"


@dataclass(frozen=True, slots=True)
class Alert:
    """One rule."""

    name: str
    severity: str
    wait: str
    expr: str
    summary: str
    description: str
    action: str


def alerts(text: str) -> list[Alert]:
    """All rules of the file, in its order."""
    return [_alert(block) for block in re.split(r"(?m)^ {6}- alert: ", text)[1:]]


def _alert(block: str) -> Alert:
    def field(pattern: str) -> str:
        found = re.search(pattern, block, re.MULTILINE | re.DOTALL)
        return re.sub(r"\s+", " ", found[1]).strip() if found else ""

    return Alert(
        block.split("\n", 1)[0].strip(), field(r"severity: (\w+)"), field(r"^ {8}for: (\w+)"),
        field(r"^ {8}expr: (?:>-)?(.*?)^ {8}\w+:"), field(r'summary: "(.*?)"$'), field(r'description: "(.*?)"$'),
        field(r'action: "(.*?)"$'),
    )  # fmt: skip


def metric_table(families: list[Family]) -> str:
    """One row a metric."""
    rows = [f"| `{PREFIX}{each.name}` | {each.kind} | {_labels(each)} | {each.help} |" for each in families]
    return "\n".join(["| metric | kind | labels | |", "|---|---|---|---|", *rows])


def _labels(family: Family) -> str:
    shown = [f"`{name}`" + (f": {', '.join(values)}" if values else "") for name, values in family.labels.items()]
    return "; ".join(shown) or "–"


def alert_table(rules: list[Alert]) -> str:
    """One row an alert."""
    rows = [
        f"| `{each.name}` | {each.severity}{f', after {each.wait}' if each.wait else ''} | {_plain(each.summary)}. "
        f"{_plain(each.description)} | {_plain(each.action)} |"
        for each in rules
    ]
    return "\n".join(["| alert | | it means | do |", "|---|---|---|---|", *rows])


def _plain(text: str) -> str:
    """A template for people: {{ $labels.instance }} is *instance*, {{ $value … }} is *so much*."""
    text = text.replace("*", r"\*").replace("|", r"\|")
    text = re.sub(r"\{\{ \$labels\.(\w+) \}\}", r"*\1*", text)
    return re.sub(r"\{\{ \$value[^}]*\}\}", "*so much*", text)


def tables() -> dict[str, str]:
    """By the name of their place in the page."""
    return {
        "dispatcher": metric_table(list(FAMILIES)),
        "supervisor": metric_table([each.family for each in COMPUTED]),
        "alerts": alert_table(alerts(RULES.read_text("utf-8"))),
    }


def written(page: str) -> str:
    """The page with its tables as they must be. ValueError: it has no place for one."""
    for name, table in tables().items():
        begin = BEGIN.format(name)
        head, found, rest = page.partition(begin)
        if not found or END not in rest:
            raise ValueError(f"{PAGE} has no place for the table of {name}: it needs {begin} and {END}")
        page = f"{head}{begin}\n{table}\n{END}{rest.partition(END)[2]}"
    return page


if __name__ == "__main__":
    PAGE.write_text(written(PAGE.read_text("utf-8")), "utf-8")
