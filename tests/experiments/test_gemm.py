"""The measured roofline: what the command writes, and that its numbers hang together."""

import json

import pytest


@pytest.fixture(scope='module')
def folder(launch, tmp_path_factory):
  output = tmp_path_factory.mktemp('gemm') / 'out'
  done = launch('gemm', f'--output={output}', '--sizes=8,64', '--seconds=0.02')
  assert done.returncode == 0, done.stderr
  assert 'reads 54 elements; with blocks that are loaded once, 18' in done.stdout
  return output


def test_section(folder):
  section = json.loads((folder / 'section.json').read_text())
  lecture, measured = section['tables']
  assert [row[1] for row in lecture['rows']] == [54, 36, 18]
  assert [row[0] for row in measured['rows']] == [8, 64]
  for n, intensity, gflops, microseconds, roof in measured['rows']:
    assert intensity == pytest.approx(2 * n**3 / (3 * n**2 * 4))  # A, B and C once, in float32
    assert gflops * 1e9 * microseconds * 1e-6 == pytest.approx(2 * n**3)
    assert 0 < roof <= max(row[2] for row in measured['rows']) * (1 + 1e-9)
  assert (folder / 'roofline.svg').read_text().startswith('<?xml')


def test_it_is_a_part_of_a_report(launch, folder):
  done = launch('report', f'--runs={folder}', f'--output={folder / "page.html"}')
  assert done.returncode == 0, done.stderr
  assert 'from ./roofline.svg' in (folder / 'page.html').read_text()


@pytest.mark.parametrize('argument,expected', [
    ('--sizes=8,big', "--sizes has 'big'; expected whole numbers"), ('--sizes=0', "--sizes has '0'"),
    ('--output={strange}', 'holds something else')])
def test_mistakes_are_refused(launch, tmp_path, argument, expected):
  (tmp_path / 'notes.txt').write_text('mine')
  done = launch('gemm', f'--output={tmp_path / "new"}', argument.format(strange=tmp_path))
  assert done.returncode == 2 and expected in done.stderr and done.stderr.count('\n') == 1
  assert [p.name for p in tmp_path.iterdir()] == ['notes.txt']
