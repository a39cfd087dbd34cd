"""Yardstick · bench process · build llama.cpp's own server from the sources that our engine is built from.

llama-cpp-python's source distribution carries llama.cpp under vendor/. pip fetches that archive, cmake builds only the
target `llama-server` with the same compiler flags as the Python package (the defaults of both, plus $CMAKE_ARGS, which
pip's build obeys as well). Nothing else is downloaded: web interface, TLS and tests are off.

    .cache/llama-server/<version>-<digest of the flags>/     or --dir DIR
        sdist/*.tar.gz   source/   build/bin/llama-server   built.json
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.metadata
import json
import os
import shlex
import shutil
import subprocess
import sys
import tarfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path

CACHE = Path(__file__).resolve().parent.parent / ".cache" / "llama-server"
PACKAGE = "llama-cpp-python"
FLAGS = (
    "-DCMAKE_BUILD_TYPE=Release",
    "-DBUILD_SHARED_LIBS=ON",
    "-DLLAMA_BUILD_UI=OFF",
    "-DLLAMA_USE_PREBUILT_UI=OFF",
    "-DLLAMA_OPENSSL=OFF",
    "-DLLAMA_BUILD_TESTS=OFF",
    "-DLLAMA_BUILD_EXAMPLES=OFF",
    "-DLLAMA_BUILD_APP=OFF",
)
SYSTEM_INFO = "import ctypes, sys; f = ctypes.CDLL(sys.argv[1]).llama_print_system_info; \
f.restype = ctypes.c_char_p; print(f().decode())"


@dataclass(frozen=True)
class Build:
    """A llama-server that can be started, and what is known about how it was made."""

    name: str  # how reports call it
    binary: str
    version: str
    flags: str
    build_s: float
    system_info: str


def build(directory: Path | None = None, *, jobs: int = 1) -> Build:
    """Make sure that llama-server of the installed llama-cpp-python's version is built; minutes the first time."""
    version = importlib.metadata.version(PACKAGE)
    flags = [*FLAGS, *shlex.split(os.environ.get("CMAKE_ARGS", ""))]
    place = (directory or CACHE) / f"{version}-{hashlib.sha256(' '.join(flags).encode()).hexdigest()[:10]}"
    record = place / "built.json"
    if record.exists():
        return Build(**json.loads(record.read_text()))
    place.mkdir(parents=True, exist_ok=True)
    started = time.monotonic()
    source = _fetch_source(version, place)
    binary = _compile(source, place / "build", flags, jobs)
    info = system_info(binary.parent / "libllama.so")
    built = Build("llama-server", str(binary), version, " ".join(flags), round(time.monotonic() - started, 1), info)
    record.write_text(json.dumps(asdict(built), indent=1))
    return built


def find(directory: Path | None = None) -> Build | None:
    """The cached build of the installed version, or None; builds nothing."""
    version = importlib.metadata.version(PACKAGE)
    for record in sorted((directory or CACHE).glob(f"{version}-*/built.json")):
        found = Build(**json.loads(record.read_text()))
        if Path(found.binary).exists():
            return found
    return None


def stand_in() -> Build | None:
    """The server inside the `xllamacpp` wheel (another version, AVX2 only), named as what it is."""
    try:
        version = importlib.metadata.version("xllamacpp")
    except importlib.metadata.PackageNotFoundError:
        return None
    name = f"xllamacpp {version} wheel (stand-in, AVX2 only)"
    command = [sys.executable, "-c", "import xllamacpp; print(xllamacpp.get_system_info())"]
    info = subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()
    return Build(name, "", version, "as in the wheel", 0.0, info)


def python_system_info() -> str:
    """What the library inside the installed llama-cpp-python says about its own build."""
    files = importlib.metadata.files(PACKAGE) or []
    library = next(file for file in files if file.name == "libllama.so")
    return system_info(Path(str(library.locate())))


def system_info(library: Path) -> str:
    """`llama_print_system_info()` of a libllama, asked in a process of its own."""
    command = [sys.executable, "-c", SYSTEM_INFO, str(library)]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def main(arguments: list[str]) -> int:
    """`python -m benchmarks build-llama-server`: build, then show both builds' system info side by side."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks build-llama-server", description=main.__doc__)
    parser.add_argument("--dir", type=Path, help=f"cache directory (default {CACHE.relative_to(CACHE.parents[1])})")
    parser.add_argument("--jobs", type=int, default=1, help="parallel compilers (default 1)")
    options = parser.parse_args(arguments)
    built = build(options.dir, jobs=options.jobs)
    print(f"{built.name} {built.version}: {built.binary}\nbuilt in {built.build_s:.0f} s with {built.flags}")
    ours = python_system_info()
    print(f"llama-server system info:     {built.system_info}\nllama-cpp-python system info: {ours}")
    print("the two builds are alike" if ours == built.system_info else "THE TWO BUILDS DIFFER: ratios mislead")
    return 0


def _fetch_source(version: str, place: Path) -> Path:
    """The unpacked source distribution, through pip and hence through whatever index pip is set up with."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-binary", ":all:"]
    subprocess.run([*command, "-d", str(place / "sdist"), f"{PACKAGE}=={version}"], check=True)
    source = place / "source"
    shutil.rmtree(source, ignore_errors=True)
    with tarfile.open(next((place / "sdist").glob("*.tar.gz"))) as archive:
        archive.extractall(source, filter="data")
    return next(source.glob("*/vendor/llama.cpp"))


def _compile(source: Path, build_dir: Path, flags: list[str], jobs: int) -> Path:
    generator = ["-G", "Ninja"] if shutil.which("ninja") else []
    subprocess.run(["cmake", *generator, "-S", str(source), "-B", str(build_dir), *flags], check=True)
    subprocess.run(
        ["cmake", "--build", str(build_dir), "--target", "llama-server", "--parallel", str(jobs)], check=True
    )
    return build_dir / "bin" / "llama-server"
