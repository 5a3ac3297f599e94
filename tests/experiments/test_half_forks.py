"""Half-written forks, in process: whatever is wrong in one is one line that names the file, before a run is begun."""

import pathlib

import pytest

from foundation import entries
from framework import config as config_lib
from framework.config import ConfigError
from framework.data import corpus
from framework.training import loop

FORKS = pathlib.Path(__file__).parents[1] / 'forks'
MODEL = '''import dataclasses
import jax, jax.numpy as jnp
from framework.models import contract

@dataclasses.dataclass(frozen=True)
class Unigram:
  """A table of logits, to the contract alone."""
  config: object
  vocabulary: int
  length: int
  stochastic = False

  def parameters(self, key):
    return {'table': {'bias': contract.Parameter(jnp.zeros((self.vocabulary, 1)), ('vocabulary', 'width'), 'head')}}

  def hidden(self, params, batch, keys_B=None):
    return jnp.ones((*batch['tokens'].shape, 1))

  def head(self, params):
    return params['table']['bias']

  def logits(self, params, x):
    return jnp.einsum('bld,vd->blv', x, self.head(params))

  def flops(self):
    return contract.Flops(1.0, 3.0)

def build(config, vocabulary):
  return Unigram(config.model, vocabulary, config.data.window)
'''
BLOCK = '''import flax.linen as nn
from framework.models import contract, decoder
class B(decoder.Block):
  @nn.compact
  def __call__(self, x, context, layer=0, cache=None, keys_B=None):
    return x * self.param('w', contract.parameter(nn.initializers.ones, ()), ()), cache
def build(c, v): return decoder.Decoder(c.model, v, c.data.window, B)
'''
OPTAX = 'import jax, optax\ndef build(c, rate, parameters): return optax.GradientTransformation('
LOSS = 'import jax.numpy as jnp, numpy as np\ndef sum_loss(model, params, batch, keys_B): return '
RATE = 'import jax.numpy as jnp\ndef after_warmup(c, steps): return '


def checked(tmp_path, setting, text, name='half.py'):
  """What `train` checks before it makes a folder, of a config with one file of the user's."""
  path = tmp_path / name
  path.write_text(text)
  c = config_lib.Config(
      model=config_lib.Model(layers=2, width=16, heads=2), data=config_lib.Data(task='zipf_pairs', window=8),
      optimizer=config_lib.Optimizer(warmup_steps=1), training=config_lib.Training(steps=4, batch=4))
  c = config_lib.resolve(config_lib.assign(c, {setting: str(path)}))
  loop.check(c, corpus.prepare(c.data))


@pytest.mark.parametrize('setting,text', [
    ('model.name', MODEL), ('model.name', BLOCK), ('optimizer.name', OPTAX + 'lambda p: (), lambda g, s, p=None: (g, s))'),
    ('optimizer.schedule', RATE + 'lambda step: 1e-3'), ('training.loss', LOSS + 'model.hidden(params, batch).sum()')])
def test_the_whole_forks_of_the_halves_below_pass(tmp_path, setting, text):
  checked(tmp_path, setting, text)


