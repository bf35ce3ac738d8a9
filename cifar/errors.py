"""Every error that a user can cause or meet.

Each class carries a stable `code` and the HTTP status it travels with; the message is one sentence that says what
came, what was expected and what to do. One handler in `serving/api.py` turns it into a response, and `cli.py` into
a line on stderr and exit status 1.

    CifarError                       500  internal_error
    ├── BadRequest                   400  bad_request
    │   └── MissingImage             400  missing_image
    ├── NotSignedIn                  401  not_signed_in
    │   ├── InvalidCredentials       401  invalid_credentials
    │   └── SignInFailed             401  sign_in_failed
    ├── MissingScope                 403  missing_scope
    ├── SignInUnavailable            503  sign_in_unavailable
    ├── RouteClosed                  404  not_found
    ├── MethodNotAllowed             405  method_not_allowed
    ├── CallFailed                   422  call_failed
    ├── BadParameter                 422  bad_parameter
    ├── TooLarge                     413  too_large
    │   ├── BatchTooLarge            413  batch_too_large
    │   ├── BodyTooLarge             413  body_too_large
    │   └── ImageTooLarge            413  image_too_large
    ├── UnsupportedImage             415  unsupported_image
    ├── UnreadableImage              422  unreadable_image
    ├── UnreadableArchive            422  unreadable_archive
    ├── RequestNotFound              404  request_not_found
    ├── RecordsUnavailable           503  records_unavailable
    ├── VersionNotFound              404  version_not_found
    ├── VersionUnusable              503  version_unusable
    ├── LabelNotFound                404  label_not_found
    ├── RolloutChanged               409  routing_changed
    ├── NothingToRollBack            409  nothing_to_roll_back
    ├── RegistryReadOnly             409  registry_read_only
    ├── NotReady                     503  not_ready
    ├── RateLimited                  429  rate_limited
    ├── Overloaded                   503  overloaded
    │   └── WaitedTooLong            503  waited_too_long
    ├── ModelServerUnavailable       503  model_server_unavailable
    ├── CallerLeft                   499  caller_left
    ├── WorkerGone                   503  worker_gone
    ├── DataError                         a data set cannot be used (command line only)
    ├── BulkError                         many images cannot be classified (command line only)
    ├── TrainingError                     a run cannot start or go on (command line only)
    ├── ExportError                       a model cannot become a version (command line only)
    ├── KeysError                         an API key cannot be made or revoked (command line only)
    ├── RecordsError                      records cannot be exported (command line only)
    └── SettingsError                     a setting is wrong (at start only)
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from types import MappingProxyType

OUR_FAULT = "Something went wrong on our side. Tell the operator the request's id."
"""All that a caller learns of an error without a sentence of its own."""


class CifarError(Exception):
    """Something went wrong in a way that has a sentence for it."""

    code = "internal_error"
    status = 500
    retry_after_seconds: int | None = None
    headers: Mapping[str, str] = MappingProxyType({})
    """More of the answer's headers."""


class BadRequest(CifarError):
    """The request is not formed as the route documents it."""

    code = "bad_request"
    status = 400


class MissingImage(BadRequest):
    """The request holds no image."""

    code = "missing_image"


class NotSignedIn(CifarError):
    """The route is for callers who say who they are, and this one did not."""

    code = "not_signed_in"
    status = 401


class InvalidCredentials(NotSignedIn):
    """The key or token is none of ours, or no longer; the sentence never says which part of it was wrong."""

    code = "invalid_credentials"


class SignInFailed(NotSignedIn):
    """A person's sign-in at the provider did not come to an end that can be trusted."""

    code = "sign_in_failed"


class MissingScope(CifarError):
    """The caller is known, but may not do this."""

    code = "missing_scope"
    status = 403


class SignInUnavailable(CifarError):
    """Who the caller is cannot be told now: the host of the public keys, or the provider, does not answer."""

    code = "sign_in_unavailable"
    status = 503
    retry_after_seconds = 30


class RouteClosed(CifarError):
    """There is such a route in Gradio, but not here."""

    code = "not_found"
    status = 404


class MethodNotAllowed(CifarError):
    """The route is there, with another method."""

    code = "method_not_allowed"
    status = 405

    def __init__(self, sentence: str, allowed: Collection[str]) -> None:
        super().__init__(sentence)
        self.headers = {"Allow": ", ".join(sorted(allowed))}


