"""The tabs Batch and Compare in a real browser."""

from __future__ import annotations

import csv
import io
import json

import httpx2
import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import Page, expect
from support.browser import (
    EXAMPLES,
    FILES,
    WAIT_MS,
    choose_many,
    classify_many,
    count_requests,
    finished,
    names,
    open_tab,
    saved,
    visit,
    zip_file,
)
from support.hostile_files import zipped
from support.servers import CAT

from cifar.models.predictor import Prediction

SERVER = "two_version_server"


def twenty_files(bad_one: bytes) -> list[dict]:
    """Return nineteen photos and, as the tenth file, one that is not an image."""
    photos = [(f"{place}-{file.name}", file.read_bytes()) for place in (1, 2) for file in FILES][:19]
    photos.insert(9, ("bad.png", bad_one))
    return [{"name": name, "mimeType": "image/jpeg", "buffer": content} for name, content in photos]


def test_an_unreadable_file_in_a_batch_of_twenty_is_a_row_with_its_error(page):
    """The other nineteen rows have label, score and thumbnail; the counts and both downloads agree with the table."""
    classify_many(page, "batch", twenty_files(b"just text"), "20 of 20 done. 1 with an error.")
    assert page.locator("#batch progress").evaluate("bar => [bar.value, bar.max]") == [20, 20]
    rows = page.locator("#batch tbody tr")
    expect(rows).to_have_count(20)
    expect(rows.nth(9)).to_contain_text("bad.png")
    expect(rows.nth(9)).to_contain_text("whatever its name says")
    expect(rows.nth(0)).to_contain_text("airplane")
    expect(page.locator("#batch tbody img")).to_have_count(19)
    counts = page.locator("#batch .counts li")
    expect(counts).to_have_count(11)
    numbers = [int(text) for text in counts.locator(".score").all_inner_texts()]
    assert sorted(numbers) == [1, 1, *[2] * 9]

    table = list(csv.DictReader(io.StringIO(saved(page, "batch", "csv").removeprefix("\ufeff"))))
    assert [row["name"] for row in table] == [file["name"] for file in twenty_files(b"")]
    assert (table[0]["answer"], table[0]["label"], table[0]["version"], table[0]["error"]) == (
        "airplane",
        "airplane",
        "1",
        "",
    )
    assert "not a supported image" in table[9]["error"]
    records = json.loads(saved(page, "batch", "json"))
    assert [record.get("label", "") for record in records] == [row["label"] for row in table]
    assert len(records[0]["top_k"]) == 3


@pytest.mark.parametrize("tab", ["batch", "compare"])
def test_a_batch_averages_as_many_views_as_are_chosen(page, tab):
    """Every request of the batch has the number; the choice of versions is another one."""
    open_tab(page, tab)
    page.locator(f"#{tab} [data-views]").select_option("6")
    with page.expect_request("**/predict?*") as sent:
        choose_many(page, tab, [FILES[3]])
    assert "views=6" in sent.value.url
    finished(page, tab, "1 of 1 done.")
    record = json.loads(saved(page, tab, "json"))[0]
    answer = httpx2.post(sent.value.url, content=FILES[3].read_bytes(), headers={"Content-Type": "image/jpeg"}).json()
    assert (record["first"] if tab == "compare" else record)["top_k"] == answer["top_k"]


def test_the_progress_bar_and_the_counts_are_complete_when_the_summary_appears(page):
    """They are drawn four times a second, but must not lag behind the summary."""
    open_tab(page, "batch")
    page.evaluate("""() => {
        const box = document.querySelector("#batch");
        new MutationObserver(() => {
            if (box.querySelector(".summary")?.textContent)
                window.atTheEnd ??= [box.querySelector("progress").value, box.querySelectorAll(".counts li").length];
        }).observe(box, { childList: true, subtree: true });
    }""")
    choose_many(page, "batch", [FILES[0]])
    finished(page, "batch", "1 of 1 done.")
    assert page.evaluate("window.atTheEnd") == [1, 1]


