"""Whether a request is MLflow's webhook: signed with a secret that MLflow and this server share."""

from __future__ import annotations

import base64
import hashlib
import hmac
import time
from collections.abc import Mapping
from pathlib import Path

from prm_core.errors import InputError

DELIVERY, STAMP, SIGNATURE = "x-mlflow-delivery-id", "x-mlflow-timestamp", "x-mlflow-signature"
# What was signed longer ago may be a copy of what somebody overheard.
SECONDS = 300


class Webhook:
    """Knows MLflow's webhook by its signature: `v1,` and, in base64, the HMAC-SHA256 of the delivery's id, its time and
    the body, with points between.

    Args:
        path: a file that holds the secret, and blanks around it at most.

    Raises InputError where it is missing or empty.
    """

    def __init__(self, path: Path) -> None:
        try:
            self._secret = path.read_text(encoding="utf-8").strip().encode()
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"{path}: the webhook's secret cannot be read ({type(error).__name__}); "
                             "swap.webhook_secret names its file") from None
        if not self._secret:
            raise InputError(f"{path}: no secret in it; leave swap.webhook_secret empty to do without")

    def sent(self, headers: Mapping[str, str], body: bytes) -> bool:
        """Whether it sent a request, within the last SECONDS."""
        delivery, stamp = headers.get(DELIVERY, ""), headers.get(STAMP, "")
        if not (stamp.isdecimal() and len(stamp) < 20 and abs(time.time() - int(stamp)) <= SECONDS):
            return False
        signed = f"{delivery}.{stamp}.".encode("latin-1", "replace") + body
        expected = "v1," + base64.b64encode(hmac.digest(self._secret, signed, hashlib.sha256)).decode()
        return hmac.compare_digest(expected.encode(), headers.get(SIGNATURE, "").encode("latin-1", "replace"))
