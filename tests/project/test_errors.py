"""`cifar.errors`: the codes and statuses on which clients rely."""

from __future__ import annotations

from cifar import errors
from cifar.errors import CifarError

SERVED = {
    "internal_error": 500,
    "bad_request": 400,
    "head_too_large": 431,
    "request_too_slow": 408,
    "missing_image": 400,
    "not_signed_in": 401,
    "invalid_credentials": 401,
    "sign_in_failed": 401,
    "missing_scope": 403,
    "sign_in_unavailable": 503,
    "not_found": 404,
    "method_not_allowed": 405,
    "call_failed": 422,
    "bad_parameter": 422,
    "too_large": 413,
    "batch_too_large": 413,
    "body_too_large": 413,
    "image_too_large": 413,
    "uploads_full": 507,
    "not_acceptable": 406,
    "unsupported_encoding": 415,
    "unsupported_image": 415,
    "unreadable_image": 422,
    "unreadable_archive": 422,
    "request_not_found": 404,
    "records_unavailable": 503,
    "version_not_found": 404,
    "version_unusable": 503,
    "label_not_found": 404,
    "routing_changed": 409,
    "nothing_to_roll_back": 409,
    "registry_read_only": 409,
    "not_ready": 503,
    "rate_limited": 429,
    "overloaded": 503,
    "waited_too_long": 503,
    "model_server_unavailable": 503,
    "caller_left": 499,
    "worker_gone": 503,
}
COMMANDS_ONLY = {"bulk_failed", "bad_data", "bad_records", "bad_key", "bad_setting", "export_failed", "training_failed"}


def test_the_codes_and_statuses_of_errors_do_not_change():
    """They are part of the API. A code is derived from a class name, so renaming a class must not change it."""
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, CifarError)]
    found = {kind.code: kind.status for kind in kinds}
    assert len(found) == len(kinds), "no two classes share a code"
    assert found == SERVED | dict.fromkeys(COMMANDS_ONLY, CifarError.status)