def test_on_a_phone_the_table_fits_and_the_bar_is_gone_at_the_end(browser, two_version_server):
    """Chinese text can wrap anywhere and must not squeeze the thumbnails."""
    with visit(browser, two_version_server, width=390, locale="zh-CN") as page:
        classify_many(page, "batch", twenty_files(b"just text"), "已完成 20/20")
        assert {image.bounding_box()["width"] for image in page.locator("#batch tbody img").all()} == {48}
        assert page.locator("#batch .wide").evaluate("table => table.scrollWidth <= table.clientWidth")
        expect(page.locator("#batch .run")).to_be_hidden()


def test_a_table_that_scrolls_has_a_shadow_where_it_continues(browser, two_version_server):
    """Phones show no scroll bar before the first scroll."""
    with visit(browser, two_version_server, width=390) as page:
        open_tab(page, "model")
        table = page.locator("#model .wide:has(.signatures)")

        def shaded() -> list[bool]:
            """Return whether the left and the right edge are dark, by the median of their pixels: text may cover some."""
            picture = np.asarray(Image.open(io.BytesIO(table.screenshot())).convert("L"))
            return [bool(np.median(picture[:, at]) < 230) for at in (1, -2)]

        assert shaded() == [False, True]
        table.evaluate("table => table.scrollTo(table.scrollWidth, 0)")
        assert shaded() == [True, False]
        page.set_viewport_size({"width": 1200, "height": 900})
        assert shaded() == [False, False]


def test_on_a_phone_each_compared_photo_is_a_card_that_fits(browser, two_version_server):
    """A table with two answers in a row had to be scrolled sideways. It is still read out as a table, and can be sorted."""
    with visit(browser, two_version_server, width=390) as page:
        classify_many(page, "compare", [*FILES[:2], EXAMPLES / "README.md"], "3 of 3 done.")
        assert page.locator("#compare .wide").evaluate("table => table.scrollWidth <= table.clientWidth")
        rows = page.get_by_role("table", name="Results").get_by_role("row")
        expect(rows).to_have_count(4)
        photo, name, first, second, verdict = (rows.nth(1).locator("> *").nth(at).bounding_box() for at in range(5))
        assert photo["x"] < name["x"] == first["x"] == verdict["x"] < second["x"]
        assert name["y"] < first["y"] == second["y"] < verdict["y"]
        expect(rows.nth(1).get_by_role("cell").nth(2)).to_contain_text("Version 2", use_inner_text=True)
        rows.first.get_by_role("button", name="File").click()
        expect(rows.nth(1)).to_contain_text("airplane.jpg")
        page.get_by_label("Show only disagreements").check()
        expect(page.locator("#compare tbody .same:visible")).to_have_count(0)


def test_a_click_on_a_header_sorts_the_table(page):
    """The second click reverses the order, screen readers learn the order, and failed rows stay at the end."""
    classify_many(page, "batch", [FILES[4], EXAMPLES / "README.md", FILES[0], FILES[2]], "4 of 4 done.")
    assert names(page) == ["deer.jpg", "README.md", "airplane.jpg", "bird.jpg"]
    by_name = page.locator("#batch [data-key=name]")
    by_name.click()
    assert names(page) == ["airplane.jpg", "bird.jpg", "deer.jpg", "README.md"]
    expect(page.locator("#batch th[aria-sort=ascending]")).to_have_count(1)
    by_name.click()
    assert names(page) == ["deer.jpg", "bird.jpg", "airplane.jpg", "README.md"]
    page.locator("#batch [data-key=score0]").click()
    scores = [float(text.removesuffix("\u00a0%")) for text in page.locator("#batch .number").all_inner_texts()]
    assert scores == sorted(scores, reverse=True)


def test_a_cancelled_batch_sends_nothing_more(page):
    """The finished rows stay, and the other photos are never sent."""
    sent = []

    def slowly(route):
        sent.append(route)
        if len(sent) <= 4:
            route.continue_()  # later ones are held, as by a slow server

    page.route("**/predict?**", slowly)
    open_tab(page, "batch")
    choose_many(page, "batch", twenty_files(b"just text"))
    expect(page.locator("#batch tbody tr")).to_have_count(4, timeout=WAIT_MS)
    page.locator("#batch [data-do=cancel]").click()
    finished(page, "batch", "Cancelled: 4 of 20 done.")
    expect(page.locator("#batch [data-do=cancel]")).to_be_hidden()
    asked = len(sent)
    assert asked <= 8, "four answered, at most four running"
    page.wait_for_timeout(500)
    assert len(sent) == asked
    assert len(json.loads(saved(page, "batch", "json"))) == 4


