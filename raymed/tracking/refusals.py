"""What MLflow's refusals mean: that an answer stays, that it may change, or that somebody must renew credentials."""

from __future__ import annotations

import re

from mlflow.exceptions import MlflowException
from requests import HTTPError

# MLflow's answers that stay the same however often it is asked.
PERMANENT = {
    *("INVALID_PARAMETER_VALUE", "RESOURCE_DOES_NOT_EXIST", "RESOURCE_ALREADY_EXISTS"),
    *("INVALID_STATE", "MALFORMED_REQUEST"),
}
# MLflow's BAD_REQUEST is whatever its database says (mlflow/store/db/utils.py): that it is busy, or, by these codes of
# SQLAlchemy, that it does not take a value, as it is (DataError) or beside what others write just now (IntegrityError).
UNTAKEN = re.compile(r"sqlalche\.me/e/\d+/(9h9h|gkpj)\b")
DENIED = {"UNAUTHENTICATED", "CUSTOMER_UNAUTHORIZED", "PERMISSION_DENIED"}  # those of who does not know us, or not enough


def is_permanent(error: BaseException | None) -> bool:
    """Whether MLflow answered, and would answer the same again."""
    return isinstance(error, MlflowException) and error.error_code in PERMANENT


def is_unclear(error: BaseException | None) -> bool:
    """Whether MLflow's database works, and did not take what was written, for good or just now."""
    return isinstance(error, MlflowException) and error.error_code == "BAD_REQUEST" and bool(UNTAKEN.search(str(error)))


def is_denied(error: BaseException | None) -> bool:
    """Whether MLflow answered, and does not take the credentials: they may have run out, and may be renewed."""
    if isinstance(error, HTTPError):  # of an artefact
        return error.response is not None and error.response.status_code in (401, 403)
    return isinstance(error, MlflowException) and error.error_code in DENIED