@pytest.mark.parametrize('setting,text,words', [
    ('model.name', 'def build(config): pass\n', ['build(config) at line 1', 'called as build(config, vocabulary)']),
    ('model.name', 'build = 3\n', ["whose 'build' is 3", 'expected a function build(config, vocabulary)']),
    ('model.name', 'def build(config, vocabulary): return None\n', ['build(config, vocabulary) gives None']),
    ('model.name', 'def build(c, v):\n  raise ValueError("a\\nb")\n', ['fails in build at line 2 (ValueError: a b)',
                                                                     'see framework.models']),
    ('model.name', 'import sys\nsys.exit(3)\n', ['fails at line 2 (SystemExit: 3)']),
    ('model.name', 'def build(c, v)\n  pass\n', ['fails at line 1 (SyntaxError']),
    ('model.name', MODEL.replace('contract.Flops(1.0, 3.0)', '1.0'), ['flops() gives 1.0', 'Flops(forward, train)']),
    ('model.name', MODEL.replace('(frozen=True)', ''), ['cannot be hashed', 'frozen dataclass']),
    ('model.name', MODEL.replace("return {'table'", "{'table'"), ['parameters(key) gives None', 'Parameter']),
    ('model.name', MODEL.replace(', 1))\n', ',))\n'), ['gives an array of shape (1, 8), float32', '[1, 8, D]']),
    ('model.name', MODEL.replace("return jnp.ones", "jnp.ones"), ['hidden(params, batch, keys_B) gives None']),
    ('model.name', MODEL.replace(', batch, keys_B=None', ', batch'), ['hidden(params, batch) at line 16', 'keys_B=None']),
    ('model.name', MODEL.replace(", keys_B=None", ", keys_B"), ['is called as hidden(params, batch, keys_B=None)']),
    ('model.name', MODEL.replace("return params['table']['bias']", 'return None'), ['head(params) gives None', '[V, D]']),
    ('model.name', MODEL.replace("return jnp.einsum", 'jnp.einsum'), ['logits(params, x_BxLxD) gives None']),
    ('model.name', MODEL.replace("['bias']", "['bais']"), ["fails in head at line 20 (KeyError: 'bais')"]),
    ('model.name', MODEL.replace("return params['table']['bias']", 'return jnp.ones((self.vocabulary, 1))'),
     ['whatever the parameters', 'nothing is trained']),
    ('model.name', BLOCK.replace('return x', 'x'), ['block gives None', '(x_BxLxD, cache)']),
    ('model.name', BLOCK.replace(', layer=0, cache=None, keys_B=None', ''), ['block(x, context)', 'layer=0, cache=None']),
    ('model.name', BLOCK.replace('ones, ()', "ones, (), 'weird'"), ["at line 6: a parameter's role is 'weird'"]),
    ('optimizer.name', 'def build(c, rate): pass\n', ['build(c, rate) at line 1 is called as build(c, rate, parameters)']),
    ('optimizer.name', 'def build(c, rate, parameters): pass\n', ['gives None', 'optax.GradientTransformation']),
    ('optimizer.name', 'def build(c, rate, parameters): raise KeyError("w")\n', ["line 1 (KeyError: 'w')"]),
    ('optimizer.name', OPTAX + 'lambda p: (), lambda g, s: (g, s))\n', ['update(g, s) at line 2']),
    ('optimizer.name', OPTAX + 'lambda p: (), lambda g, s, p=None: None)\n', ['gives None', '(updates, state)']),
    ('optimizer.name', OPTAX + 'lambda p: (), lambda g, s, p=None: (1.0, s))\n', ['a tree of updates like that']),
    ('optimizer.name', OPTAX + 'lambda p: (), lambda g, s, p=None: (g, g))\n', ['as state', 'in the shapes']),
    ('optimizer.schedule', 'def after_warmup(c): pass\n', ['after_warmup(c) at line 1 is called as']),
    ('optimizer.schedule', RATE + 'None\n', ['after_warmup(c, steps) gives None', 'a function of the step']),
    ('optimizer.schedule', RATE + '0.001\n', ['after_warmup(c, steps) gives 0.001', 'a function of the step']),
    ('optimizer.schedule', RATE + 'lambda step: None\n', ['rate of a step gives None', 'one number']),
    ('optimizer.schedule', RATE + 'lambda step: jnp.ones(2)\n', ['an array of shape (2,)', 'one number']),
    ('optimizer.schedule', RATE + 'lambda step: 1.0 if step < 3 else 0.1\n', ['line 2 (TracerBoolConversionError']),
    ('training.loss', 'def sum_loss(model, params): return 0\n', ['sum_loss(model, params) at line 1 is called as']),
    ('training.loss', LOSS + 'None\n', ['gives None', 'scalar']),
    ('training.loss', LOSS + 'np.float64(1)\n', ['gives np.float64(1.0)', 'scalar of JAX']),
    ('training.loss', LOSS + 'jnp.sum(batch["weights"])\n', ['whatever the parameters', 'nothing is trained']),
    ('training.loss', LOSS + 'model.hidden(params, batch, keys_B).sum(-1)\n', ['shape (1, 8), float32', 'scalar']),
    ('training.loss', LOSS + 'np.asarray(model.hidden(params, batch)).sum()\n', ['line 2 (TracerArrayConversionError']),
    ('training.loss', LOSS + 'batch["target"].sum()\n', ["fails in sum_loss at line 2 (KeyError: 'target')"]),
])
def test_half_a_fork_is_one_line(tmp_path, setting, text, words):
  with pytest.raises(ConfigError) as caught:
    checked(tmp_path, setting, text)
  line = str(caught.value)
  assert line.startswith(f"{setting} is '{tmp_path}/half.py'") and '\n' not in line and len(line) < 700
  assert all(word in line for word in words), line


def test_a_fault_of_our_own_keeps_its_traceback(tmp_path, monkeypatch):
  """An exception that passed through no file of the user's is not told as theirs."""
  def broken(setup):
    raise KeyError('ours')
  monkeypatch.setattr(loop.trial, 'check', broken)
  with pytest.raises(KeyError, match='ours') as caught:
    checked(tmp_path, 'training.loss', LOSS + 'model.hidden(params, batch).sum()')
  assert entries.blame(caught.value) == ''