def test_a_photo_is_sent_again_after_the_wait_that_the_server_asked_for(page):
    """A status 429 or 503 with Retry-After says nothing about the photo."""
    refused = []

    def refuse_once(route):
        if refused:
            route.continue_()
        else:
            refused.append(route)
            body = json.dumps({"error": "Too many requests.", "code": "rate_limited"})
            route.fulfill(status=429, headers={"Retry-After": "1"}, body=body)

    page.route("**/predict?**", refuse_once)
    classify_many(page, "batch", FILES[:1], "1 of 1 done.")
    expect(page.locator("#batch tbody tr")).to_contain_text("airplane")


def test_a_file_name_is_never_interpreted_as_html_or_a_formula(page):
    """The names in a zip file can be anything."""
    evil = '=cmd<img src=x onerror="document.title=1">.jpg'
    classify_many(page, "batch", zip_file(zipped([(evil, CAT)])), "1 of 1 done.")
    assert names(page) == [evil]
    assert page.title() == "CIFAR Space"
    assert saved(page, "batch", "csv").splitlines()[1].startswith("\"'=cmd<img")


@pytest.mark.parametrize("tab", ["batch", "compare"])
def test_numbers_in_the_csv_are_numbers_and_only_texts_are_guarded_against_formulas(page, tab):
    """The score of a typical photo is negative; with an apostrophe a spreadsheet could not compute with it."""
    names = ["-2.jpg", "+1.jpg", "@x.jpg", "=1.jpg", "cat.jpg"]
    answer_with(page, ood_score=-1.5615, score=0.965)
    classify_many(page, tab, zip_file(zipped([(name, CAT) for name in names])), "5 of 5 done.")
    lines = saved(page, tab, "csv").removeprefix("\ufeff")
    table = list(csv.DictReader(io.StringIO(lines)))
    assert [row["name"] for row in table] == ["'-2.jpg", "'+1.jpg", "'@x.jpg", "'=1.jpg", "cat.jpg"]
    for prefix in [""] if tab == "batch" else ["first.", "second."]:
        assert [float(row[f"{prefix}ood_score"]) for row in table] == [-1.5615] * 5
    assert ",-1.5615," in lines


def answer_with(page: Page, **by_version: object) -> None:
    """Answer each request of a batch with a cat of this score and OOD score, or of those for the version."""

    def answer(route):
        version = int(route.request.url.partition("version=")[2] or 1)
        given = by_version.get(f"v{version}", by_version)
        top = [{"label": "cat", "score": given["score"]}, {"label": "dog", "score": 1 - given["score"]}]
        ood = given["ood_score"]
        body = {"predicted_class": "cat", "confidence": given["score"], "top_k": top, "ood_score": ood}
        prediction = Prediction({}, [("cat", given["score"])], ood)
        body |= {"in_distribution": None if ood is None else ood <= 1, "grade": prediction.grade}
        body |= {"model": {"name": "m", "version": version}}
        route.fulfill(status=200, body=json.dumps(body))

    page.route("**/predict?**", answer)


