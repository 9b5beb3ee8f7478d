"""The lock: every package pinned and hashed, no index, and nothing that pyproject asks for left out."""

from __future__ import annotations

import importlib.metadata
import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[2]
LOCK = (ROOT / "requirements.lock").read_text(encoding="utf-8")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))

PYTHONS = ("3.11", "3.12", "3.13")
SYSTEMS = (("linux", "Linux", "x86_64"), ("darwin", "Darwin", "arm64"), ("win32", "Windows", "AMD64"))


def entries() -> list[tuple[Requirement, list[str]]]:
    """Requirement and hashes of every entry."""
    found = []
    for block in re.findall(r"^[A-Za-z0-9].*(?:\n[ ]{4}--hash=.*)*", LOCK, flags=re.MULTILINE):
        head, *rest = block.split("\n")
        found.append((Requirement(head.rstrip("\\ ")), [line.strip("\\ ") for line in rest]))
    return found


def environment(python: str, system: tuple[str, str, str]) -> dict[str, str]:
    return {
        "python_version": python,
        "python_full_version": f"{python}.4",
        "sys_platform": system[0],
        "platform_system": system[1],
        "platform_machine": system[2],
        "platform_python_implementation": "CPython",
        "implementation_name": "cpython",
        "os_name": "nt" if system[0] == "win32" else "posix",
    }


def pinned(python: str, system: tuple[str, str, str]) -> dict[str, str]:
    """What the lock installs there: name to version. Two versions of one package are an error."""
    chosen: dict[str, str] = {}
    for requirement, _ in entries():
        if requirement.marker is None or requirement.marker.evaluate(environment(python, system)):
            name = canonicalize_name(requirement.name)
            assert name not in chosen, f"{name} twice for Python {python} on {system[1]}"
            chosen[name] = next(iter(requirement.specifier)).version
    return chosen


def test_every_entry_is_pinned_and_hashed() -> None:
    found = entries()
    assert len(found) > 50
    for requirement, hashes in found:
        assert [s.operator for s in requirement.specifier] == ["=="], requirement
        assert hashes, f"{requirement} has no hash"
        assert all(re.fullmatch(r"--hash=sha256:[0-9a-f]{64}", h) for h in hashes), requirement


def test_no_index_and_no_address() -> None:
    assert not re.search(r"https?:|://|^\s*-i |--(extra-)?index|--find-links|--trusted|file:", LOCK, flags=re.MULTILINE)


@pytest.mark.parametrize("system", SYSTEMS, ids=lambda s: s[1])
@pytest.mark.parametrize("python", PYTHONS)
def test_lock_satisfies_pyproject_everywhere(python: str, system: tuple[str, str, str]) -> None:
    chosen = pinned(python, system)
    extras = PROJECT["project"]["optional-dependencies"]
    wanted = [
        *PROJECT["project"]["dependencies"],
        *extras["dev"],
        *extras["plots"],
        *PROJECT["build-system"]["requires"],
    ]
    for text in wanted:
        requirement = Requirement(text)
        name = canonicalize_name(requirement.name)
        assert name in chosen, f"{text} is not in the lock: make lock"
        assert requirement.specifier.contains(chosen[name], prereleases=True), f"{text}: the lock has {chosen[name]}"


def test_torch_and_torchvision_are_a_pair() -> None:
    """The torchvision installed here names the one torch it was built for; the lock must pin these two."""
    chosen = pinned("3.12", SYSTEMS[0])
    if importlib.metadata.version("torchvision").split("+")[0] != chosen["torchvision"]:
        pytest.skip("another torchvision than the lock's is installed")
    needs = [Requirement(text) for text in importlib.metadata.requires("torchvision") or []]
    torch = next(need for need in needs if need.name == "torch")
    assert torch.specifier.contains(chosen["torch"])
