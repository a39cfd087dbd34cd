"""Stage 0 · command line · bring any GGUF from the Hugging Face hub. Only this file imports huggingface_hub.

    hf:Qwen/Qwen2.5-7B-Instruct-GGUF/qwen2.5-7b-instruct-q5_k_m-00001-of-00002.gguf      all parts of a split file come
    hf:OWNER/REPO/FILE.gguf@REVISION                                                   a branch, a tag or a commit

Interrupted downloads go on where they stopped (they lie in `<models>/.hub`). HF_TOKEN, HF_ENDPOINT, HF_HUB_OFFLINE and
the proxies count as in every program that uses this library, which is an extra.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from metamusesd.errors import FetchFailed
from metamusesd.fetch import check_digest, put_in_place, workshop
from metamusesd.models import digest_of

SCHEME = "hf:"
FORM = re.compile(r"hf:(?P<repo>[\w.-]+/[\w.-]+)/(?P<file>[^@]+\.gguf)(?:@(?P<revision>.+))?")
PARTS = re.compile(r"(?P<stem>.*)-\d{5}-of-(?P<count>\d{5})\.gguf")


@dataclass(frozen=True, slots=True)
class HubFile:
    """What `hf:…` names."""

    repo: str
    file: str
    revision: str | None = None

    def files(self) -> list[str]:
        """The file, or all parts of a split one."""
        if not (split := PARTS.fullmatch(self.file)):
            return [self.file]
        count = int(split["count"])
        return [f"{split['stem']}-{part:05d}-of-{count:05d}.gguf" for part in range(1, count + 1)]


def parse(name: str) -> HubFile:
    """`hf:OWNER/REPO/FILE.gguf[@REVISION]`, or FetchFailed."""
    if not (match := FORM.fullmatch(name)):
        raise FetchFailed(f"{name}: not understood; write hf:OWNER/REPO/FILE.gguf or hf:OWNER/REPO/FILE.gguf@REVISION")
    return HubFile(match["repo"], match["file"], match["revision"])


def fetch(wanted: HubFile, models_dir: Path) -> list[Path]:
    """Bring the file into `models_dir`, checked against the digest that the hub states. Draws its own progress bars."""
    try:
        from huggingface_hub.errors import (
            EntryNotFoundError,
            GatedRepoError,
            RepositoryNotFoundError,
            RevisionNotFoundError,
        )
    except ImportError as error:
        raise FetchFailed("the hub needs an extra: pip install 'metamusesd[hub]'") from error
    try:
        with workshop(models_dir):
            return [_fetch_one(wanted, file, models_dir) for file in wanted.files()]
    except GatedRepoError as error:
        raise FetchFailed(
            f"{wanted.repo}: its owner wants an agreement; accept it on the hub, then set HF_TOKEN"
        ) from error
    except RevisionNotFoundError as error:
        raise FetchFailed(f"{wanted.repo}: has no revision {wanted.revision}") from error
    except RepositoryNotFoundError as error:
        raise FetchFailed(
            f"{wanted.repo}: no such repository, or it is private: correct the name or set HF_TOKEN"
        ) from error
    except EntryNotFoundError as error:
        raise FetchFailed(f"{wanted.repo}: {_first_line(error) or 'has no such file'}") from error
    except (OSError, ValueError) as error:
        raise FetchFailed(
            f"{wanted.repo}: the hub did not answer: {_first_line(error)}; check the network or HF_ENDPOINT"
        ) from error


def _fetch_one(wanted: HubFile, file: str, models_dir: Path) -> Path:
    from huggingface_hub import HfApi, hf_hub_download
    from huggingface_hub.hf_api import RepoFile

    entries = HfApi().get_paths_info(wanted.repo, [file], revision=wanted.revision)
    entry = next((entry for entry in entries if isinstance(entry, RepoFile)), None)
    if entry is None:
        raise FetchFailed(f"{wanted.repo}: has no file {file}; look at its list of files")
    stated = f"sha256:{entry.lfs.sha256}" if entry.lfs else ""
    target = models_dir / Path(file).name
    if stated and target.is_file() and digest_of(target) == stated:
        return target
    parked = models_dir / ".hub" / wanted.repo.replace("/", "--")
    path = Path(hf_hub_download(wanted.repo, file, revision=wanted.revision, local_dir=parked))
    if stated:
        check_digest(path, stated, f"{file} from {wanted.repo}")
    return put_in_place(path, target, stated or digest_of(path))


def _first_line(error: BaseException) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
