"""The HTML report as a browser shows it. Skipped where there is no Chromium."""

import pytest
from browser import CHROMIUM, Browser, NoBrowserError
from reports import HOSTILE, report

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium: apt-get install chromium")


@pytest.fixture(scope="module")
def browser():
    try:
        opened = Browser()
    except NoBrowserError as error:
        pytest.skip(f"{CHROMIUM} does not start: {error}")
    with opened:
        yield opened


@pytest.fixture
def shown(browser, tmp_path):
    """The page of a full report in a window for desktops."""
    return opened(browser, tmp_path, report())


def opened(browser, folder, content):
    (folder / "report.html").write_text(content.to_html(), encoding="utf-8")
    browser.messages.clear()
    browser.requests.clear()
    browser.size(1280)
    browser.prefers("light")
    browser.open(folder / "report.html")
    return browser


def column(page, section, title):
    """What a table shows in a column, and how to click on its head."""
    find = f"[...document.querySelectorAll('#{section} th')].find(h => h.innerText.trim() == '{title}')"
    cells = f"(h => [...h.closest('table').tBodies[0].rows].map(r => r.cells[h.cellIndex].innerText))({find})"
    return page.evaluate(cells), f"{find}.querySelector('button').click()"


def test_nothing_fails_and_nothing_is_asked_for(shown):
    assert shown.messages == []
    assert [address.split(":")[0] for address in shown.requests] == ["file"]


def test_hostile_names_run_nothing(browser, tmp_path):
    page = opened(browser, tmp_path, report(name=HOSTILE))
    assert page.messages == []
    assert len(page.requests) == 1
    assert page.evaluate("document.querySelectorAll('img').length") == 0


OPEN = "document.querySelectorAll('details').forEach(d => d.open = true)"
ALL_LAYERS = "layers details"


def test_tables_sort_up_and_down_with_what_has_no_number_last(shown):
    shown.evaluate(OPEN)
    before, click = column(shown, ALL_LAYERS, "MACs")
    shown.evaluate(click)
    up, _ = column(shown, ALL_LAYERS, "MACs")
    assert up == before[::-1]  # 1 G, 500 M, 333 M, ...: as text they would be in another order
    shown.evaluate(click)
    assert column(shown, ALL_LAYERS, "MACs")[0] == before
    sorting = "document.querySelector('#layers details th[aria-sort]').ariaSort"
    assert shown.evaluate(sorting) == "descending"
    for direction in ("ascending", "descending"):
        shown.evaluate(column(shown, ALL_LAYERS, "Scale")[1])
        assert shown.evaluate(sorting) == direction
        assert column(shown, ALL_LAYERS, "Scale")[0][-1] == "–"
    shown.evaluate(column(shown, ALL_LAYERS, "Layer")[1])
    assert column(shown, ALL_LAYERS, "Layer")[0][:3] == ["conv0", "conv1", "conv2"]


def test_tables_sort_from_the_keyboard(shown):
    shown.evaluate(OPEN)
    shown.evaluate("[...document.querySelectorAll('#layers details th button')].at(-1).focus()")
    for kind in ("keyDown", "keyUp"):
        shown.call("Input.dispatchKeyEvent", type=kind, key="Enter", code="Enter", windowsVirtualKeyCode=13, text="\r")
    assert shown.evaluate("document.querySelector('#layers details th:last-child').ariaSort") == "ascending"


def test_a_filter_hides_rows(shown):
    shown.evaluate(OPEN)
    field = "document.querySelector('#layers details input')"
    shown.evaluate(f"{field}.value = 'CONV1'; {field}.dispatchEvent(new Event('input'))")
    rows = shown.evaluate(
        "[...document.querySelectorAll('#layers details tbody tr')].filter(r => r.offsetHeight).length"
    )
    assert rows == 11  # conv1, conv10 to conv19


def test_charts_are_there_and_have_a_size(shown):
    kinds = ("dumbbell", "lines", "boxes", "histogram", "pareto")
    wide = "s => s.checkVisibility() && s.getBoundingClientRect().width > 100"
    count = f"[...document.querySelectorAll('svg.{{}}')].filter({wide}).length"
    assert [shown.evaluate(count.format(kind)) for kind in kinds] == [2, 1, 2, 6, 1]
    shown.evaluate("document.querySelectorAll('details').forEach(d => d.open = true)")
    assert shown.evaluate(count.format("histogram")) == 20
    unnamed = "[...document.querySelectorAll('svg')].filter(s => !s.getAttribute('aria-label')).length"
    assert shown.evaluate(unnamed) == 0


