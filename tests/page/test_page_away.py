"""A server that is away for a while: nobody loses work, and the page says so."""

from __future__ import annotations

from contextlib import ExitStack

import pytest
from playwright.sync_api import expect
from support.browser import EXAMPLES, FILES, WAIT_MS, choose_many, expect_label, open_tab, upload, visit
from support.servers import free_port, running


@pytest.mark.parametrize("tab", ["classify", "batch"])
def test_work_goes_on_by_itself_after_a_restart_of_the_server(browser, tmp_path, tab):
    """A restart in a batch used to turn every photo that was left into an error, and a photo had to be chosen again."""
    port, address = free_port(), ""
    (tmp_path / "first").mkdir()
    (tmp_path / "second").mkdir()
    common = {"CIFAR_RECORDS": "false"}
    with ExitStack() as first:
        address = first.enter_context(running(tmp_path / "first", port=port, **common)).address
        with visit(browser, address) as page:
            open_tab(page, tab)
            if tab == "batch":
                page.route("**/predict?**", lambda route: (page.wait_for_timeout(150), route.continue_()))
                choose_many(page, "batch", FILES * 3)
                expect(page.locator("#batch tbody tr").nth(2)).to_be_visible(timeout=WAIT_MS)
                first.close()
                expect(page.locator("#batch .progress")).to_contain_text(
                    "The server does not answer", use_inner_text=True, timeout=WAIT_MS
                )
                done = page.locator("#batch tbody tr").count()
                assert done < 30
            else:
                upload(page, EXAMPLES / "cat.jpg")
                expect_label(page, "cat")
                first.close()
                upload(page, EXAMPLES / "ship.jpg")
                expect(page.locator("#page-problem")).to_contain_text(
                    "The server does not answer.", use_inner_text=True
                )
                expect(page.locator("#answer .answer")).to_be_hidden()
            with running(tmp_path / "second", port=port, **common):
                if tab == "batch":
                    expect(page.locator("#batch .summary")).to_contain_text(
                        "30 of 30 done.", use_inner_text=True, timeout=WAIT_MS
                    )
                    expect(page.locator("#batch .failed")).to_have_count(0)
                else:
                    expect_label(page, "ship")
                    expect(page.locator("#answer .answer")).to_be_visible()
                    expect(page.locator("#page-problem")).to_be_hidden()


def test_failed_rows_of_a_batch_can_be_tried_again(browser, server):
    """The rows that were answered are not sent again, and the order of the files is kept."""
    with visit(browser, server) as page:
        sent = []

        def fail_some(route):
            sent.append(route)
            if len(sent) in {2, 3}:
                route.fulfill(status=500, body='{"error": "An internal error occurred.", "code": "internal_error"}')
            else:
                route.continue_()

        page.route("**/predict?**", fail_some)
        open_tab(page, "batch")
        choose_many(page, "batch", FILES[:6])
        summary = page.locator("#batch .summary")
        expect(summary).to_contain_text("6 of 6 done. 2 with an error.", use_inner_text=True, timeout=WAIT_MS)
        page.locator("#batch [data-do=retry]").click()
        expect(summary).to_have_text("6 of 6 done.", use_inner_text=True, timeout=WAIT_MS)
        assert len(sent) == 8
        assert page.locator("#batch tbody th").all_inner_texts() == [file.name for file in FILES[:6]]
        expect(page.locator("#batch [data-do=retry]")).to_be_hidden()


def test_an_upload_that_fails_leaves_no_old_answer_beside_an_empty_field(browser, server):
    """It would look like the answer to the new photo."""
    with visit(browser, server) as page:
        upload(page, EXAMPLES / "cat.jpg")
        expect_label(page, "cat")
        body = '{"error": "Too many requests.", "code": "rate_limited"}'
        page.route("**/gradio_api/upload**", lambda route: route.fulfill(status=429, body=body))
        upload(page, EXAMPLES / "ship.jpg")
        expect(page.locator("#page-problem")).to_contain_text("Too many requests", use_inner_text=True)
        expect(page.locator("#answer .answer")).to_be_hidden()
