"""Whatever is asked of the API, it is no fault of the server: requests made up from its own description."""

from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from itertools import cycle
from typing import Any
from urllib.parse import quote

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis.errors import Unsatisfiable
from schemathesis import Case, GenerationMode, SerializationContext

from service.api.rates import Rates
from tests import factories
from tests.faults.web import MEDIA_TYPE, body
from tests.tokens import bearer, entries

Clients = Callable[..., Any]
UID = str(factories.phantom_chest(0).StudyInstanceUID)
# Who asks; None shows no token, and is not let past the door.
_CALLERS = ("administrator", "clinician", "viewer", None)
_EDGES = (
    *(2**31, 2**63 - 1, 2**63, 10**30, -1, -(2**63) - 1, "1e400", "NaN", "", "\0", "\ud7ff", "x" * 5000),
    *("0001-01-01T00:00:00+14:00", "9999-12-31T23:59:59-14:00", "2026-02-30", "..", "'", "%"),
)
# Says which roles are silent: here all are.
_SAYS_SO = ("/readyz", 503)


@schemathesis.serializer('multipart/related; type="application/dicom"')
def one_part(_context: SerializationContext, value: Any) -> bytes:
    """Send what was made up as the one object of an upload."""
    content = value if isinstance(value, bytes) else str(value).encode("utf-8", "surrogatepass")
    return body(content)


@pytest.mark.parametrize(
    "examples",
    [
        pytest.param(15, id="few"),
        pytest.param(400, id="many", marks=[pytest.mark.long, pytest.mark.timeout(600)]),
    ],
)
def test_no_request_that_the_description_leads_to_breaks_anything(client: Clients, examples: int) -> None:
    app = client(api_tokens=entries(), rates=Rates(requests=10**9, failures=10**9)).app
    description = schemathesis.openapi.from_asgi("/openapi.json", app, headers=bearer("administrator"))
    asked: Counter[tuple[str, str | None, int]] = Counter()
    # In turn, and not by chance: with few requests of many kinds one of them would not have come.
    callers = cycle((*["administrator"] * 3, *_CALLERS))
    for operation in (result.ok() for result in description.get_all_operations()):
        known = {"path_parameters": {"study_instance_uid": UID}} if "{study" in operation.path else {}
        for requests in (
            operation.as_strategy(GenerationMode.POSITIVE),
            operation.as_strategy(GenerationMode.NEGATIVE),
            operation.as_strategy(GenerationMode.POSITIVE, **known),
        ):

            @seed(1)
            @settings(
                max_examples=examples,
                deadline=None,
                database=None,
                phases=[Phase.explicit, Phase.generate],
                suppress_health_check=list(HealthCheck),
            )
            @given(case=requests)
            def ask(case: Case) -> None:
                caller = next(callers)
                upload = {"Content-Type": MEDIA_TYPE} if case.media_type else {}
                answer = case.call(headers={**(bearer(caller) if caller else {}), **upload})
                asked[case.operation.label, caller, answer.status_code] += 1
                served = answer.status_code < 500 or (case.operation.path, answer.status_code) == _SAYS_SO
                assert served, case.as_curl_command()

            # What takes no parameter cannot be asked wrongly.
            with suppress(Unsatisfiable):
                ask()
    print(f"{asked.total()} requests")
    assert {(label, caller) for label, caller, _ in asked} >= {
        (f"{method.upper()} {path}", caller)
        for path, methods in app.openapi()["paths"].items()
        for method in methods
        for caller in (_CALLERS if "{" in path or path == "/api/studies" else ("administrator",))
    }
    retry = "POST /api/studies/{study_instance_uid}/retry"
    assert {status for label, caller, status in asked if (label, caller) == (retry, "viewer")} <= {403, 422}
    assert (retry, "administrator", 200) in asked


def test_no_value_at_the_edge_breaks_anything(client: Clients) -> None:
    """Random search hardly ever meets these."""
    api = client(api_tokens=entries(), rates=Rates(requests=10**9, failures=10**9))
    asked = 0
    for path, methods in api.app.openapi()["paths"].items():
        for method, operation in methods.items():
            for parameter in operation.get("parameters", ()):
                for value in _EDGES:
                    query = {parameter["name"]: value} if parameter["in"] == "query" else {}
                    url = path if query else path.replace(f"{{{parameter['name']}}}", quote(str(value)))
                    answer = api.request(
                        method,
                        url.replace("{study_instance_uid}", UID),
                        params=query,
                        headers=bearer("administrator"),
                    )
                    assert answer.status_code < 500, (method, url, value)
                    asked += 1
    assert asked > 5 * len(_EDGES)
