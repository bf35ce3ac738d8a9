"""The requester and the errors of a call that came through Gradio, for the endpoints and the page alike."""

from __future__ import annotations

import logging

import gradio as gr

from cifar.errors import INTERNAL_ERROR, CifarError
from cifar.serving.auth.principal import Requester

log = logging.getLogger(__name__)


def requester_of(request: gr.Request | None) -> Requester | None:
    """Return the requester of the HTTP request that Gradio passes to a function; None without a request."""
    return request and Requester.of(request.request.scope)


def as_cifar_error(error: Exception) -> CifarError:
    """Return `error` if it is a `CifarError`. Log any other error, and return one that tells the caller nothing about it."""
    if isinstance(error, CifarError):
        return error
    log.error("A call through Gradio failed", exc_info=error)
    return CifarError(INTERNAL_ERROR)
