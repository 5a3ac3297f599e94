"""Sweeps as expressions: what they mean, their trunks and costs, and what is refused."""

import types

import pytest

from experiments.sweeping import cells as cells_lib
from experiments.sweeping.cells import Sweep, chain, expand, over, product, trunks, zipped
from framework import models
from framework.config import Checkpoint, Config, ConfigError, Data, Model, Optimizer, Training


def base(**changes):
  return Config(model=Model(layers=1, heads=2), data=Data(task='zipf_pairs', window=24),
                optimizer=Optimizer(schedule='wsd', warmup_steps=4), training=Training(batch=4, **changes),
                checkpoint=Checkpoint(at_decay=True))


def test_expressions():
  a, b = over('model.width', [16, 32]), over('training.steps', [1, 2])
  assert product(a, b) == [{'model.width': w, 'training.steps': s} for w in (16, 32) for s in (1, 2)]
  assert zipped(a, b) == [{'model.width': 16, 'training.steps': 1}, {'model.width': 32, 'training.steps': 2}]
  assert chain(a, b) == a + b
  assert product(zipped(a, over('model.layers', [2, 3])), b)[2] == {
      'model.width': 32, 'model.layers': 3, 'training.steps': 1}
  assert product(a, []) == [] and product(a) == a and chain() == []


def test_a_trunk_is_the_runs_that_differ_in_steps_alone():
  cells = expand(Sweep(base(), product(over('model.width', [16, 32]), over('training.steps', [400, 200, 800]))))
  assert [[c.config.training.steps for c in trunk] for trunk in trunks(cells)] == [[200, 400, 800]] * 2
  sources = {c.name: c.source for c in cells}
  assert sources['width16_steps800'] == 'width16_steps400' and sources['width16_steps400'] == 'width16_steps200'
  assert sources['width32_steps200'] == ''
  alone = base()
  alone.optimizer.schedule, alone.checkpoint.at_decay = 'cosine', False
  apart = expand(Sweep(alone, over('training.steps', [200, 400])))
  assert len(trunks(apart)) == 2 and not any(c.source for c in apart)


def test_the_base_is_left_as_it_was():
  config = base()
  expand(Sweep(config, over('model.width', [16, 32])))
  assert config == base()


def test_a_trunk_costs_its_longest_trunk_and_each_decay():
  corpus = types.SimpleNamespace(tokenizer=types.SimpleNamespace(size=193))
  cells = cells_lib.with_costs(expand(Sweep(base(), over('training.steps', [200, 400, 800]))), lambda config: corpus)
  step = 4 * models.build(cells[0].config, 193).flops().train
  assert [c.cost / step for c in cells] == [200, 400 - 160, 800 - 320]
  assert sum(c.cost for c in cells) / step == 0.8 * 800 + 0.2 * (200 + 400 + 800)


@pytest.mark.parametrize('parts,words', [
    (lambda: Sweep(base(), []), 'has no cells'),
    (lambda: Sweep(base(), over('model.widht', [16])), "did you mean 'model.width'"),
    (lambda: Sweep(base(), over('model.width', [15])), 'cell width15: model.heads is 2; expected a divisor'),
    (lambda: Sweep(base(), over('model.width', ['16'])), "cell width16: model.width is '16'; expected int"),
    (lambda: Sweep(base(), over('model.width', [16, 16])), 'are the same run'),
    (lambda: Sweep(base(), chain(over('model.kv_heads', [0]), over('model.kv_heads', [2]))), 'are the same run'),
    (lambda: Sweep(base(), chain(over('training.seed', [1]), over('evaluation.windows', [0]), [{}])), 'same run'),
    (lambda: product(over('model.width', [16]), over('model.width', [32])), 'two parts of a sweep set model.width'),
    (lambda: zipped(over('model.width', [16]), over('model.layers', [1, 2])), 'parts of 1, 2 cells'),
])
def test_malformed_sweeps_are_refused_in_one_line(parts, words):
  with pytest.raises(ConfigError) as error:
    expand(parts())
  assert words in str(error.value) and '\n' not in str(error.value)
