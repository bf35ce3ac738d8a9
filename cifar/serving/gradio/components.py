"""Gradio components that pass the caller's values on unchecked.

Gradio's own components would reject or convert values before our functions see them. The classifier checks every value instead,
so that the page, Gradio's clients and REST get the same answers and the same error messages.

They are classes because Gradio creates a component again from its class when an event updates it. `get_block_name` returns the
name of the component in Gradio's front end that shows it.
"""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import gradio as gr
from gradio import component_meta
from gradio.blocks import BlockFunction
from gradio.data_classes import ImageData, ListFiles
from gradio.processing_utils import save_file_to_cache
from pydantic import model_validator

from cifar.serving.inference.archives import Upload

# Gradio writes a stub file for editors beside each file that defines components. Type checkers would read that copy instead.
component_meta.create_or_modify_pyi = lambda *_: None


_READING = ThreadPoolExecutor(1, "read-uploads")
"""One at a time: whatever is read waits in memory until the queue counts its bytes, or refuses it."""


async def read_photo(upload: Path | None) -> bytes | None:
    """Return the content of an uploaded file, just before it is used; None without one.

    Raises:
        gr.Error: it has been deleted.
    """
    if upload is None:
        return None
    try:
        return await asyncio.get_running_loop().run_in_executor(_READING, upload.read_bytes)
    except OSError as error:
        raise gr.Error("The upload was deleted. Choose the photo again.", print_exception=False) from error


class Photo(gr.Image):
    """Passes on the bytes of the uploaded file.

    `gr.Image` would decode the image first: without our pixel limit, with other error messages and other colour conversion.
    """

    def get_block_name(self) -> str:
        return "image"

    def example_payload(self) -> Any:
        """Return the value that Gradio's generated code examples send."""
        return {"path": "photo.jpg", "meta": {"_type": "gradio.FileData"}}

    def api_info(self) -> dict[str, Any]:
        """Return the schema that clients show. Gradio's promises that a URL is fetched."""
        return {**super().api_info(), "additional_description": "A file on your computer: handle_file('photo.jpg')."}

    def preprocess(self, payload: ImageData | None) -> Path | None:
        """Return the path of the uploaded file, or None without one; `read_photo` reads it.

        Gradio holds the first values of a call while it waits for a thread for the next one: 200 calls that named one photo took 1.5 GB.
        """
        return None if payload is None or payload.path is None else Path(payload.path)

    def postprocess(self, value: Path | None) -> ImageData | None:
        """Show a file of the server, such as an example, in the same way as an upload."""
        if value is None:
            return None
        return ImageData(path=save_file_to_cache(value, self.GRADIO_CACHE), orig_name=value.name)


class OneOrMoreFiles(ListFiles):
    """A list of files. A file that was sent without a list is a list of one."""

    @model_validator(mode="before")
    @classmethod
    def _as_list(cls, value: Any) -> Any:
        return [value] if isinstance(value, dict) else value


class Files(gr.File):
    """Passes on the names and paths of the uploaded files, so that they can be read one at a time."""

    def get_block_name(self) -> str:
        return "file"

    def preprocess(self, payload: ListFiles | None) -> list[Upload]:
        files = payload.root if payload else []
        return [Upload(file.orig_name or Path(file.path).name, Path(file.path)) for file in files]


def one_or_more_files(**options: Any) -> Files:
    """Create a `Files` component that takes one file or a list of files."""
    files = Files(file_count="multiple", **options)
    files.data_model = OneOrMoreFiles  # not in an `__init__` of `Files`: Gradio reads the options from its signature
    return files


plain_html = partial(gr.HTML, apply_default_css=False)
"""Creates HTML that has only the page's own styles, without Gradio's for headings, lists and tables."""


class Blocks(gr.Blocks):
    """A page whose functions can be called without their last values, so that calls go on when an endpoint gets a parameter.

    Gradio's clients send the defaults. Of a plain HTTP call with too few values, Gradio would only say so.
    """

    def validate_inputs(self, block_fn: BlockFunction, inputs: list[Any]) -> None:
        inputs += [None] * (len(block_fn.inputs) - len(inputs))


class Integer(gr.Number):
    """Passes on any value, also if it is no number."""

    def get_block_name(self) -> str:
        return "number"

    def preprocess(self, payload: Any) -> Any:
        return payload


class Slider(gr.Slider):
    """Passes on any value: a number that is typed beside the slider can be out of range."""

    def get_block_name(self) -> str:
        return "slider"

    def preprocess(self, payload: Any) -> Any:
        return payload


class Choice(gr.Dropdown):
    """Passes on any choice: one that this process does not know may have been offered by another process."""

    def get_block_name(self) -> str:
        return "dropdown"

    def preprocess(self, payload: Any) -> Any:
        return payload
