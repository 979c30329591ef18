"""The page in a real browser, where Playwright and chromium are installed: narrow and wide, light and dark, in both
languages, with and without a chat."""

import shutil

import pytest

from tests.serving_helper import running

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
if CHROMIUM is None:
    pytest.skip("no chromium is installed", allow_module_level=True)

VIEWS = [(1280, 800, "light", "en-US"), (360, 740, "dark", "zh-CN")]


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as started:
        found = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield found
        found.close()


@pytest.fixture(scope="module", params=[(), ("--chat-format", "chatglm")], ids=["base", "chat"])
def server(request):
    with running("--default-max-tokens", "8", *request.param) as found:
        yield found


@pytest.fixture(params=VIEWS, ids=["wide", "narrow"])
def page(browser, server, request):
    width, height, scheme, locale = request.param
    context = browser.new_context(viewport={"width": width, "height": height}, color_scheme=scheme, locale=locale)
    found, faults, hosts = context.new_page(), [], set()
    found.on("pageerror", lambda error: faults.append(str(error)))
    found.on("request", lambda asked: hosts.add(asked.url.split("/")[2]) if asked.url.startswith("http") else None)
    found.goto(server.url)
    found.wait_for_selector("#model:not(:empty)")
    yield found
    assert not faults and hosts == {server.url.split("/")[2]}
    context.close()


def write(page, section="#fill"):
    page.click(f"{section} .main")
    page.wait_for_selector(f"{section} .main:not([disabled])")


def test_blanks_are_filled_and_marked(page):
    page.fill("#text", "The [MASK] <b>lies</b> at the [MASK].")
    page.fill("#seed", "1")
    write(page)
    assert page.locator("#filled mark").count() == 2
    assert "<b>lies</b> at the" in page.inner_text("#filled") and page.locator("#filled b").count() == 0
    assert page.evaluate("document.documentElement.scrollWidth") <= page.viewport_size["width"]


def test_masks_are_put_where_the_cursor_is(page):
    page.fill("#text", "ab")
    page.focus("#text")
    page.keyboard.press("End")
    page.click("[data-mask='[sMASK]']")
    page.keyboard.type(" c")
    assert page.input_value("#text") == "ab[sMASK] c"
    page.keyboard.press("Control+Enter")
    page.wait_for_selector("#filled mark")


def test_alternatives_can_be_chosen(page):
    page.fill("#text", "He took out [MASK].")
    page.fill("#num_beams", "3")
    page.fill("#max_tokens", "4")
    write(page)
    button = page.locator("#alternatives button").nth(2)
    button.click()
    assert button.inner_text().startswith(page.inner_text("#filled"))


def test_an_answer_can_be_stopped(page, server):
    page.fill("#text", "Once upon a time")
    page.fill("#max_tokens", "500")
    page.click("#fill .main")
    page.wait_for_selector("#filled mark")
    page.click("#fill .stop")
    page.wait_for_selector("#fill .main:not([disabled])")
    assert not page.is_visible("#fill .error")


def test_an_error_is_its_sentence(page):
    page.fill("#text", "word " * 600)
    write(page)
    assert "text too long" in page.inner_text("#fill .error")


def test_the_language_can_be_changed(page):
    before = page.inner_text("#fill .main")
    page.click("#language")
    assert {before, page.inner_text("#fill .main")} == {"Write", "生成"}


def test_a_chat_where_the_model_has_one(page, server):
    if server.server.served.chat_format is None:
        assert not page.is_visible("#tab-chat")
        return
    page.click("#tab-chat")
    for message in ("Hello", "And then?"):
        page.fill("#message", message)
        write(page, "#chat")
    assert page.locator(".said.user").all_inner_texts() == ["Hello", "And then?"]
    assert page.locator(".said.assistant").count() == 2
