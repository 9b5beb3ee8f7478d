"""How long a run is: a profile is a share of the paper's protocol, ``1/n``, two of which have names.

One rule scales a protocol to ``1/n``: whatever it counts in iterations is divided by n (the run itself, milestones,
warm-up, and the clock on which the authors' loss indicator of PFQ and FracTrain works, so that its window means the
same share of training at every length). What is a size, a rate or a weight stays: batch, learning rate, decay, DFQ's
weight of the cost term, the indicator's thresholds. Test results are taken once per pass over the data as in the paper,
but at least 20 times in a run (:func:`fractrain.engine.recipes.recipe_values`).
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from typing import Annotated, Final

from pydantic import AfterValidator

from fractrain.util.errors import ConfigError, did_you_mean

PROFILES: Final = ("smoke", "short", "paper")
MAX_SEEDS: Final = 1000  # runs of a row: a longer list is a seed taken for their number
SHARES: Final = {"paper": 1, "short": 8}  # n of 1/n
_FRACTION: Final = re.compile(r"1/([1-9][0-9]{0,5})")


def check_profile(name: str) -> str:
    """Return a profile by the name it is known by: ``1/8`` is ``short``, ``1/1`` is ``paper``.

    Raises:
        ConfigError: neither a name nor ``1/n``.
    """
    if name in PROFILES:
        return name
    found = _FRACTION.fullmatch(name)
    if not found:
        raise ConfigError(
            f"unknown profile {name!r}{did_you_mean(name, PROFILES)}; {', '.join(PROFILES)}, or a length such as 1/64"
        )
    return next((known for known, n in SHARES.items() if n == int(found[1])), name)


def _canonical(name: str) -> str:
    known = check_profile(name)
    if known != name:
        raise ValueError(f"a profile of this length is called {known!r}, got {name!r}")
    return name


Profile = Annotated[str, AfterValidator(_canonical)]
"""``smoke``, ``short``, ``paper`` or ``1/n``."""


def chosen_profile(profile: str | None, length: str | None) -> str | None:
    """Return the profile that ``--profile`` and ``--length`` mean together; None: neither was given.

    A length stands for the paper's protocol at that length, so it goes with ``paper`` and with its own name.

    Raises:
        ConfigError: not ``1/n``, or the two contradict each other.
    """
    if length is None:
        return profile
    if length != "1" and not _FRACTION.fullmatch(length):
        raise ConfigError(f"--length {length}: expected a share of the paper's iterations, 1/n, for example 1/64")
    wanted = "paper" if length == "1" else check_profile(length)
    if profile not in (None, "paper", wanted):
        raise ConfigError(f"--profile {profile} has a length of its own: leave --length {length} or the profile out")
    return wanted


def length_divisor(profile: str) -> int | None:
    """Return n of a profile that trains ``1/n`` of the paper's iterations; None for ``smoke``."""
    if profile == "smoke":
        return None
    return SHARES.get(profile) or int(profile.removeprefix("1/"))


def longest_first(profiles: Iterable[str]) -> list[str]:
    """The profiles, each once: from the paper's length down, ``smoke`` last."""
    return sorted(set(profiles), key=lambda profile: length_divisor(profile) or math.inf)


def length_text(profile: str) -> str:
    """A profile in a title: ``profile short (length 1/8)``, ``profile paper``, ``length 1/64``."""
    if profile in PROFILES:
        return f"profile {profile}" + (f" (length 1/{SHARES[profile]})" if SHARES.get(profile, 1) > 1 else "")
    return f"length {profile}"


def profile_slug(profile: str) -> str:
    """A profile as part of a file's name: ``length-1-64`` for ``1/64``."""
    return profile if profile in PROFILES else f"length-{profile.replace('/', '-')}"
