"""docs/operations.md as a script: the blocks marked `sh`, which an operator types as they stand, by their section."""

from __future__ import annotations

import re

from tests.systemd.box import ROOT

PAGE = ROOT / "docs/operations.md"


def commands() -> dict[str, str]:
    """Section → its block, for all sections that have one."""
    sections = re.split(r"(?m)^## (.+)$", PAGE.read_text("utf-8"))[1:]
    blocks = {
        name: "".join(re.findall(r"(?ms)^```sh\n(.*?)^```$", text))
        for name, text in zip(sections[::2], sections[1::2], strict=True)
    }
    return {name: block for name, block in blocks.items() if block}