class CallFailed(CifarError):
    """A call to one of Gradio's endpoints was answered with a sentence, or did not fit the endpoint."""

    code = "call_failed"
    status = 422


class BadParameter(CifarError):
    """A parameter has the wrong type or lies outside its range."""

    code = "bad_parameter"
    status = 422


class TooLarge(CifarError):
    """Something exceeds a limit."""

    code = "too_large"
    status = 413


class BatchTooLarge(TooLarge):
    """A batch has more files, or more bytes in them, than the settings `max_batch_...` allow."""

    code = "batch_too_large"


class BodyTooLarge(TooLarge):
    """The request body has more bytes than the setting `max_body_bytes` allows."""

    code = "body_too_large"


class ImageTooLarge(TooLarge):
    """The image's header announces more pixels than the setting `max_image_pixels` allows."""

    code = "image_too_large"


class UnsupportedImage(CifarError):
    """The bytes are not an image in a format on the list, whatever the file's name says."""

    code = "unsupported_image"
    status = 415


class UnreadableImage(CifarError):
    """The bytes begin like an image on the list but cannot be decoded: empty, truncated or damaged."""

    code = "unreadable_image"
    status = 422


class UnreadableArchive(CifarError):
    """An archive, or a file in it, cannot be unpacked: damaged, encrypted, nested, or packed too tightly."""

    code = "unreadable_archive"
    status = 422


class RequestNotFound(CifarError):
    """There is no recorded prediction of this caller's under that request id."""

    code = "request_not_found"
    status = 404


class RecordsUnavailable(CifarError):
    """The folder or the database of the records cannot be used now."""

    code = "records_unavailable"
    status = 503
    retry_after_seconds = 10


class VersionNotFound(CifarError):
    """The registry has no such model or version."""

    code = "version_not_found"
    status = 404


class VersionUnusable(CifarError):
    """A version is there but must not be loaded: no manifest, a changed file, or a name that is no version."""

    code = "version_unusable"
    status = 503


class LabelNotFound(CifarError):
    """No version has this label."""

    code = "label_not_found"
    status = 404


class RolloutChanged(CifarError):
    """Labels or traffic were changed by somebody else at the same time."""

    code = "routing_changed"
    status = 409


class NothingToRollBack(CifarError):
    """No promotion is left to take back."""

    code = "nothing_to_roll_back"
    status = 409


class RegistryReadOnly(CifarError):
    """Labels and traffic are kept in a folder that this process may not write."""

    code = "registry_read_only"
    status = 409


class NotReady(CifarError):
    """The model is still being loaded and warmed up."""

    code = "not_ready"
    status = 503
    retry_after_seconds = 5


class RateLimited(CifarError):
    """The caller asked more often than the settings `rate_limit_...` allow."""

    code = "rate_limited"
    status = 429


class Overloaded(CifarError):
    """As many images wait as the setting `max_waiting_images` allows."""

    code = "overloaded"
    status = 503
    retry_after_seconds = 1


class WaitedTooLong(Overloaded):
    """The image waited longer than the setting `max_wait_seconds` allows."""

    code = "waited_too_long"


class ModelServerUnavailable(CifarError):
    """The host that runs the model does not answer."""

    code = "model_server_unavailable"
    status = 503
    retry_after_seconds = 5


class CallerLeft(CifarError):
    """The caller closed the connection before the answer; nobody reads this."""

    code = "caller_left"
    status = 499


class WorkerGone(CifarError):
    """The worker process that held a page's session has ended."""

    code = "worker_gone"
    status = 503
    retry_after_seconds = 1


class DataError(CifarError):
    """A data set cannot be fetched, read or used."""

    code = "bad_data"


class BulkError(CifarError):
    """A bulk run cannot begin or go on."""

    code = "bulk_failed"


class TrainingError(CifarError):
    """A training run cannot start or go on."""

    code = "training_failed"


class ExportError(CifarError):
    """A model cannot become a version."""

    code = "export_failed"


class KeysError(CifarError):
    """An API key cannot be made or revoked."""

    code = "bad_key"


class RecordsError(CifarError):
    """Records cannot be exported."""

    code = "bad_records"


class SettingsError(CifarError):
    """A setting is missing or wrong."""

    code = "bad_setting"
