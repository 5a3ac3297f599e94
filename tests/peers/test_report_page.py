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
  assert len(widths) == 1 and min(widths) > 0  # the study's; charts are drawn
  assert page.locator('figure.chart svg polyline').count() == 4 + 3
  # Only tables may be wider than a phone, inside a frame that scrolls.
  assert page.evaluate('document.documentElement.scrollWidth') <= width
  ink, paper = page.evaluate('[getComputedStyle(document.body).color, getComputedStyle(document.body).backgroundColor]')
  bright = lambda color: sum(map(int, color[4:-1].split(',')))
  assert (bright(ink) < bright(paper)) == (scheme == 'light') and abs(bright(ink) - bright(paper)) > 400
  page.close()


def test_sorting(browser, path):
  page = browser.new_page()
  page.goto(path.as_uri())
  table = page.locator('section', has=page.get_by_role('heading', name='Runs', exact=True)).locator('table').first
  column = lambda: table.locator('tbody tr td:first-child').all_inner_texts()
  click = lambda name: table.get_by_role('button', name=name).click()
  assert column() == ['run1', 'run0', 'run2', 'run3']  # by the result, without one last
  assert table.locator('th[aria-sort=ascending]').inner_text().startswith('bits/byte')
  click('bits/byte')
  assert column() == ['run2', 'run0', 'run1', 'run3']  # 10 before 3, as numbers
  click('optimizer.learning_rate')
  assert column() == ['run1', 'run2', 'run3', 'run0']
  click('run')
  click('run')
  assert column() == ['run3', 'run2', 'run1', 'run0']
  page.close()


@pytest.fixture(scope='module')
def forty(tmp_path_factory):
  runs = tmp_path_factory.mktemp('forty')
  for i in range(40):
    make_run(runs / f'width{16 + i}', 1e-3, 4.0 - i / 20)
  (runs / 'notes').mkdir()
  (runs / 'notes' / 'config.json').write_text('{"architectures": ["GPT2"]}')  # somebody else's
  (runs / 'width16' / 'config.json').write_text((runs / 'width17' / 'config.json').read_text().replace('0.001', '0.002'))
  return sections.write([runs], runs / 'report.html', 'Forty runs')


def test_forty_runs(browser, forty):
  page = browser.new_page(viewport={'width': 1280, 'height': 900})
  said = []
  page.on('pageerror', lambda error: said.append(str(error)))
  page.goto(forty.as_uri())
  section = page.locator('section', has=page.get_by_role('heading', name='Runs', exact=True))
  names = section.locator('table').first.locator('tbody tr td:first-child').all_inner_texts()
  assert names == [f'width{55 - i}' for i in range(40)]  # by their results
  heads = section.locator('table').first.locator('thead th').all_inner_texts()
  assert [head.split(' ')[0] for head in heads] == [
      'run', 'optimizer.learning_rate', 'bits/byte', 'nats/token', 'status']  # what is the same in all is folded away
  assert 'model.layers' in section.locator('details').text_content()
  assert 'config.json of a run' in page.locator('section', has=page.get_by_role('heading', name='Left out')).inner_text()
  chart = section.locator('figure.chart').first
  line = chart.locator('polyline[data-name=width30]')
  line.scroll_into_view_if_needed()
  place = line.evaluate("""line => { const p = line.points.getItem(1).matrixTransform(line.getScreenCTM());
      return [p.x, p.y] }""")
  page.mouse.move(*place)
  assert chart.locator('.told').inner_text().startswith('width30: loss of batches 3.4 at tokens 1000')
  assert chart.locator('polyline.this').get_attribute('data-name') == 'width30'
  assert section.locator('tr.this td').first.inner_text() == 'width30'
  before = line.get_attribute('points')
  chart.locator('select[aria-label=x]').select_option('step')
  assert line.get_attribute('points') != before and not said
  chart.locator('select[aria-label=y]').select_option('held-out loss')
  chart.locator('select[aria-label=show]').select_option('width20')
  assert chart.locator('.told').inner_text() == 'width20: held-out loss 3.8 at step 15'
  chart.locator('select[aria-label=y]').select_option('gradient norm')
  assert 'nothing known' in chart.locator('svg').text_content()
  assert not said
  page.close()
