"""Settings of tiers that do not go together are refused in one line, before anything is compiled."""

import pytest

from framework import config as config_lib
from framework import models
from framework.models import contract


@pytest.mark.parametrize('settings,words', [
    ({'widths': '64'}, "tiered.widths is '64'; expected 2 whole numbers.*nearest is '64,64'"),
    ({'widths': '12,64'}, 'multiples of 8 for model.heads 4, nearest to 12 is 16'),
    ({'layers': '1,x'}, "tiered.layers is '1,x'"),
    ({'steps': '0,10'}, "tiered.steps is '0,10'"),
    ({'period': 65}, 'tiered.period is 65; expected at most data.window 64'),
    ({'starts': 'trigger'}, "tiered.most_starts is 0; tiered.starts 'trigger'.*nearest is 4"),
    ({'delay': 64}, 'tiered.delay is 64; expected less than data.window 64'),
    ({'last': 2}, "tiered.last is 2; only tiered.layout 'stamp' has it"),
    ({'read': 'hidden'}, "tiered.read is hidden; only tiered.layout 'cross'"),
    ({'layout': 'cross', 'read': 'hidden', 'content': 'oracle'}, "tiered.content is 'oracle'.*nearest is 'own'"),
    ({'layout': 'streams'}, "tiered.layout is 'streams'.*did you mean 'stream'"),
    ({'rollout_dropout': 2.0}, 'tiered.rollout_dropout is 2.0; expected 0.0 to 1.0')])
def test_refused(settings, words):
  with pytest.raises(config_lib.ConfigError, match=words):
    config_lib.resolve(config_lib.Config(
        model=config_lib.Model(name='tiered', width=64, heads=4), data=config_lib.Data(window=64),
        tiered=config_lib.Tiered(**({'period': 16} | settings))))


def test_a_model_with_settings_of_other_attention_is_refused():
  with pytest.raises(config_lib.ConfigError, match="model.mask is strict.*'tiered' needs its default 'causal'"):
    config_lib.resolve(config_lib.Config(model=config_lib.Model(name='tiered', mask='strict'),
                                       tiered=config_lib.Tiered(period=16)))


def test_other_models_do_not_look_at_tiers():
  config_lib.resolve(config_lib.Config(tiered=config_lib.Tiered(widths='1,2,3')))


@pytest.mark.parametrize('tiers', [1, 2])
def test_only_a_model_that_reads_rollouts_draws_any(tiers):
  """So that a single tier is not evaluated again and again for other seeds of nothing."""
  config = config_lib.Config(model=config_lib.Model(name='tiered', layers=1, width=16, heads=2),
                             data=config_lib.Data(window=16), tiered=config_lib.Tiered(tiers=tiers, period=8))
  model = models.build(config_lib.resolve(config), 11)
  assert contract.answers(model, 'with_seed') == (tiers > 1)
  if tiers > 1:
    assert model.with_seed(7).seed == 7 and model.seed == 0
