"The fixture itself: it finds what is wrong with a page."
from browser import chromium, new_page, overflow, violations


def test_axe_overflow_and_foreign_addresses_are_noticed(new_page):
    page = new_page(390)
    page.goto("data:text/html,<title>a</title><html lang=en><main style='width:600px;color:%23999'>pale<img src='http://example.com/a.png'></main>")
    assert {rule for rule, _, _ in violations(page)} == {"color-contrast", "image-alt"}
    assert overflow(page) > 200 and page.foreign == ["http://example.com/a.png"]
