"""Any process · which processor this is: what was measured on another one does not hold. Standard library only."""

from __future__ import annotations

import os
from pathlib import Path

CPUINFO = Path("/proc/cpuinfo")
TELLING = ("cpu family", "model", "stepping", "CPU implementer", "CPU part")  # x86; ARM


def processor(cpuinfo: Path = CPUINFO) -> str:
    """`AMD EPYC, family 25 model 17 stepping 1`. Never empty, never raises."""
    facts: dict[str, str] = {}
    try:
        for line in cpuinfo.read_text().splitlines():
            name, _, value = line.partition(":")
            facts.setdefault(name.strip(), value.strip())
    except OSError:
        pass
    numbers = " ".join(f"{name.split()[-1]} {facts[name]}" for name in TELLING if name in facts)
    return ", ".join(filter(None, (facts.get("model name", os.uname().machine), numbers)))
