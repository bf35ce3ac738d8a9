"""The same answer from code: one snippet a way in, each complete and ready to run beside a file `photo.jpg`.

Each function takes the address at which the page was opened, without a slash at the end. Tests run what they give.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import NamedTuple


def curl(address: str) -> str:
    """REST from the shell: the answer as JSON."""
    return f'curl -F image=@photo.jpg -F top_k=3 "{address}/predict"'


def python_client(address: str) -> str:
    """`gradio_client`, which writes down nothing but the call."""
    return f"""# pip install gradio_client
from gradio_client import Client, handle_file

client = Client("{address}/")
answer = client.predict(handle_file("photo.jpg"), top_k=3, api_name="/predict")
print(answer["predicted_class"], answer["confidence"])
"""


def python_requests(address: str) -> str:
    """REST with the library that most people have."""
    return f"""# pip install requests
import requests

with open("photo.jpg", "rb") as photo:
    response = requests.post(
        "{address}/predict",
        files={{"image": photo}},
        data={{"top_k": 3}},
        timeout=30,
    )
answer = response.json()
if not response.ok:
    raise SystemExit(answer["error"])
print(answer["predicted_class"], answer["confidence"])
"""


def javascript(address: str) -> str:
    """The JavaScript client, under Node."""
    return f"""// npm install @gradio/client; save as classify.mjs, run: node classify.mjs
import {{ readFile }} from "node:fs/promises";
import {{ Client }} from "@gradio/client";

const client = await Client.connect("{address}/");
const image = new Blob([await readFile("photo.jpg")]);
const answer = await client.predict("/predict", {{ image, top_k: 3 }});
console.log(answer.data[0].predicted_class, answer.data[0].confidence);
client.close();
"""


def mcp(address: str) -> str:
    """The configuration of an MCP client, such as an assistant."""
    return json.dumps({"mcpServers": {"cifar-space": {"url": f"{address}/gradio_api/mcp/"}}}, indent=2) + "\n"


class Snippet(NamedTuple):
    """One way in."""

    name: str
    """Its key among the page's texts, after `code.`."""
    write: Callable[[str], str]


SNIPPETS = (
    Snippet("curl", curl),
    Snippet("python_client", python_client),
    Snippet("python_requests", python_requests),
    Snippet("javascript", javascript),
    Snippet("mcp", mcp),
)
