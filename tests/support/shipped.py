"""The versions of the classifier that the repository ships."""

from cifar.settings import ROOT

VERSIONS = sorted(
    int(folder.name) for folder in (ROOT / "saved_model" / "cifar_classifier").iterdir() if folder.name.isdigit()
)
NEWEST = VERSIONS[-1]
"""The version that a new installation serves."""
