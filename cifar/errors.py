"""Every error that a user can cause or meet.

Each class has an HTTP status and a stable `code`, by default the class name in snake case. The message of an error is
one or two sentences that say what came, what was expected and what to do. The server answers with status, code and message;
the command line prints the message and exits with status 1. An error with the status 500 is raised by commands only.

`docs/errors.md` is generated from the docstrings: meaning, and what to do (by default, to retry after `retry_after_seconds`).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from types import MappingProxyType

INTERNAL_ERROR = "An internal error occurred. Report the request id to the operator."
"""The message of every unexpected error: its details are in the log only."""


class CifarError(Exception):
    """An unexpected error on the server.

    Report the request id to the operator: the log has the details under it.
    """

    code = "internal_error"
    status = 500
    retry_after_seconds: int | None = None
    headers: Mapping[str, str] = MappingProxyType({})
    """Further headers of the response."""

    def __init_subclass__(cls) -> None:
        if "code" not in vars(cls):
            cls.code = re.sub(r"(?<!^)(?=[A-Z])", "_", cls.__name__).lower()


class BadRequest(CifarError):
    """The request is malformed.

    The message says what the route expects; `/docs` describes each route.
    """

    status = 400


class HeadTooLarge(BadRequest):
    """The request line and the headers are too large.

    Send fewer or shorter headers, such as cookies of other sites.
    """

    status = 431


class RequestTooSlow(BadRequest):
    """The request was not sent in time."""

    status = 408


class MissingImage(BadRequest):
    """The request contains no image.

    Send the file as the form field `image`, or as the body with an `image/*` content type.
    """


class NotSignedIn(CifarError):
    """The server requires sign-in, and the request has no credentials.

    Send `Authorization: Bearer KEY-OR-TOKEN` or `X-API-Key: KEY`.
    """

    status = 401


class InvalidCredentials(NotSignedIn):
    """The API key or bearer token is unknown, revoked, expired or malformed.

    Use another key or token. The message never says which check failed.
    """


class SignInFailed(NotSignedIn):
    """Signing in to the page at the OpenID Connect provider failed.

    Open the page and sign in again.
    """


class MissingScope(CifarError):
    """The caller is signed in but lacks the scope that the route requires.

    Use a key or token with that scope.
    """

    status = 403


class SignInUnavailable(CifarError):
    """The credentials cannot be checked: the host of the public keys or the sign-in provider does not answer."""

    status = 503
    retry_after_seconds = 30


class RouteClosed(CifarError):
    """There is no such route. Some routes of Gradio exist but are closed on this server.

    `/docs` lists the routes.
    """

    code = "not_found"
    status = 404


class MethodNotAllowed(CifarError):
    """The route exists but does not accept this method.

    Use a method of the `Allow` header.
    """

    status = 405

    def __init__(self, sentence: str, allowed: str, *, head: bool = True) -> None:
        """Make the error for a route that accepts the methods `allowed`, such as `GET, POST`. With `head`, HEAD goes with GET."""
        super().__init__(sentence)
        methods = set(allowed.split(", "))
        self.headers = {"Allow": ", ".join(sorted(methods | {"HEAD"} if head and "GET" in methods else methods))}


class CallFailed(CifarError):
    """A call of a Gradio endpoint failed, or its arguments did not fit the endpoint.

    `/gradio_api/info` describes the endpoints.
    """

    status = 422


class BadParameter(CifarError):
    """A parameter has the wrong type or is out of range.

    The message names the parameter, its value and what is allowed.
    """

    status = 422


class TooLarge(CifarError):
    """A file of a batch is larger than `CIFAR_MAX_BODY_BYTES`, or the JSON of a call to the page is too long.

    Scale the image down; upload images before the call.
    """

    status = 413


class BatchTooLarge(TooLarge):
    """A batch has more files than `CIFAR_MAX_BATCH_FILES` or more bytes than `CIFAR_MAX_BATCH_BYTES`, unpacked.

    Send fewer files at once.
    """


class BodyTooLarge(TooLarge):
    """The request body is larger than `CIFAR_MAX_BODY_BYTES`.

    Scale the image down.
    """


class ImageTooLarge(TooLarge):
    """More pixels than `CIFAR_MAX_IMAGE_PIXELS` would have to be decoded, or the image has more than 65,535 on one side.

    Scale the image down.
    """


class UploadsFull(CifarError):
    """The uploads to the page have `CIFAR_MAX_UPLOADS_BYTES` together, one caller's half of it, or their disk is full.

    Try again later: uploads are deleted after an hour.
    """

    status = 507
    retry_after_seconds = 60


class NotAcceptable(CifarError):
    """The header `Accept` excludes the only type in which the route answers.

    Send `Accept: application/json`, or no such header.
    """

    status = 406


class UnsupportedEncoding(CifarError):
    """The body is compressed in another way than gzip.

    Send it as it is, or with `Content-Encoding: gzip`.
    """

    status = 415
    headers = MappingProxyType({"Accept-Encoding": "gzip"})


class UnsupportedImage(CifarError):
    """The file is not an image in a supported format, judged by its content.

    Send JPEG, PNG, WebP, GIF, BMP, TIFF, HEIF or AVIF.
    """

    status = 415


class UnreadableImage(CifarError):
    """The image is empty, truncated or damaged.

    Save it again, or send another file.
    """

    status = 422


class UnreadableArchive(CifarError):
    """A zip archive, or a file in it, is damaged, encrypted, nested, or expands too much.

    Pack it again, without a password.
    """

    status = 422


class RequestNotFound(CifarError):
    """Feedback names a request id for which the caller has no recorded prediction, or one that has expired.

    Send the `request_id` of an answer, signed in as the same caller.
    """

    status = 404


class RecordsUnavailable(CifarError):
    """The records' folder or database cannot be used. Predictions are not affected."""

    status = 503
    retry_after_seconds = 10


