"""Measures how long a person waits in a real Chromium, from a photo dropped on the page until its label is shown.

    python benchmarks/page.py --photos DIR [--address http://localhost:7860]

DIR contains photos, in any folders below it. Each is dropped once, so that no answer comes from the cache. Start the server
first. Prints the median and the longest wait, the median time in the model, and when the page was first painted.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
from pathlib import Path

from playwright.sync_api import Page, sync_playwright

DROP = """async ([bytes, name]) => {
  const data = new DataTransfer();
  data.items.add(new File([new Uint8Array(bytes)], name, {type: "image/jpeg"}));
  const before = document.querySelector("#answer .answer");
  const target = document.querySelector("#photo button");
  const shown = new Promise(resolve => new MutationObserver((_, watcher) => {
    const now = document.querySelector("#answer .answer");
    if (now && now !== before) { watcher.disconnect(); requestAnimationFrame(() => resolve(performance.now())); }
  }).observe(document.querySelector("#answer"), {childList: true, subtree: true}));
  const began = performance.now();
  for (const kind of ["dragenter", "dragover", "drop"])
    target.dispatchEvent(new DragEvent(kind, {dataTransfer: data, bubbles: true, cancelable: true}));
  return await shown - began;
}"""


def drop(page: Page, photo: Path) -> tuple[float, float]:
    """Return the milliseconds until the label is painted, and how many of them the model took."""
    waited = page.evaluate(DROP, [list(photo.read_bytes()), photo.name])
    caption = page.locator("#answer figcaption").inner_text()
    in_model = next(line for line in caption.splitlines() if "in the model" in line)
    page.get_by_role("button", name="Remove Image").click()
    page.locator("#answer .empty").wait_for()
    return waited, float(in_model.split()[0])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=Path, required=True)
    parser.add_argument("--address", default="http://localhost:7860")
    parser.add_argument("-n", type=int, default=20)
    options = parser.parse_args()
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=shutil.which("chromium"), args=["--no-sandbox", "--disable-gpu"]
        )
        page = browser.new_page(viewport={"width": 1200, "height": 900}, locale="en-US")
        page.goto(options.address)
        page.locator("#photo input[type=file]").wait_for(state="attached")
        paints = page.evaluate(
            "Object.fromEntries(performance.getEntriesByType('paint').map(e => [e.name, e.startTime]))"
        )
        usable = page.evaluate("performance.now()")
        photos = sorted(options.photos.rglob("*.jpg"))[: options.n + 1]
        times = [drop(page, photo) for photo in photos][1:]  # the first one warms up
        browser.close()
    waited, in_model = zip(*times, strict=True)
    print(
        json.dumps(
            {
                "photos": len(times),
                "label_ms_median": round(statistics.median(waited), 1),
                "label_ms_worst": round(max(waited), 1),
                "model_ms_median": round(statistics.median(in_model), 2),
                "first_paint_ms": round(paints["first-paint"]),
                "first_contentful_paint_ms": round(paints["first-contentful-paint"]),
                "photo_can_be_dropped_ms": round(usable),
            },
            indent=1,
        )
    )


if __name__ == "__main__":
    main()
