"""The wheel, away from the clone: everything that the commands need is in it."""

import importlib.util
import subprocess
import sys
import zipfile

import pytest

from experiments.shared import launch
from tests.commands import ROOT, environment

PACKAGES = ('foundation', 'framework', 'pallas_kernels', 'scaling', 'rasp', 'experiments')


def test_a_file_of_the_packages_is_found_from_anywhere(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  config = 'experiments/configs/quickstart.py'
  assert launch.shipped(config) == str(ROOT / config) and launch.shipped('experiments/none.py') == 'experiments/none.py'
  assert launch._shipped_words(['x', '--config', config, f'--config={config}', config]) == [
      'x', '--config', str(ROOT / config), f'--config={ROOT / config}', config]
  (tmp_path / 'experiments' / 'configs').mkdir(parents=True)
  (tmp_path / config).write_text('')  # what is there is meant
  assert launch.shipped(config) == config


@pytest.mark.slow
def test_the_wheel_runs_the_quickstart(tmp_path):
  isolated = [] if importlib.util.find_spec('setuptools') is None else ['--no-build-isolation']
  def run(*words, **more):
    done = subprocess.run([sys.executable, '-m', *map(str, words)], capture_output=True, text=True, timeout=1800, **more)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout
  copy = tmp_path / 'clone'  # a build leaves folders beside the sources
  subprocess.run(['git', 'clone', '--quiet', str(ROOT), str(copy)], check=True)
  run('pip', 'wheel', copy, '--no-deps', '--quiet', *isolated, '-w', tmp_path / 'wheel')
  wheel, = (tmp_path / 'wheel').glob('*.whl')
  held = set(zipfile.ZipFile(wheel).namelist())
  assert {str(path.relative_to(copy)) for package in PACKAGES for path in (copy / package).rglob('*.py')} <= held
  run('pip', 'install', '--quiet', '--no-deps', '--target', tmp_path / 'site', wheel)
  away = tmp_path / 'away'
  away.mkdir()
  env = environment() | {'PYTHONPATH': str(tmp_path / 'site'), 'XDG_CACHE_HOME': str(tmp_path / 'cache')}
  run('experiments.quickstart', '--workdir=quick', '--parts=gemm,rasp', cwd=away, env=env)
  assert (away / 'quick' / 'report.html').exists()
  # Its longest part, the decoder, with less of everything.
  (away / 'a.txt').write_text('the cat and the hat, ' * 200)
  run('experiments.train', '--config=experiments/configs/quickstart.py', '--workdir=run', '--config.data.path=a.txt',
      '--config.data.window=32', '--config.data.stride=32', '--config.data.vocabulary=260', '--config.training.steps=2',
      '--config.optimizer.warmup_steps=1', '--config.evaluation.every_steps=0', cwd=away, env=env)
  assert (away / 'run' / 'result.json').exists()
  code = 'import experiments, framework; print(experiments.__file__)'
  found = subprocess.run([sys.executable, '-c', code], cwd=away, env=env, capture_output=True, text=True, check=True)
  assert str(tmp_path / 'site') in found.stdout  # not the clone of an editable install