class VersionNotFound(CifarError):
    """The registry has no such model or version.

    `GET /v1/models/NAME` lists the versions.
    """

    status = 404


class VersionUnusable(CifarError):
    """The version has no manifest, its files differ from what was exported, or it cannot be loaded.

    Export the model again; use another version meanwhile.
    """

    status = 503


class LabelNotFound(CifarError):
    """No version has this label.

    `GET /admin/models` lists the labels.
    """

    status = 404


class RolloutChanged(CifarError):
    """Another client changed the labels or traffic at the same time.

    Read the current state, then repeat the change if it still applies.
    """

    code = "routing_changed"
    status = 409


class NothingToRollBack(CifarError):
    """No promotion is left to take back.

    Promote the version that should be stable.
    """

    status = 409


class RegistryReadOnly(CifarError):
    """The registry is read-only for this process, so labels and traffic cannot be changed.

    Change them where the registry is writable: `python -m cifar models`.
    """

    status = 409


class NotReady(CifarError):
    """The model is still being loaded and warmed up."""

    status = 503
    retry_after_seconds = 5


class RateLimited(CifarError):
    """The caller sent more requests than `CIFAR_RATE_LIMIT_PREDICT` or `CIFAR_RATE_LIMIT_PAGE` allows.

    Retry after the seconds in `Retry-After`. The headers `RateLimit` and `RateLimit-Policy` state the limit.
    """

    status = 429


class Overloaded(CifarError):
    """The queue is full, or half of it is this caller's: `CIFAR_MAX_WAITING_IMAGES`, `CIFAR_MAX_WAITING_BYTES`, `CIFAR_MAX_EXPLAINED_IMAGES` or the limit of batches; or too many versions were loaded (`CIFAR_VERSION_LOADS_PER_MINUTE`)."""

    status = 503
    retry_after_seconds = 1


class WaitedTooLong(Overloaded):
    """The image was queued for longer than `CIFAR_MAX_WAIT_SECONDS`."""


class ModelServerUnavailable(CifarError):
    """TensorFlow Serving, which runs the model with `CIFAR_ENGINE=tfserving`, does not answer."""

    status = 503
    retry_after_seconds = 5


class CallerLeft(CifarError):
    """The client closed the connection before the response.

    This status appears in logs and metrics only.
    """

    status = 499


class WorkerGone(CifarError):
    """The worker process that held the page's session has ended.

    Reload the page, or repeat the call.
    """

    status = 503
    retry_after_seconds = 1


class DataError(CifarError):
    """A data set cannot be downloaded, read or used."""

    code = "bad_data"


class BulkError(CifarError):
    """A bulk run cannot start or continue."""

    code = "bulk_failed"


class TrainingError(CifarError):
    """A training run cannot start or continue."""

    code = "training_failed"


class ExportError(CifarError):
    """A model cannot be exported as a version."""

    code = "export_failed"


class KeysError(CifarError):
    """An API key cannot be created or revoked."""

    code = "bad_key"


class RecordsError(CifarError):
    """The records cannot be exported, or their folder or database cannot be used."""

    code = "bad_records"


class SettingsError(CifarError):
    """A setting is unknown or has a wrong value. The program does not start."""

    code = "bad_setting"
