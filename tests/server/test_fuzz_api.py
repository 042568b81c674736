"""The API's own description is fuzzed: no 5xx, and every answer is as described."""

from __future__ import annotations

import os

import hypothesis
import pytest
import schemathesis
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)
from server_process import Running

EXAMPLES = int(os.environ.get("DEEPSEEK_R1_FUZZ_EXAMPLES", "25"))
CHECKS = [not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance]
OPERATIONS = [
    ("POST", "/v1/chat/completions"),
    ("POST", "/v1/completions"),
    ("POST", "/tokenize"),
    ("POST", "/detokenize"),
    ("GET", "/v1/models"),
    ("GET", "/v1/models/{model_id}"),
    ("GET", "/health"),
    ("GET", "/ready"),
    ("GET", "/metrics"),
]


def test_the_description_names_all_routes(server: Running) -> None:
    paths = server.http.get("/openapi.json").json()["paths"]
    found = {(method.upper(), path) for path, methods in paths.items() for method in methods}
    assert found == set(OPERATIONS)
    for path in paths.values():
        for operation in path.values():
            assert "422" not in operation["responses"]


@pytest.mark.parametrize(("method", "path"), OPERATIONS)
def test_fuzz(server: Running, method: str, path: str) -> None:
    schema = schemathesis.openapi.from_url(f"{server.url}/openapi.json")
    operation = schema[path][method]

    @hypothesis.settings(
        max_examples=EXAMPLES,
        deadline=None,
        database=None,
        derandomize=True,
        suppress_health_check=list(hypothesis.HealthCheck),
    )
    @hypothesis.given(case=operation.as_strategy())
    def fuzz(case: schemathesis.Case) -> None:
        case.call_and_validate(base_url=server.url, checks=CHECKS, timeout=20)
        if isinstance(case.body, dict) and "model" in case.body:
            del case.body["model"]  # a random name ends at the 404; without it the rest is looked at
            case.call_and_validate(base_url=server.url, checks=CHECKS, timeout=20)

    fuzz()
    assert server.ready()
