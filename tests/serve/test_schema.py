"""schemathesis over the OpenAPI: requests as it says, and beside it, meet no fault and no answer it does not say."""

import httpx
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

schemathesis = pytest.importorskip("schemathesis")

OPERATIONS = [
    ("GET", "/api/audio/{id}"),
    ("POST", "/api/embed"),
    ("GET", "/api/files/{id}"),
    ("GET", "/api/map"),
    ("GET", "/api/search"),
    ("POST", "/api/search"),
    ("GET", "/api/similar"),
    ("POST", "/api/similar"),
    ("GET", "/api/stats"),
    ("GET", "/api/suggest"),
    ("GET", "/api/waveform/{id}"),
    ("GET", "/healthz"),
    ("GET", "/metrics"),
]
EXAMPLES = 8  # of each operation and kind of data


@pytest.fixture(scope="session")
def schema(served):
    described = httpx.get(f"{served}/openapi.json", trust_env=False).json()
    found = schemathesis.openapi.from_dict(_without_tuples(described))
    found.config.update(base_url=served)
    return found


def _without_tuples(node):
    """schemathesis 4.32 rewrites `prefixItems` as OpenAPI 3.0 has it, and then stumbles over that."""
    if isinstance(node, dict):
        return {name: _without_tuples(value) for name, value in node.items() if name != "prefixItems"}
    return [_without_tuples(one) for one in node] if isinstance(node, list) else node


def test_no_operation_is_left_out(schema):
    assert sorted((one.ok().method.upper(), one.ok().path) for one in schema.get_all_operations()) == sorted(OPERATIONS)


@pytest.mark.parametrize(("method", "path"), OPERATIONS)
@pytest.mark.parametrize("mode", list(schemathesis.GenerationMode), ids=lambda mode: mode.name.lower())
def test_what_the_schema_says_holds(schema, ids, method, path, mode):
    if mode == schemathesis.GenerationMode.NEGATIVE and path in ("/healthz", "/metrics"):
        pytest.skip("takes nothing, so nothing wrong can be sent")
    from schemathesis.specs.openapi import checks

    # A search may be well-formed and name a column, a file or an upload that is not there.
    operation = schema[path][method]

    @settings(
        max_examples=EXAMPLES,
        deadline=None,
        database=None,
        derandomize=True,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(case=operation.as_strategy(generation_mode=mode), known=st.sampled_from([*ids.values(), None]))
    def run(case, known):
        if known and "id" in (case.path_parameters or {}):
            case.path_parameters["id"] = known
        case.call_and_validate(excluded_checks=[checks.positive_data_acceptance, checks.negative_data_rejection])

    run()
