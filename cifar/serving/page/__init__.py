"""The page at `/`: what its tabs show and the scripts and styles that it sends to the browser."""

import cifar.serving.gradio  # noqa: F401  # before anything here imports Gradio
