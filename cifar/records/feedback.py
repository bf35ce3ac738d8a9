"""What people say of an answer."""

from __future__ import annotations

import re
import time

from sqlalchemy.exc import IntegrityError

from cifar.errors import BadParameter, RequestNotFound
from cifar.records.database import insert
from cifar.records.recorder import Recorder, Row
from cifar.records.tables import feedback, feedback_labels

_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")


def give(
    recorder: Recorder,
    request_id: str,
    label: object,
    note: object,
    *,
    by: str,
    for_anybody: bool = False,
    most_characters: int,
) -> Row:
    """Store what was right, in place of what was said before. When this returns, it is on disk.

    Args:
        recorder: where the prediction is.
        request_id: of the answer.
        label: one of the version's classes, or `NONE`.
        note: text, or None.
        by: keyed hash of who says so: only who asked may.
        for_anybody: whether they may for others' answers too.
        most_characters: of the note.

    Returns:
        The columns of `feedback`.

    Raises:
        RequestNotFound: there is no such prediction, or it is somebody else's.
        BadParameter: no such label, or no such note.
        sqlalchemy.exc.SQLAlchemyError: the database does not answer.
    """
    prediction = recorder.find(request_id) if _REQUEST_ID.fullmatch(request_id) else None
    if prediction is None or not (for_anybody or prediction["user"] == by):
        raise _not_found(request_id)
    _check(label, feedback_labels(prediction["scores"]), note, most_characters)
    row = {"request_id": request_id, "label": label, "note": note or "", "by": by, "at": time.time()}
    try:
        with recorder.engine.begin() as connection:
            statement = insert(connection, feedback).values(row)
            connection.execute(statement.on_conflict_do_update(index_elements=["request_id"], set_=row))
    except IntegrityError as error:  # the prediction went by age meanwhile
        raise _not_found(request_id) from error
    return row


def _check(label: object, known: list[str], note: object, most_characters: int) -> None:
    if label not in known:
        raise BadParameter(f"label must be one of {', '.join(known)}; got {str(label)[:40]!r}.")
    if note is not None and not isinstance(note, str):
        raise BadParameter(f"note must be text; got {type(note).__name__}.")
    if note and len(note) > most_characters:
        raise BadParameter(f"note has {len(note):,} characters; at most {most_characters:,} are kept.")
    if note and ("\0" in note or any("\ud800" <= character <= "\udfff" for character in note)):
        raise BadParameter("note must be text without NUL and without halves of surrogate pairs.")


def _not_found(request_id: str) -> RequestNotFound:
    return RequestNotFound(
        f"There is no prediction of yours under the request id {request_id[:64]!r}. Send the `request_id` of an answer."
    )
