"""The size rules: functions of at most 40 lines, files of at most 400, vendor libraries behind one file each."""

from __future__ import annotations

import ast
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent / "metamusesd"
MOST_FUNCTION_LINES = 40
MOST_FILE_LINES = 400
VENDORS = (
    "hiredis", "redis", "llama_cpp", "jinja2", "uvloop", "mistralrs", "huggingface_hub",
    "qdrant_client", "qdrant_edge", "fastembed", "onnxruntime", "onnx", "tokenizers", "shtab", "structlog",
    "opentelemetry", "pynvml",
)  # fmt: skip


def function_lines(node: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Lines of the body without the docstring."""
    body = node.body[1:] if ast.get_docstring(node) and len(node.body) > 1 else node.body
    return (node.end_lineno or node.lineno) - body[0].lineno + 1


def complaints(path: Path, vendors: dict[str, set[Path]]) -> list[str]:
    """What is wrong with one file; notes who imports which vendor library."""
    text = path.read_text("utf-8")
    found = []
    if (lines := text.count("\n")) > MOST_FILE_LINES:
        found.append(f"{path}: {lines} lines; at most {MOST_FILE_LINES}")
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and function_lines(node) > MOST_FUNCTION_LINES:
            found.append(
                f"{path}:{node.lineno}: {node.name} has {function_lines(node)} lines; at most {MOST_FUNCTION_LINES}"
            )
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        names += [node.module or ""] if isinstance(node, ast.ImportFrom) and not node.level else []
        for name in names:
            if (top := name.split(".")[0]) in VENDORS:
                vendors.setdefault(top, set()).add(path)
    return found


def main() -> int:
    """Print every complaint; 1 if there is any."""
    vendors: dict[str, set[Path]] = {}
    found = [line for path in sorted(ROOT.rglob("*.py")) for line in complaints(path, vendors)]
    found += [
        f"{name} is imported by {len(paths)} files: {', '.join(map(str, sorted(paths)))}"
        for name, paths in vendors.items()
        if len(paths) > 1
    ]
    print(*found, sep="\n", end="\n" if found else "")
    return bool(found)


if __name__ == "__main__":
    sys.exit(main())
