"""The size of a model's input, and the number of views of one picture."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field

Views = Literal[1, 2, 6, "auto"]
"""A number of views; `auto`: 6 for a photograph, 1 for any other picture. See `cifar.images.views`."""


CHANNELS = (1, 3, 4)
"""Numbers of channels that the input of a model may have when it is exported: grey, colours, colours and transparency."""


class ImageSpec(BaseModel):
    """The size of one model input. Pixels are `uint8` in [0, 255], channels last."""

    model_config = ConfigDict(frozen=True)

    height: int = Field(ge=1)
    width: int = Field(ge=1)
    channels: Literal[1, 3]

    @classmethod
    def from_shape(cls, shape: tuple[int, int, int]) -> Self:
        """Make a spec from the shape of an image array, `(height, width, channels)`."""
        height, width, channels = shape
        return cls.model_validate({"height": height, "width": width, "channels": channels})

    @property
    def shape(self) -> tuple[int, int, int]:
        """Height, width, channels."""
        return self.height, self.width, self.channels
