"""Feedback on predictions: checked and stored."""

from __future__ import annotations

import time
from collections.abc import Callable

from sqlalchemy import Engine
from sqlalchemy.exc import IntegrityError

from cifar.errors import BadParameter, RequestNotFound
from cifar.records.database import insert
from cifar.records.tables import feedback
from cifar.records.values import REQUEST_ID, Row, feedback_labels

MAX_NOTE_CHARACTERS = 1000


def store_feedback(
    engine: Engine,
    find: Callable[[str], Row | None],
    request_id: str,
    label: object,
    note: object,
    *,
    by: str,
    for_any_user: bool = False,
    is_multi_label: Callable[[Row], bool] = lambda _: False,
) -> Row:
    """Store the correct label of a prediction, in place of earlier feedback, and return the row. When this returns, it is on disk.

    Args:
        engine: see `open_engine`.
        find: returns a prediction by its id: see `Recorder.find`.
        request_id: id of the prediction.
        label: one of the version's classes, or `NONE_LABEL`.
        note: a text, or None.
        by: keyed hash of the user who gives the feedback.
        for_any_user: allow feedback on the predictions of other users.
        is_multi_label: tells whether a prediction is of a multi-label version.

    Raises:
        RequestNotFound: there is no such prediction, or it is another user's.
        BadParameter: there is no such label, the note is not usable, or the version is multi-label.
        sqlalchemy.exc.SQLAlchemyError: the database does not answer.
    """
    prediction = find(request_id) if REQUEST_ID.fullmatch(request_id) else None
    if prediction is None or not (for_any_user or prediction["user"] == by):
        raise _not_found(request_id)
    if is_multi_label(prediction):
        raise BadParameter(
            f"Version {prediction['version']} is multi-label: an image can show several of its classes, or none. "
            "Feedback names the one right class, so there is none for this version."
        )
    _check(label, feedback_labels(prediction["scores"]), note)
    row = {"request_id": request_id, "label": label, "note": note or "", "by": by, "at": time.time()}
    try:
        with engine.begin() as connection:
            statement = insert(connection.dialect.name, feedback).values(row)
            connection.execute(statement.on_conflict_do_update(index_elements=["request_id"], set_=row))
    except IntegrityError as error:  # the prediction has just been deleted by age
        raise _not_found(request_id) from error
    return row


def _check(label: object, labels: list[str], note: object) -> None:
    if label not in labels:
        raise BadParameter(f"label must be one of {', '.join(labels)}; got {str(label)[:40]!r}.")
    if note is not None and not isinstance(note, str):
        raise BadParameter(f"note must be text; got {type(note).__name__}.")
    if note and len(note) > MAX_NOTE_CHARACTERS:
        raise BadParameter(f"note has {len(note):,} characters; at most {MAX_NOTE_CHARACTERS:,} are allowed.")
    if note and ("\0" in note or any("\ud800" <= character <= "\udfff" for character in note)):
        raise BadParameter("note must be text without NUL and without halves of surrogate pairs.")


def _not_found(request_id: str) -> RequestNotFound:
    return RequestNotFound(
        f"There is no prediction of yours under the request id {request_id[:64]!r}. Send the `request_id` of an answer."
    )
