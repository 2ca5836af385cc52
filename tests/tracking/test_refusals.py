"""A refusal that stays is told from one of a server that is only busy."""

from __future__ import annotations

from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import BAD_REQUEST, RESOURCE_DOES_NOT_EXIST
from sqlalchemy import exc

from raymed.tracking.refusals import is_permanent, is_unclear


def test_a_value_that_a_database_does_not_take_is_told_from_one_that_is_busy() -> None:
    """Of both MLflow says BAD_REQUEST, with SQLAlchemy's words."""
    kinds = (exc.DataError, exc.IntegrityError, exc.InternalError, exc.InterfaceError, exc.ProgrammingError)
    said = [MlflowException(str(kind("INSERT", {}, Exception("no"))), error_code=BAD_REQUEST) for kind in kinds]
    said.append(MlflowException(str(exc.TimeoutError("QueuePool limit reached", code="3o7r")), error_code=BAD_REQUEST))
    assert [is_unclear(error) for error in said] == [True, True, False, False, False, False]


def test_a_server_whose_database_is_busy_has_refused_nothing_for_good() -> None:
    """Epochs were set aside as if they were wrong: so MLflow answers when its pool of connections is used up."""
    busy = MlflowException("QueuePool limit of size 1 overflow 1 reached", error_code=BAD_REQUEST)
    assert not is_permanent(busy)
    assert is_permanent(MlflowException("no such run", error_code=RESOURCE_DOES_NOT_EXIST))
