"""Gradio's components, handing on what came, unchecked: the classifier checks it, for page and API alike.

They are classes because Gradio makes a component anew from its class when an event sets it. (Gradio also writes a file
`components.pyi` beside this one; git ignores it.)
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gradio as gr
from gradio.data_classes import ImageData, ListFiles
from gradio.processing_utils import save_file_to_cache
from pydantic import model_validator

from cifar.serving.inference.archives import Upload


class Photo(gr.Image):
    """Hands on the bytes of the file.

    Gradio would open the picture first: without our pixel limit, and with errors and an idea of colour of its own.
    """

    def get_block_name(self) -> str:
        """The front end's name for it."""
        return "image"

    def example_payload(self) -> Any:
        """What the page's examples of code send: a file of the caller's."""
        return {"path": "photo.jpg", "meta": {"_type": "gradio.FileData"}}

    def example_value(self) -> Any:
        """The same, as a word."""
        return "photo.jpg"

    def preprocess(self, payload: ImageData | None) -> bytes | None:
        """The uploaded file's content, or None."""
        if payload is None or payload.path is None:
            return None
        try:
            return Path(payload.path).read_bytes()
        except OSError as error:
            raise gr.Error("The upload is no longer here. Choose the photo again.", print_exception=False) from error

    def postprocess(self, value: Path | None) -> ImageData | None:
        """A file of our own, such as an example, as if it had been uploaded."""
        if value is None:
            return None
        return ImageData(path=save_file_to_cache(value, self.GRADIO_CACHE), orig_name=value.name)


class OneOrMoreFiles(ListFiles):
    """What came as files: one that was not put in a list is a list of one."""

    @model_validator(mode="before")
    @classmethod
    def _listed(cls, came: Any) -> Any:
        return [came] if isinstance(came, dict) else came


class Files(gr.File):
    """Hands on where the files are, and what they are called: many, read one at a time."""

    def get_block_name(self) -> str:
        """The front end's name for it."""
        return "file"

    def preprocess(self, payload: ListFiles | None) -> list[Upload]:
        """The uploaded files."""
        files = payload.root if payload else []
        return [Upload(file.orig_name or Path(file.path).name, Path(file.path)) for file in files]


class Integer(gr.Number):
    """Hands on whatever stands where a number should."""

    def get_block_name(self) -> str:
        """The front end's name for it."""
        return "number"

    def preprocess(self, payload: Any) -> Any:
        """What came."""
        return payload


class Slider(gr.Slider):
    """Hands on a number that was typed beside the slider, so that a wrong one gets a sentence in place."""

    def get_block_name(self) -> str:
        """The front end's name for it."""
        return "slider"

    def preprocess(self, payload: Any) -> Any:
        """What came."""
        return payload


class Choice(gr.Dropdown):
    """Hands on a choice without asking whether it was offered: that was to another session, or process."""

    def get_block_name(self) -> str:
        """The front end's name for it."""
        return "dropdown"

    def preprocess(self, payload: Any) -> Any:
        """What came."""
        return payload
