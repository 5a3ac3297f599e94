"""The report page in a real browser: a headless Chromium, where one is installed."""

import shutil

import pytest

from experiments.reports import sections
from tests.experiments.test_report import make_run, make_study

pytestmark = pytest.mark.peers

CHROMIUM = next(filter(None, map(shutil.which, ('chromium', 'chromium-browser', 'google-chrome'))), None)


@pytest.fixture(scope='module')
def browser():
  playwright = pytest.importorskip('playwright.sync_api')
  if CHROMIUM is None:
    pytest.skip('no chromium on this machine')
  with playwright.sync_playwright() as driver:
    started = driver.chromium.launch(executable_path=CHROMIUM, args=['--no-sandbox'])
    yield started
    started.close()


@pytest.fixture(scope='module')
def path(tmp_path_factory):
  runs = tmp_path_factory.mktemp('runs')
  for i, (rate, loss) in enumerate([(1e-2, 3.0), (9e-4, 1.5), (1e-3, 10.0), (2e-3, 2.0)]):
    make_run(runs / f'run{i}', rate, loss, done=i != 3)
  make_study(runs / 'study')
  return sections.write([runs], runs / 'report.html', 'Runs and a study')


@pytest.mark.parametrize('scheme', ['light', 'dark'])
@pytest.mark.parametrize('width', [1280, 360])
def test_page(browser, path, width, scheme):
  page = browser.new_page(viewport={'width': width, 'height': 900}, color_scheme=scheme)
  said, asked = [], []
  page.on('console', lambda message: said.append(message.text))
  page.on('pageerror', lambda error: said.append(str(error)))
  page.on('request', lambda request: asked.append(request.url))
  page.goto(path.as_uri())
  assert not said
  assert [url for url in asked if not url.startswith('data:')] == [path.as_uri()]
  widths = page.eval_on_selector_all('img', 'all => all.map(i => i.complete ? i.naturalWidth : 0)')
  assert len(widths) == 3 and min(widths) > 0
  # Only tables may be wider than a phone, inside a frame that scrolls.
  assert page.evaluate('document.documentElement.scrollWidth') <= width
  ink, paper = page.evaluate('[getComputedStyle(document.body).color, getComputedStyle(document.body).backgroundColor]')
  bright = lambda color: sum(map(int, color[4:-1].split(',')))
  assert (bright(ink) < bright(paper)) == (scheme == 'light') and abs(bright(ink) - bright(paper)) > 400
  page.close()


def test_sorting(browser, path):
  page = browser.new_page()
  page.goto(path.as_uri())
  table = page.locator('section', has=page.get_by_role('heading', name='Runs', exact=True)).locator('table')
  column = lambda: table.locator('tbody tr td:first-child').all_inner_texts()
  click = lambda name: table.get_by_role('button', name=name).click()
  assert column() == ['run0', 'run1', 'run2', 'run3']
  click('bits/byte')
  assert column() == ['run1', 'run0', 'run2', 'run3']  # 10 after 3, as numbers; without a result last
  assert table.locator('th[aria-sort=ascending]').inner_text().startswith('bits/byte')
  click('bits/byte')
  assert column() == ['run2', 'run0', 'run1', 'run3']
  click('optimizer.learning_rate')
  assert column() == ['run1', 'run2', 'run3', 'run0']
  click('run')
  click('run')
  assert column() == ['run3', 'run2', 'run1', 'run0']
  page.close()
