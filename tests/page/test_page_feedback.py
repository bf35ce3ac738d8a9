"""The feedback buttons under an answer, in a real browser."""

from __future__ import annotations

import pytest
from playwright.sync_api import Page, Request, expect
from support.browser import EXAMPLES, expect_label, upload, visit


def is_feedback(request: Request) -> bool:
    return request.url.endswith("/feedback")


def classify(page: Page, name: str) -> None:
    upload(page, EXAMPLES / f"{name}.jpg")
    expect_label(page, name)


def test_one_click_confirms_the_answer(browser, server):
    """The page says thanks; the request names the answer and its label."""
    with visit(browser, server) as page, page.expect_request(is_feedback) as request:
        classify(page, "ship")
        page.locator(".feedback").get_by_role("button", name="Right").click()
        expect(page.locator(".feedback [role=status]")).to_have_text("Thank you.", use_inner_text=True)
        expect(page.locator(".feedback [data-right=ship]")).to_have_attribute("aria-pressed", "true")
    feedback = request.value.post_data_json
    assert feedback["label"] == "ship"
    assert len(feedback["request_id"]) == 32


def test_the_right_class_can_be_chosen_and_changed_by_keyboard(browser, server):
    """The second choice replaces the first."""
    with visit(browser, server) as page:
        classify(page, "cat")
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


def test_the_buttons_are_chinese_and_an_error_is_shown_below_them(browser, server):
    """After an error of the server the buttons stay, so that the next try can succeed."""
    with visit(browser, server, locale="zh-CN") as page:
        classify(page, "frog")
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
def test_axe_finds_no_problem_with_the_feedback_buttons(browser, server, scheme):
    """It checks them with all choices shown, in the light and the dark theme."""
    from axe_playwright_python.sync_playwright import Axe

    with visit(browser, server, scheme=scheme) as page:
        classify(page, "dog")
        page.get_by_role("button", name="Wrong, it is …").click()
        page.get_by_role("button", name="none of these").click()
        expect(page.locator(".feedback [role=status]")).not_to_be_empty()
        found = Axe().run(page, context=".feedback").response["violations"]
        assert [violation["id"] for violation in found] == []
