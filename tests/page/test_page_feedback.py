"""The buttons under an answer, in a real browser: by mouse, by keyboard, in both languages, and when something is wrong."""

from __future__ import annotations

import pytest
from playwright.sync_api import Page, Request, expect
from support.page_visits import EXAMPLES, expect_label, upload, visit


def sent(request: Request) -> bool:
    return request.url.endswith("/feedback")


def answered(page: Page, name: str) -> Page:
    upload(page, EXAMPLES / f"{name}.jpg")
    expect_label(page, name)
    return page


def test_one_press_says_that_the_answer_is_right(browser, server):
    """A quiet word of thanks in place; the request that goes out names the answer and its label."""
    with visit(browser, server) as page, page.expect_request(sent) as request:
        answered(page, "ship")
        page.locator(".feedback").get_by_role("button", name="Right").click()
        expect(page.locator(".feedback [role=status]")).to_have_text("Thank you.", use_inner_text=True)
        expect(page.locator(".feedback [data-right=ship]")).to_have_attribute("aria-pressed", "true")
    said = request.value.post_data_json
    assert said["label"] == "ship"
    assert len(said["request_id"]) == 32


def test_by_keyboard_the_right_class_is_chosen_and_chosen_again(browser, server):
    """Wrong, it is a dog; no, it is none of these: the second word replaces the first."""
    with visit(browser, server) as page:
        answered(page, "cat")
        opener = page.get_by_role("button", name="Wrong, it is …")
        expect(page.locator(".feedback .choices")).to_be_hidden()
        opener.focus()
        page.keyboard.press("Enter")
        expect(opener).to_have_attribute("aria-expanded", "true")
        choices = page.locator(".feedback .choices button")
        expect(choices).to_have_count(10)  # the nine other classes, and none of these
        for name, place in (("dog", 4), ("none", 9)):
            choices.nth(place).focus()
            with page.expect_response(lambda response: response.url.endswith("/feedback")) as response:
                page.keyboard.press("Space")
            assert response.value.json()["label"] == name
        pressed = page.locator(".feedback [aria-pressed=true]")
        expect(pressed).to_have_count(1)
        expect(pressed).to_have_text("none of these", use_inner_text=True)


def test_the_buttons_speak_chinese_and_an_error_stands_in_place(browser, server):
    """A server without its database: the sentence is there, the buttons stay, and the next try may succeed."""
    with visit(browser, server, locale="zh-CN") as page:
        answered(page, "frog")
        body = '{"error": "Feedback cannot be stored now.", "code": "records_unavailable", "request_id": "x"}'
        page.route("**/feedback", lambda route: route.fulfill(status=503, body=body))
        right = page.locator(".feedback [data-right=frog]")
        expect(right).to_have_text("正确", use_inner_text=True)
        right.click()
        status = page.locator(".feedback [role=status]")
        expect(status).to_contain_text("反馈暂时无法保存", use_inner_text=True)
        page.unroute("**/feedback")
        right.click()
        expect(status).to_have_text("谢谢反馈。", use_inner_text=True)
        assert "problem" not in (status.get_attribute("class") or "")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_buttons_can_be_used_by_everybody(browser, server, scheme):
    """axe-core finds nothing wrong with them, opened."""
    from axe_playwright_python.sync_playwright import Axe

    with visit(browser, server, scheme=scheme) as page:
        answered(page, "dog")
        page.get_by_role("button", name="Wrong, it is …").click()
        page.get_by_role("button", name="none of these").click()
        expect(page.locator(".feedback [role=status]")).not_to_be_empty()
        found = Axe().run(page, context=".feedback").response["violations"]
        assert [violation["id"] for violation in found] == []
