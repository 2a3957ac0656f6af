"""The short form of the soak: a minute of kills on each database."""

import pytest

from tests.e2e.soak import Plan, soak

pytestmark = [pytest.mark.e2e, pytest.mark.long]


@pytest.mark.timeout(900)
@pytest.mark.parametrize("database", ["sqlite", "postgresql"])
def test_every_study_answered_with_success_has_exactly_one_current_report(database: str) -> None:
    plan = Plan(studies=100, seconds=60, drain_seconds=600, postgresql=database == "postgresql")
    verdict = soak(plan)
    print(verdict)
    assert verdict.stored == plan.studies
    assert verdict.right, verdict
