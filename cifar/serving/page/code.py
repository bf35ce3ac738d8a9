"""The tab that shows how to get the same answer from code, at the address where the page was opened."""

from __future__ import annotations

import html
import re

from cifar.serving.page.snippets import SNIPPETS
from cifar.serving.page.texts import say

_ADDRESS = re.compile(r"https?://[\w.:\[\]-]{1,255}(/[\w./~-]{0,255})?")


def code_html(address: object, *, mcp: bool) -> str:
    """The snippets for the server at `address`, as the browser knows it.

    Args:
        address: the page's own, from the browser; anything that is none gives an empty tab.
        mcp: whether the server offers MCP.
    """
    if not isinstance(address, str) or not _ADDRESS.fullmatch(address):
        return ""
    address = address.rstrip("/")
    shown = [_snippet(snippet.name, snippet.write(address)) for snippet in SNIPPETS if mcp or snippet.name != "mcp"]
    missing = "" if mcp else f'<p class="missing">{say("code.mcp_off")}</p>'
    return f'<p>{say("code.intro")} <a href="{address}/docs">/docs</a>.</p>{"".join(shown)}{missing}'


def _snippet(name: str, code: str) -> str:
    return (
        f'<section class="snippet"><div class="head"><h2 class=part id="code-{name}">{say(f"code.{name}")}</h2>'
        f'<button type="button" class="plain" data-copy aria-describedby="code-{name}">'
        f'<span class="ready">{say("code.copy")}</span><span class="done">{say("code.copied")}</span></button></div>'
        f'<pre tabindex="0" role="region" aria-labelledby="code-{name}"><code data-snippet="{name}">{html.escape(code.rstrip())}</code></pre></section>'
    )
