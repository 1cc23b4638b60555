"""Generators in repositories of the Hugging Face Hub, named as the hub's own programs name files.

A name is ``hf://owner/name/file.safetensors``, or ``hf://owner/name@revision/file.safetensors``. No
other kind of file is asked for: the others are pickles, which can hold code. The package
huggingface-hub (extra ``hub``) keeps what it has downloaded in its cache.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from cogen_fast.support.arguments import abbreviated
from cogen_fast.support.extras import imported

PREFIX = "hf://"
ENDING = ".safetensors"
_FORM = f"{PREFIX}owner/name/file{ENDING} or {PREFIX}owner/name@revision/file{ENDING}"
_OTHER_KINDS = ("buckets", "datasets", "kernels", "spaces")  # where an owner would stand
_NAME = re.compile(
    r"(?P<owner>[A-Za-z0-9][\w.-]*)/(?P<name>[A-Za-z0-9][\w.-]*)"
    # Two kinds of revisions hold slashes; in others they are written %2F.
    r"(?:@(?P<revision>refs/(?:convert/[\w.-]+|pr/\d+)|[^/@]+))?"
    r"/(?P<file>[^\\\x00-\x1f]+)",
    re.ASCII,
)


@dataclass(frozen=True)
class HubFile:
    """A file in a repository of models; ``revision`` None is the newest of the main branch."""

    repository: str
    file: str
    revision: str | None = None


def is_hub_name(value: object) -> bool:
    """Whether ``value`` names a file on the hub, and not one of this machine."""
    return isinstance(value, str) and value.startswith(PREFIX)


def parsed(text: str) -> HubFile:
    """The file that ``text`` names. ValueError for another form, or another kind of file."""
    found = _NAME.fullmatch(text.removeprefix(PREFIX).removeprefix("models/"))
    if found is None or not _is_plain(found["file"]):
        raise ValueError(f"generator: expected a name such as {_FORM}, got {abbreviated(text)}")
    if found["owner"] in _OTHER_KINDS:
        raise ValueError(f"{text}: expected a repository of models, got one of {found['owner']}")
    if not found["file"].endswith(ENDING):
        raise ValueError(
            f"{text}: expected a name that ends in {ENDING} (a revision stands before the file: "
            f"{PREFIX}owner/name@revision/file); files of other kinds are never loaded from the "
            "hub, as they can hold code: download them by other means, and give their path"
        )
    revision = found["revision"] and unquote(found["revision"])
    return HubFile(f"{found['owner']}/{found['name']}", found["file"], revision)


def _is_plain(file: str) -> bool:
    return all(part not in ("", ".", "..") for part in file.split("/"))


def downloaded(text: str) -> Path:
    """The path of the file that ``text`` names, in the cache of the hub's package.

    A file that is not there yet is downloaded, unless HF_HUB_OFFLINE is set.

    Raises ValueError for names as `parsed` does, ImportError without huggingface-hub, and an
    OSError in words for everything else: FileNotFoundError, PermissionError, ConnectionError.
    """
    place = parsed(text)
    hub = imported("huggingface_hub", what=text, package="huggingface-hub", extra="hub")
    try:
        path = hub.hf_hub_download(
            place.repository, place.file, revision=place.revision, library_name="cogen-fast"
        )
    except Exception as error:  # also those of the packages by which it speaks HTTP
        raise _told(text, place, error) from error
    return Path(path)


def _told(text: str, place: HubFile, error: Exception) -> Exception:
    """What to raise in the place of an error of the hub's package."""
    errors = imported("huggingface_hub.errors", what=text, package="huggingface-hub", extra="hub")
    for names, tell in _TELLING:
        if isinstance(error, tuple(getattr(errors, name) for name in names)):
            return tell(text, place)
    reason = (str(error).strip() or "no reason given").splitlines()[0][:200]
    kind = ValueError if isinstance(error, ValueError) else OSError
    return kind(f"{text}: could not be downloaded: {type(error).__name__}: {reason}")


def _gated(text: str, place: HubFile) -> Exception:
    return PermissionError(
        f"{text}: {place.repository} is gated: accept its terms on its page of the hub, then log "
        "in (hf auth login, or HF_TOKEN in the environment)"
    )


def _no_repository(text: str, place: HubFile) -> Exception:
    return FileNotFoundError(
        f"{text}: expected a repository of models, found no {place.repository}; if it is private, "
        "log in (hf auth login, or HF_TOKEN in the environment)"
    )


def _no_revision(text: str, place: HubFile) -> Exception:
    return FileNotFoundError(
        f"{text}: expected a branch, tag or commit of {place.repository}, found no {place.revision}"
    )


def _not_here(text: str, _: HubFile) -> Exception:
    constants: Any = imported(
        "huggingface_hub.constants", what=text, package="huggingface-hub", extra="hub"
    )
    if constants.HF_HUB_OFFLINE:
        return FileNotFoundError(
            f"{text}: expected a file that has been downloaded before, as HF_HUB_OFFLINE is set, "
            f"found none in {constants.HF_HUB_CACHE}"
        )
    return ConnectionError(
        f"{text}: the hub cannot be reached, and the file is not in {constants.HF_HUB_CACHE}"
    )


def _no_file(text: str, place: HubFile) -> Exception:
    return FileNotFoundError(
        f"{text}: expected a file of {place.repository} at revision {place.revision or 'main'}, "
        f"found no {place.file}"
    )


_Tell = Callable[[str, HubFile], Exception]
# In this order: a gated repository is one that is not found, and so is a file that is not here.
_TELLING: tuple[tuple[tuple[str, ...], _Tell], ...] = (
    (("GatedRepoError",), _gated),
    (("RepositoryNotFoundError",), _no_repository),
    (("RevisionNotFoundError",), _no_revision),
    (("LocalEntryNotFoundError", "OfflineModeIsEnabled"), _not_here),
    (("EntryNotFoundError",), _no_file),
)