@pytest.mark.parametrize(
    ("score", "ood_score", "grade", "words", "label"),
    [
        (0.96, 0.2, "class", "cat", "cat"),
        (0.55, 0.2, "unsure", "unsure: looks like a cat", "cat"),
        (0.9566, 1.1, "unsure", "unsure: looks like a cat", "cat"),
        (0.8, 1.1, "none", "none of the classes", ""),
        (0.99, 2.5, "none", "none of the classes", ""),
    ],
)
def test_the_table_the_counts_and_the_csv_use_the_words_of_the_tab_classify(
    page, score, ood_score, grade, words, label
):
    """The screen used to say "none of the classes" where the CSV of the same row said "bird, 0.9566"."""
    prediction = Prediction({"cat": score, "dog": 1 - score}, [("cat", score)], ood_score, ood_score <= 1)
    assert prediction.grade == grade
    answer_with(page, score=score, ood_score=ood_score)
    classify_many(page, "batch", [FILES[3]], "1 of 1 done.")
    expect(page.locator("#batch tbody td").nth(1)).to_have_text(words, use_inner_text=True)
    expect(page.locator("#batch .counts .name")).to_have_text(words, use_inner_text=True)
    (row,) = csv.DictReader(io.StringIO(saved(page, "batch", "csv").removeprefix("\ufeff")))
    assert (row["answer"], row["grade"], row["label"], row["score"]) == (
        words,
        grade,
        label,
        str(score) if label else "",
    )
    assert json.loads(saved(page, "batch", "json"))[0]["label"] == (label or None)


@pytest.mark.parametrize(
    ("first", "second", "verdict", "agree"),
    [
        ((0.96, 0.2), (0.97, None), "agree", True),
        ((0.96, 0.2), (0.5, None), "agree, one is unsure", True),
        ((0.8, 1.1), (0.96, None), "disagree", False),
        ((0.8, 1.1), (0.8, 3.0), "agree", True),
    ],
)
def test_two_versions_agree_only_if_their_answers_say_the_same(page, first, second, verdict, agree):
    """The answers "none of the classes" and "cat" are different answers, though both versions have the same first class."""
    both = [{"score": score, "ood_score": ood_score} for score, ood_score in (first, second)]
    open_tab(page, "compare")
    for at, number in enumerate(("1", "2")):
        page.locator("#compare .choices select").nth(at).select_option(number)
    answer_with(page, v1=both[0], v2=both[1])
    classify_many(page, "compare", [FILES[3]], f"They disagree on {int(not agree)} of 1.")
    expect(page.locator("#compare tbody td").last).to_have_text(verdict, use_inner_text=True)
    assert json.loads(saved(page, "compare", "json"))[0]["agree"] is agree


def test_a_long_file_name_may_be_broken_before_its_ending_only(browser, two_version_server):
    """`.jp` at the end of a line and `g` on the next one cannot be read. The text stays the file's name."""
    with visit(browser, two_version_server, width=390) as page:
        name = "IMG_20261126_173012_a_very_long_name.jpeg"
        classify_many(page, "batch", zip_file(zipped([(name, CAT)])), "1 of 1 done.")
        assert names(page) == [name]
        ending = page.locator("#batch tbody .ending")
        expect(ending).to_have_text(".jpeg")
        assert ending.evaluate("e => e.getClientRects().length") == 1


def test_two_versions_are_compared_photo_by_photo(page):
    """Two class names of version 2 are exchanged, so the versions disagree on exactly those two photos."""
    classify_many(page, "compare", FILES, "They disagree on 2 of 10.")
    rows = page.locator("#compare tbody tr")
    assert rows.nth(0).locator("td b").all_inner_texts() == ["airplane", "automobile"]
    expect(rows.nth(0)).to_contain_text("disagree")
    assert rows.nth(3).locator("td b").all_inner_texts() == ["cat", "cat"]
    page.get_by_label("Show only disagreements").check()
    expect(page.locator("#compare tbody tr:visible")).to_have_count(2)
    record = json.loads(saved(page, "compare", "json"))[0]
    assert (record["agree"], record["first"]["label"], record["second"]["version"]) == (False, "airplane", 2)


def test_a_version_compared_with_itself_agrees_on_every_photo(page):
    """Choosing the same version twice is not an error."""
    open_tab(page, "compare")
    page.locator("#compare select").nth(1).select_option("1")
    choose_many(page, "compare", FILES[:2])
    finished(page, "compare", "They disagree on 0 of 2.")


def test_a_batch_sends_at_most_four_photos_at_once(page):
    """More would make other visitors wait."""
    requests = count_requests(page, "**/predict?**")
    classify_many(page, "batch", FILES, "10 of 10 done.")
    assert 1 <= requests["at_once"] <= 4
