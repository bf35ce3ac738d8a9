"""Serves the exported versions: HTTP API and page."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType


class _NoEditorStubs(MetaPathFinder):
    """Keeps Gradio from writing a `.pyi` file for each component class that it defines.

    That is help for editors, costs half of the time that importing Gradio takes, and writes into our own folder.
    Gradio has no switch for it. Where its internals have changed, this changes nothing.
    """

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        """Load `gradio.component_meta` as ever, then take the writer out."""
        spec = PathFinder.find_spec(name, path, target) if name == "gradio.component_meta" else None
        if spec is None or spec.loader is None:
            return None
        execute = spec.loader.exec_module

        def exec_module(module: ModuleType) -> None:
            execute(module)
            module.create_or_modify_pyi = lambda *_: None  # type: ignore[attr-defined]

        spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec


sys.meta_path.insert(0, _NoEditorStubs())
