"""`/docs`: the API's description in a browser.

Its viewer, Swagger UI, comes from this server: a public network's script would act in the session of whoever is signed in,
and where no such network is reached the page would be blank.
"""

from __future__ import annotations

from fastapi import FastAPI
from fastapi.openapi.docs import get_swagger_ui_html
from starlette.responses import HTMLResponse
from starlette.staticfiles import StaticFiles


def add_docs(api: FastAPI) -> None:
    """Add the page and its files. Addresses are relative: a proxy may serve us below a path."""

    @api.get("/docs", include_in_schema=False)
    async def docs() -> HTMLResponse:
        return get_swagger_ui_html(
            openapi_url="openapi.json",
            title=api.title,
            swagger_js_url="docs/swagger-ui-bundle.js",
            swagger_css_url="docs/swagger-ui.css",
            swagger_favicon_url="favicon.ico",
        )

    api.mount("/docs", StaticFiles(packages=[("fastapi_offline", "static")]))
