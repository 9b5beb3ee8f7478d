"""``fractrain claims``."""

from __future__ import annotations

import json

from test_cli_evidence import COMMITTED


def test_claims_are_listed_with_verdicts(cli):
    result = cli("claims", "--evidence", COMMITTED)
    assert result.exit_code == 0, result.stderr
    assert result.stdout.startswith("fractrain-cost: ResNet-74 on CIFAR-10: 77.6 %")
    document = json.loads(cli("claims", "--evidence", COMMITTED, "--json").stdout)
    assert {c["verdict"] for c in document["claims"]} <= {"reproduced", "differs", "inconclusive", "not run"}
    assert all(
        {"text", "source", "expected", "length", "verdict", "trend", "next"} <= set(c) for c in document["claims"]
    )


def test_an_empty_folder_of_records_is_no_error(cli):
    assert cli("claims", "--evidence", "nowhere").exit_code == 0
