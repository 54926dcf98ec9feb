"""MLflow's webhook is known by its signature, as MLflow makes it."""

from __future__ import annotations

import hashlib
import time

import pytest
from mlflow.webhooks.delivery import _generate_hmac_signature
from starlette.testclient import TestClient

from prm_core.config import HttpConfig
from prm_core.errors import InputError
from prm_core.serving.http.edge import Edge
from prm_core.serving.http.keys import ApiKeys
from prm_core.serving.http.webhook import Webhook
from prm_core.serving.swap.current import Current
from prm_core.serving.swap.recent import Recent
from tests.builders.edge import edge, unsampled
from tests.builders.versions import Registry, served

BODY = '{"entity": "model_version_alias", "action": "created", "data": {"name": "prm", "alias": "champion"}}'


def signed(secret: str = "s3cret", body: str = BODY, ago: float = 0.0) -> dict[str, str]:
    stamp = str(int(time.time() - ago))
    return {"x-mlflow-delivery-id": "id-1", "x-mlflow-timestamp": stamp,
            "x-mlflow-signature": _generate_hmac_signature(secret, "id-1", stamp, body)}


@pytest.mark.parametrize("with_keys", [False, True])
def test_it_needs_no_key_and_who_has_none_needs_its_signature(tmp_path, with_keys) -> None:
    (tmp_path / "secret").write_text("s3cret\n")
    (tmp_path / "keys").write_text(f"ann {hashlib.sha256(b'k').hexdigest()}\n")
    current = Current(served(1))
    watcher, metrics = Registry(1).watcher(current)
    client = TestClient(Edge(current, HttpConfig(), ApiKeys(tmp_path / "keys") if with_keys else None, metrics,
                             Recent(0), unsampled(metrics), watcher, Webhook(tmp_path / "secret")))

    def status(headers: dict[str, str], body: str = BODY) -> int:
        return client.post("/reload", content=body, headers=headers).status_code

    assert status(signed()) == 202
    assert status({"authorization": "Bearer k"}) == (202 if with_keys else 401)
    assert {status({}), status(signed("other")), status(signed(), BODY + " "), status(signed(ago=600)),
            status(signed() | {"x-mlflow-delivery-id": "id-2"}), status(signed() | {"x-mlflow-timestamp": "soon"}),
            status(signed() | {"x-mlflow-signature": "v1,"})} == {401}
    assert client.post("/invocations", json={}, headers=signed()).status_code == (401 if with_keys else 400)


def test_a_server_of_a_version_says_that_it_stays_with_it() -> None:
    client = TestClient(edge())
    assert client.get("/reload").status_code == 405
    refused = client.post("/reload")
    assert (refused.status_code, "stays with it" in refused.json()["message"]) == (400, True)
    assert client.get("/ready").json()["alert"] is None


def test_a_secret_that_is_not_there_is_told_at_once(tmp_path) -> None:
    with pytest.raises(InputError, match="cannot be read"):
        Webhook(tmp_path / "secret")
    (tmp_path / "secret").write_text(" \n")
    with pytest.raises(InputError, match="no secret in it"):
        Webhook(tmp_path / "secret")
