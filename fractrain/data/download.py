"""One file from the network: resumed where it stopped, compared with its MD5, put in place whole or not at all.

torchvision's own downloader starts again from nothing when the connection breaks and has no timeout. The CIFAR host
can be slow (an hour for 170 MB), so both matter.
"""

from __future__ import annotations

import contextlib
import http
import http.client
import os
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path

from tqdm import tqdm

from fractrain.data.places import offline_variable
from fractrain.data.status import md5_of
from fractrain.util.errors import DataError, MachineError, message_line

_TIMEOUT_S = 30.0
_CHUNK = 1 << 16


def download(urls: Sequence[str], target: Path, md5: str, by_hand: str) -> None:
    """Download ``target`` from the first address that delivers it.

    What has arrived stays in ``<target>.part`` and is completed by the next call. A broken connection is resumed as
    long as each try brings something new. Where a variable says that this machine is offline, only ``file:`` addresses
    are read.

    Args:
        urls: addresses of the same file, in the order of trying.
        target: where the file goes; the folder exists.
        by_hand: how to get on without a download, in a few words; part of the error.

    Raises:
        MachineError: no address could be reached or none delivered the file to its end, or a variable forbids it.
        DataError: the file delivered has another checksum, or it cannot be written here.
    """
    variable = offline_variable()
    if variable:
        asked = urls
        urls = [url for url in urls if urllib.parse.urlsplit(url).scheme == "file"]
        if not urls:
            raise MachineError(f"cannot download {', '.join(asked)}: {variable} is set; unset it, or {by_hand}")
    part = target.with_name(target.name + ".part")
    trouble = "no address given"
    for url in urls:
        problem = _receive_with_resume(url, part)
        if problem:
            trouble = f"{url}: {problem}"
            continue
        found = md5_of(part)
        if found == md5:
            os.replace(part, target)
            return
        part.unlink()
        trouble = f"{url}: delivered a file with md5 {found}, expected {md5}"
        if url == urls[-1]:
            raise DataError(f"cannot use {trouble}; try again, or {by_hand}")
    mend = f"unset {variable}" if variable else "check the network"
    raise MachineError(f"cannot download {trouble}; {mend} and run the same command again, or {by_hand}")


def _receive_with_resume(url: str, part: Path) -> str:
    """Fill ``part`` from ``url``; return what went wrong, or an empty string when it is complete."""
    best = part.stat().st_size if part.exists() else 0
    while True:
        try:
            _receive(url, part)
            return ""
        except (OSError, http.client.HTTPException, ValueError) as error:
            size = part.stat().st_size if part.exists() else 0
            if size <= best:
                reason = getattr(error, "reason", None) or error
                return message_line(reason)
            best = size


def _receive(url: str, part: Path) -> None:
    """Read from ``url`` to the end and append to ``part``; raises OSError when the connection breaks."""
    have = part.stat().st_size if part.exists() else 0
    request = urllib.request.Request(url, headers={"User-Agent": "fractrain"})
    if have:
        request.add_header("Range", f"bytes={have}-")
    try:
        response = urllib.request.urlopen(request, timeout=_TIMEOUT_S)
    except urllib.error.HTTPError as error:
        error.close()
        if error.code != http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
            raise
        # What is here is the whole file, or of another one: the checksum decides, the next call starts anew.
        return
    with response:
        resumed = getattr(response, "status", None) == http.HTTPStatus.PARTIAL_CONTENT
        start = have if resumed else 0
        length = response.headers.get("Content-Length")
        total = start + int(length) if length else None
        with writing(part):
            out = open(part, "ab" if resumed else "wb")  # noqa: SIM115 (closed by the next block)
        with out, tqdm(total=total, initial=start, unit="B", unit_scale=True, desc=part.stem, disable=None) as bar:
            while chunk := response.read(_CHUNK):
                with writing(part):
                    out.write(chunk)
                bar.update(len(chunk))
            with writing(part):
                out.flush()
                os.fsync(out.fileno())
    size = part.stat().st_size
    if total is not None and size < total:
        raise OSError(f"the connection closed after {size} of {total} bytes")


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Make one line of what the operating system says to writing ``path`` (no permission, disk full): a DataError."""
    try:
        yield
    except OSError as error:
        raise DataError(
            f"cannot write {path}: {error.strerror or error}; choose another folder with --data-dir, or make room there"
        ) from error
