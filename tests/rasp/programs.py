"""Random programs of bounded depth: whole numbers, truth values and letters, moved by every kind of selector."""

import dataclasses

from hypothesis import strategies as st
import jax
import numpy as np

import rasp
from rasp import decoder

LETTERS = 'abc'


@st.composite
def numbers(draw, depth: int):
  """An s-op of small whole numbers."""
  if depth == 0:
    return draw(st.sampled_from([rasp.indices, rasp.length, rasp.constant(1), rasp.tokens == 'a']))
  kind = draw(st.sampled_from(['leaf', 'plus', 'minus', 'clip', 'where', 'truth', 'width', 'width', 'copy', 'mod']))
  if kind == 'leaf':
    return draw(numbers(0))
  if kind in ('plus', 'minus'):
    a, b = draw(numbers(depth - 1)), draw(numbers(depth - 1))
    return a + b if kind == 'plus' else a - b
  if kind == 'clip':
    return rasp.apply(lambda v: max(-2, min(2, v)), draw(numbers(depth - 1)))
  if kind == 'mod':
    return draw(numbers(depth - 1)) % draw(st.integers(2, 3))
  if kind == 'where':
    return rasp.where(draw(truths(depth - 1)), draw(numbers(depth - 1)), draw(numbers(depth - 1)))
  if kind == 'truth':
    return draw(truths(depth - 1))
  if kind == 'width':
    return rasp.selector_width(draw(selectors(depth - 1)))
  end = draw(st.sampled_from(['first', 'last']))
  return rasp.aggregate(getattr(draw(selectors(depth - 1)), end)(), draw(numbers(depth - 1)), draw(st.integers(-1, 1)))


@st.composite
def truths(draw, depth: int):
  if depth == 0:
    return draw(st.sampled_from([rasp.tokens == 'b', rasp.indices == 1, rasp.length > 3, rasp.tokens != 'c']))
  kind = draw(st.sampled_from(['compare', 'mean', 'and', 'or', 'not', 'letters']))
  if kind == 'compare':
    a, b = draw(numbers(depth - 1)), draw(numbers(depth - 1))
    return draw(st.sampled_from([a < b, a <= b, a == b, a != b]))
  if kind == 'mean':
    return rasp.aggregate(draw(selectors(depth - 1)), draw(truths(0)), 0) > draw(st.sampled_from([0, 1])) * 0.5
  if kind == 'letters':
    return draw(letters(depth - 1)) == draw(st.sampled_from(LETTERS))
  a, b = draw(truths(depth - 1)), draw(truths(depth - 1))
  return {'and': a & b, 'or': a | b, 'not': ~a}[kind]


@st.composite
def letters(draw, depth: int):
  if depth == 0:
    return rasp.tokens
  if draw(st.booleans()):
    return rasp.where(draw(truths(depth - 1)), draw(letters(depth - 1)), draw(letters(depth - 1)))
  selector = draw(selectors(depth - 1))
  return rasp.aggregate(draw(st.sampled_from([selector.first(), selector.last()])), draw(letters(depth - 1)),
                        draw(st.sampled_from(LETTERS)))


@st.composite
def selectors(draw, depth: int):
  if depth == 0:
    return draw(st.sampled_from([rasp.until, rasp.before, rasp.everything, rasp.select(rasp.tokens, rasp.tokens, '=='),
                                 rasp.select(rasp.indices, rasp.indices - 1, '=='),
                                 rasp.select(rasp.tokens, 'a', '==')]))
  kind = draw(st.sampled_from(['leaf', 'numbers', 'letters', 'and', 'or', 'not']))
  if kind == 'leaf':
    return draw(selectors(0))
  if kind == 'numbers':
    a, b = draw(numbers(depth - 1)), draw(numbers(depth - 1))
    return rasp.select(a, b, draw(st.sampled_from(['==', '<', '>=', '!='])))
  if kind == 'letters':
    return rasp.select(draw(letters(depth - 1)), draw(letters(depth - 1)), draw(st.sampled_from(['==', '!=', '<'])))
  a, b = draw(selectors(depth - 1)), draw(selectors(depth - 1))
  return {'and': a & b, 'or': a | b, 'not': ~a}[kind]


def programs(depth: int):
  """Any program of at most this depth."""
  return st.one_of(numbers(depth), truths(depth), letters(depth))


def padded(compiled):
  """The same decoder with sizes rounded up to powers of 2 by zeros, so that many programs share one compilation."""
  up = lambda n: 1 << max(0, n - 1).bit_length()
  m, V, far = compiled.model, max(32, up(len(compiled.params['head']))), max(12, compiled.model.relative_bias)
  new = dataclasses.replace(m, layers=up(m.layers), width=max(16, up(m.width)), heads=max(4, up(m.heads)),
                            kv_heads=max(4, up(m.heads)), head_width=max(16, up(m.head_width)),
                            feedforward=max(64, up(m.feedforward)), position='learned', relative_bias=far)
  zeros = decoder.zeros(decoder.build(new, V, compiled.report.longest + 1))
  old = jax.tree.map(np.asarray, compiled.params)
  old['head'] = np.concatenate([old['head'], np.zeros((V - len(old['head']), m.width), np.float32)])
  old['head'][compiled.params['head'].shape[0]:, compiled.plan.one] = -1e6  # ids that do not exist
  bias = old['blocks'].get('relative_bias', np.zeros((m.layers, m.heads, 1), np.float32))
  own = bias.shape[-1] // 2
  old['blocks']['relative_bias'] = bias[:, :, np.clip(np.arange(-far, far + 1), -own, own) + own]
  old.setdefault('position', np.zeros((1, m.width), np.float32))
  grow = lambda a, like: np.pad(a, [(0, to - n) for n, to in zip(a.shape, like.shape)])
  return dataclasses.replace(compiled, model=new, params=jax.tree.map(grow, old, zeros),
                             readout=dataclasses.replace(
                                 compiled.readout, weights=np.pad(compiled.readout.weights,
                                                                  ((0, new.width - m.width), (0, 0)))))
