"""Parameters of low precision are not trained, as most of their steps round to nothing; what was trained so is read."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from framework import generation
from framework.config import Checkpoint, Config, ConfigError, Data, Evaluation, Model, Optimizer, Training, resolve
from framework.data import corpus
from framework.training import loop, run, setup
from framework.training.signals import StopSignal


def test_parameters_in_bfloat16_are_read_and_not_trained(tmp_path, monkeypatch):
  c = resolve(Config(
      model=Model(layers=1, width=16, heads=2, param_dtype='bfloat16'), data=Data(task='zipf_pairs:symbols=4', window=24),
      optimizer=Optimizer(warmup_steps=1), training=Training(steps=2, batch=4), evaluation=Evaluation(windows=8),
      checkpoint=Checkpoint(every_steps=0)))
  text = corpus.prepare(c.data)
  words = "model.param_dtype is 'bfloat16', .* expected 'float32' in training, nearest is model.dtype=bfloat16"
  with pytest.raises(ConfigError, match=words):
    loop.check(c, text)
  run.open_folder(tmp_path, c, text, resume=True)
  with monkeypatch.context() as patch:  # as runs were trained before
    patch.setattr(loop, 'check_stage', lambda *_: None)
    loop.train(c, text, tmp_path)
  trained = setup.load(tmp_path)
  assert {x.dtype for x in jax.tree.leaves(trained.params)} == {jnp.dtype('bfloat16')}
  losses = loop.compile_evaluation(trained.setup, text, StopSignal())(trained.params, 2)
  assert 0 < losses['nats_per_token'] < 10
  new = list(generation.generate(trained.setup.module, trained.params, [np.array([1, 2])], tokens=3, window=24,
                                 settings=generation.Sampling(), seed=0))
  assert np.concatenate(new, 1).shape == (1, 3)
