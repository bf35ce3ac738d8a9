"""Find the files that the cells of a table mean."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path


class Files:
    """Looks below a folder, also for paths of another machine and for names without folder or ending."""

    def __init__(self, folder: Path, *, contained: bool) -> None:
        """Look below `folder`. With `contained`, no path may lead out of it."""
        self._folder = folder
        self._contained = contained
        self._by_name: dict[str, list[Path]] | None = None

    def find(self, cell: str) -> Path | None:
        """Return the file, or None if there is none, or more than one that fits equally well."""
        written = cell.strip().replace("\\", "/")
        parts = [part for part in written.split("/") if part not in {"", "."}]
        if not parts or "\0" in cell:
            return None
        leads_outside = Path(written).is_absolute() or ".." in parts
        try:
            if not (self._contained and leads_outside) and (self._folder / written).is_file():
                return self._folder / written
        except OSError:  # a name that is too long
            return None
        candidates = self._index().get(parts[-1], [])
        shared = [_shared_end(path.relative_to(self._folder).parts[:-1], parts[:-1]) for path in candidates]
        best = [path for path, length in zip(candidates, shared, strict=True) if length == max(shared)]
        return best[0] if len(best) == 1 else None

    def _index(self) -> dict[str, list[Path]]:
        """Return the files below the folder, by name with and without ending."""
        if self._by_name is None:
            self._by_name = defaultdict(list)
            for path in sorted(self._folder.rglob("*")):
                if path.is_file() and path.suffix.lower() not in {".csv", ".tsv", ".txt", ".xml", ".json"}:
                    for name in {path.name, path.stem}:
                        self._by_name[name].append(path)
        return self._by_name


def _shared_end(one: Sequence[str], other: Sequence[str]) -> int:
    """Return how many folders two paths have in common, counted from the end."""
    count = 0
    for a, b in zip(reversed(one), reversed(other), strict=False):
        if a != b:
            break
        count += 1
    return count
