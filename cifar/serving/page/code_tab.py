"""The tab Code: snippets that get the same answers from a program. Each is complete and expects a file `photo.jpg` beside it.

The tests run the snippets.
"""

from __future__ import annotations

import html
import re

from cifar.serving.page.texts import html_text

_ADDRESS = re.compile(r"https?://[\w.:\[\]-]{1,255}(/[\w./~-]{0,255})?")


SNIPPETS = {
    "code.curl": 'curl -F image=@photo.jpg -F top_k=3 "ADDRESS/predict"',
    "code.python_client": """# pip install gradio_client
from gradio_client import Client, handle_file

client = Client("ADDRESS/")
answer = client.predict(handle_file("photo.jpg"), top_k=3, api_name="/predict")
print(answer["predicted_class"], answer["confidence"])
""",
    "code.python_requests": """# pip install requests
import requests

with open("photo.jpg", "rb") as photo:
    response = requests.post(
        "ADDRESS/predict",
        files={"image": photo},
        data={"top_k": 3},
        timeout=30,
    )
answer = response.json()
if not response.ok:
    raise SystemExit(answer["error"])
print(answer["predicted_class"], answer["confidence"])
""",
    "code.javascript": """// npm install @gradio/client; save as classify.mjs, run: node classify.mjs
import { readFile } from "node:fs/promises";
import { Client } from "@gradio/client";

const client = await Client.connect("ADDRESS/");
const image = new Blob([await readFile("photo.jpg")]);
const answer = await client.predict("/predict", { image, top_k: 3 });
console.log(answer.data[0].predicted_class, answer.data[0].confidence);
client.close();
""",
    "code.mcp": """{
  "mcpServers": {
    "cifar-space": {
      "url": "ADDRESS/gradio_api/mcp/"
    }
  }
}
""",
}
"""The snippets, by the key of the title's text. The last one is the configuration of an MCP client, such as an assistant."""


def snippet(title: str, address: str) -> str:
    """Return a snippet for the address at which the page was opened, without a trailing slash."""
    return SNIPPETS[title].replace("ADDRESS", address)


def code_html(address: object, *, mcp: bool) -> str:
    """Return the tab's content for a server with or without MCP.

    `address` is that of the page, as the browser sent it. Anything but an http(s) address gives an empty tab.
    """
    if not isinstance(address, str) or not _ADDRESS.fullmatch(address):
        return ""
    address = address.rstrip("/")
    shown = [_shown(title, snippet(title, address)) for title in SNIPPETS if mcp or title != "code.mcp"]
    missing = "" if mcp else f'<p class="missing">{html_text("code.mcp_off")}</p>'
    return f'<p>{html_text("code.intro")} <a href="{address}/docs">/docs</a>.</p>{"".join(shown)}{missing}'


def _shown(title: str, code: str) -> str:
    name = title.removeprefix("code.")
    return (
        f'<section class="snippet"><div class="head"><h2 class=part id="code-{name}">{html_text(title)}</h2>'
        f'<button type="button" class="plain" data-copy aria-describedby="code-{name}">'
        f'<span class="ready">{html_text("code.copy")}</span><span class="done">{html_text("code.copied")}</span></button></div>'
        f'<pre tabindex="0" role="region" aria-labelledby="code-{name}"><code data-snippet="{name}">{html.escape(code.rstrip())}</code></pre></section>'
    )