def test_the_noisiest_layers_come_first_and_all_are_a_click_away(shown):
    rows, _ = column(shown, "layers", "Layer")
    assert rows == [f"conv{place}" for place in range(19, 9, -1)]
    shown.evaluate(OPEN)
    assert len(column(shown, ALL_LAYERS, "Layer")[0]) == 20


@pytest.mark.parametrize("count", [20, 300])
@pytest.mark.parametrize("width", [390, 1280])
def test_names_on_the_axis_can_be_read(browser, tmp_path, count, width):
    page = opened(browser, tmp_path, report(layers=count, name="/backbone/features/conv"))
    page.size(width, mobile=width < 500)
    labels = "[...document.querySelectorAll('svg.lines text[transform]')]"
    names = page.evaluate(f"{labels}.map(t => t.textContent)")
    assert 12 <= len(names) <= 24
    assert names[0].startswith("…")
    assert names[0].endswith("conv0 1")
    inside = "(t => { const s = t.closest('svg').getBoundingClientRect(), b = t.getBoundingClientRect();"
    inside += " return b.left >= s.left - 2 && b.bottom <= s.bottom + 2 && b.height > 8 })"
    assert page.evaluate(f"{labels}.every({inside})")


def test_marks_stay_inside_their_charts(shown):
    shown.evaluate("document.querySelectorAll('details').forEach(d => d.open = true)")
    outside = """[...document.querySelectorAll('svg')].filter(svg => { const [,, w, h] = svg.getAttribute('viewBox')
        .split(' ').map(Number); return [...svg.querySelectorAll('path, circle, rect, line')].some(m => {
        const b = m.getBBox(); return b.x < -1 || b.y < -1 || b.x + b.width > w + 1 || b.y + b.height > h + 1 })
        }).map(svg => svg.getAttribute('aria-label'))"""
    assert shown.evaluate(outside) == []


def test_light_and_dark_follow_the_system_until_somebody_chooses(shown):
    color = "getComputedStyle(document.body).backgroundColor"
    light = shown.evaluate(color)
    shown.prefers("dark")
    dark = shown.evaluate(color)
    shown.evaluate(
        "new Promise(done => requestAnimationFrame(() => setTimeout(done)))"
    )  # the page gets the event a frame later
    assert brightness(light) > 200 > 50 > brightness(dark)
    assert shown.evaluate("document.getElementById('theme').textContent") == "Light"
    shown.evaluate("document.getElementById('theme').click()")
    assert shown.evaluate(color) == light
    shown.evaluate("document.getElementById('theme').click()")
    assert shown.evaluate(color) == dark


def brightness(color):
    return sum(int(part) for part in color[4:-1].split(",")) / 3


@pytest.mark.parametrize("name", ["", HOSTILE])
@pytest.mark.parametrize("width", [390, 768])
def test_nothing_is_wider_than_the_screen(browser, tmp_path, name, width):
    page = opened(browser, tmp_path, report(name=name))
    page.size(width, mobile=width < 500)
    page.evaluate("document.querySelectorAll('details').forEach(d => d.open = true)")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.evaluate("getComputedStyle(document.querySelector('.wide')).overflowX") == "auto"


def test_a_printed_page_holds_everything(shown):
    shown.size(720)  # A4 within its margins
    shown.call("Emulation.setEmulatedMedia", media="print")
    try:
        assert shown.evaluate("document.documentElement.scrollWidth") <= 720
        assert shown.evaluate("getComputedStyle(document.querySelector('nav')).display") == "none"
    finally:
        shown.call("Emulation.setEmulatedMedia", media="")


def test_text_can_be_read_on_both_grounds(shown):
    """WCAG AA asks for a contrast of 4.5 between text and what is behind it."""
    contrast = """(() => { const parse = c => c.match(/[\\d.]+/g).map(Number).slice(0, 3).map(v => v / 255)
        .map(v => v <= .03928 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4);
        const light = c => parse(c).reduce((s, v, i) => s + v * [.2126, .7152, .0722][i], 0);
        const style = getComputedStyle; return ['.lead', '.badge', '.card .value', '.card .note', '.ends', 'th button',
        '.links a', 'td', '.warning', 'figcaption span'].map(q => { const e = document.querySelector(q);
        let p = e; while (style(p).backgroundColor == 'rgba(0, 0, 0, 0)') p = p.parentElement;
        const [a, b] = [light(style(e).color), light(style(p).backgroundColor)];
        return [q, (Math.max(a, b) + .05) / (Math.min(a, b) + .05)] }).filter(([, c]) => c < 4.5) })()"""
    for scheme in ("light", "dark"):
        shown.prefers(scheme)
        assert shown.evaluate(contrast) == [], scheme
