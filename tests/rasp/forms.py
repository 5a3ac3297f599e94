"""A second generator of random programs, with an evaluator and a forward pass that share nothing with rasp/.

A program is a nested tuple: `build` makes it an s-op, `Values` evaluates it position by position in plain Python. It has
the forms that a user writes: defaults None and of another type, copies over `|`, means of fractions, first and last,
`& | ~`, lambdas, and vocabularies of text, of numbers and of both. `forward` is the decoder in NumPy, in float32.
"""

from fractions import Fraction
import operator
import random

import numpy as np

import rasp

VOCABULARIES = ('abc', 'ab', (0, 1, 2, 3), (-2, -1, 0, 3), ('a', 'b', 1, 2), ('x', 5), (0, 10, 20), 'abcdefgh',
                tuple(range(0, 3000, 37)))
LENGTHS = (1, 2, 3, 4, 5, 6, 8, 10, 12)
FUNCTIONS = {
    'clip': lambda v: max(-2, min(2, v)), 'square': lambda v: v * v, 'half': lambda v: v // 2, 'odd': lambda v: v % 2,
    'larger': lambda a, b: max(a, b), 'mix': lambda a, b: (3 * a + b) % 5, 'number': lambda v: 0 if isinstance(v, str) else v,
    'text': lambda v: 'pq'[int(v > 0)], 'first': lambda a, b: a, 'code': lambda v: len(str(v)),
    'join': lambda a, b: a if a == b else 'no', 'thin': lambda v: None if v == 1 else v}
CHOICES = {'near': lambda k, q: abs(k - q) <= 1, 'even': lambda k, q: (k + q) % 2 == 0, 'both': lambda k, q: k * q > 0}
BINARY = {'+': operator.add, '-': operator.sub, '*': operator.mul, '==': operator.eq, '!=': operator.ne, '<': operator.lt,
          '<=': operator.le, '>': operator.gt, '>=': operator.ge, '//': operator.floordiv, '%': operator.mod,
          '&': lambda a, b: bool(a) and bool(b), '|': lambda a, b: bool(a) or bool(b)}
COMPARE = ('==', '!=', '<', '<=', '>', '>=')


class Wrong(Exception):
  """The program has no value on this input."""


class Generator:
  """Random programs over one vocabulary, by a seed."""

  def __init__(self, seed):
    self.r = random.Random(seed)
    self.vocabulary = self.r.choice(VOCABULARIES)
    self.longest = self.r.choice(LENGTHS)
    kinds = {isinstance(v, str) for v in self.vocabulary}
    self.has_text, self.has_numbers = True in kinds, False in kinds

  def program(self):
    depth = self.r.choice((1, 2, 2, 3, 3, 4))
    return self.r.choice((self.number, self.truth, self.text, self.fraction, self.mixed))(depth)

  def pick(self, *options):
    return self.r.choice(options)()

  def token(self):
    return ('const', self.r.choice(self.vocabulary))

  def number(self, d):
    r = self.r
    if d <= 0:
      own = ('tokens',) if not self.has_text else ('apply', 'number', ('tokens',))
      return r.choice([('indices',), ('length',), ('const', r.randint(-1, 3)), own if self.has_numbers else ('indices',),
                       ('op', '==', ('tokens',), self.token())])
    s = lambda: self.number(d - 1)
    return self.pick(
        lambda: ('op', r.choice('+-'), s(), s()), lambda: ('op', '*', s(), ('const', r.randint(-2, 3))),
        lambda: ('op', r.choice(('//', '%')), s(), ('const', r.randint(2, 3))), lambda: ('abs', s()),
        lambda: ('where', self.truth(d - 1), s(), s()), lambda: ('width', self.selector(d - 1)),
        lambda: ('total', self.selector(d - 1), ('default', s(), 0)), lambda: ('apply', r.choice(('clip', 'half', 'odd', 'square')), s()),
        lambda: ('apply', r.choice(('larger', 'mix')), s(), s()), lambda: ('default', s(), r.choice((0, -1))),
        lambda: self.copy(s(), (0, -1, None), d), lambda: self.copy(s(), (0, -1, None), d), lambda: self.truth(d - 1),
        lambda: self.number(0))

  def copy(self, x, defaults, d):
    """An aggregate of one key, or over `|` of equal values."""
    r = self.r
    if r.random() < 0.15:
      return ('aggregate', ('or', self.selector(d - 1), self.selector(d - 1)), ('const', r.choice(('y', 7))), None, True)
    if r.random() < 0.3:
      return ('aggregate', ('select', ('indices',), self.place(), '=='), x, r.choice(defaults), r.random() < 0.5)
    pick = (r.choice(('first', 'last')), self.selector(d - 1))
    if r.random() < 0.25:
      pick = (r.choice(('largest', 'smallest')), self.selector(d - 1), ('default', self.number(d - 2), 0))
    return ('aggregate', pick, x, r.choice(defaults), r.random() < 0.5)

  def place(self):
    return self.r.choice([('op', '-', ('indices',), ('const', 1)), ('const', 0), ('op', '+', ('indices',), ('const', 2)),
                          ('op', '-', ('op', '-', ('length',), ('const', 1)), ('indices',)),
                          ('op', '//', ('indices',), ('const', 2))])

  def truth(self, d):
    r = self.r
    if d <= 0:
      return r.choice([('op', r.choice(('==', '!=')), ('tokens',), self.token()),
                       ('op', r.choice(COMPARE), ('indices',), ('const', r.randint(0, 3))),
                       ('op', r.choice(COMPARE), ('length',), ('const', r.randint(1, 5)))])
    s = lambda: self.truth(d - 1)
    return self.pick(
        lambda: ('op', r.choice(COMPARE), self.number(d - 1), self.number(d - 1)), lambda: ('op', r.choice('&|'), s(), s()),
        lambda: ('not', s()), lambda: ('op', r.choice(('==', '!=', '<')), self.text(d - 1), self.text(d - 1)),
        lambda: ('op', r.choice(COMPARE), self.fraction(d - 1), ('const', r.choice((0, 0.5, 1, 0.25)))),
        lambda: self.copy(s(), (False, None), d))

  def text(self, d):
    r = self.r
    if d <= 0:
      own = ('tokens',) if not self.has_numbers else ('apply', 'text', ('indices',))
      return r.choice([own, own, ('const', r.choice(('a', 'z')))])
    s = lambda: self.text(d - 1)
    return self.pick(
        lambda: ('where', self.truth(d - 1), s(), s()), lambda: self.copy(s(), ('-', None, 'a'), d),
        lambda: self.copy(s(), ('-', None, 'a'), d), lambda: ('apply', 'text', self.number(d - 1)),
        lambda: ('apply', 'join', s(), s()), lambda: ('default', s(), '?'), lambda: self.text(0))

  def fraction(self, d):
    r = self.r
    if d <= 0:
      return ('aggregate', r.choice((('until',), ('before',), ('everything',))), self.truth(0), r.choice((0, None)), False)
    s = lambda: self.fraction(d - 1)
    mean = lambda: ('aggregate', self.selector(d - 1), self.pick(lambda: self.number(d - 1), lambda: self.truth(d - 1)),
                    r.choice((0, None, 0, 1, 'none')), False)
    return self.pick(
        mean, mean, mean, lambda: ('op', r.choice('+-'), s(), s()), lambda: ('op', '*', s(), ('const', r.choice((2, 0.5, -1)))),
        lambda: ('where', self.truth(d - 1), s(), s()), lambda: ('divide', self.number(d - 1), self.number(d - 1), 0),
        lambda: ('op', '*', mean(), ('width', self.selector(d - 1))), lambda: ('default', s(), 0), lambda: self.fraction(0))

  def mixed(self, d):
    s = lambda: self.pick(lambda: self.number(d - 1), lambda: self.text(d - 1), lambda: self.fraction(d - 1), lambda: ('tokens',))
    return self.pick(lambda: ('where', self.truth(d - 1), s(), s()), lambda: self.copy(s(), (None, 'u', 0), d), lambda: ('tokens',),
                     lambda: ('apply', 'thin', self.number(d - 1)))

  def selector(self, d):
    r = self.r
    if d <= 0:
      return r.choice([('everything',), ('until',), ('before',), ('select', ('tokens',), ('tokens',), '=='),
                       ('select', ('indices',), ('op', '-', ('indices',), ('const', 1)), '=='),
                       ('select', ('tokens',), self.token(), '=='), ('select', ('indices',), ('indices',), 'near')])
    s = lambda: self.selector(d - 1)
    return self.pick(
        lambda: ('select', self.number(d - 1), self.number(d - 1), r.choice((*COMPARE, 'near', 'even', 'both'))),
        lambda: ('select', self.text(d - 1), self.text(d - 1), r.choice(('==', '!=', '<'))),
        lambda: ('select', self.truth(d - 1), ('const', True), '=='), lambda: ('and', s(), s()), lambda: ('and', s(), s()),
        lambda: ('or', s(), s()), lambda: ('not', s()), lambda: self.selector(0), lambda: self.selector(0))


def build(p):
  """The program as rasp's own expression."""
  kind, *rest = p
  if kind in ('tokens', 'indices', 'length', 'everything', 'until', 'before'):
    return getattr(rasp, kind)
  if kind == 'const':
    return rasp.constant(rest[0])
  if kind == 'op':
    return BUILT[rest[0]](build(rest[1]), build(rest[2]))
  if kind == 'not':
    return ~build(rest[0])
  if kind in ('and', 'or'):
    return BUILT['&' if kind == 'and' else '|'](build(rest[0]), build(rest[1]))
  if kind in ('first', 'last'):
    return getattr(build(rest[0]), kind)()
  if kind == 'abs':
    return abs(build(rest[0]))
  if kind == 'where':
    return rasp.where(*map(build, rest))
  if kind == 'default':
    return rasp.default(build(rest[0]), rest[1])
  if kind == 'divide':
    return rasp.divide(build(rest[0]), build(rest[1]), rest[2])
  if kind == 'apply':
    return rasp.apply(FUNCTIONS[rest[0]], *map(build, rest[1:]))
  if kind == 'width':
    return rasp.selector_width(build(rest[0]))
  if kind in ('total', 'largest', 'smallest'):
    return getattr(rasp, kind)(build(rest[0]), build(rest[1]))
  if kind == 'select':
    return rasp.select(build(rest[0]), build(rest[1]), CHOICES.get(rest[2], rest[2]))
  selector, x, default, one = rest
  return rasp.aggregate(build(selector), build(x), default, one)


BUILT = {**BINARY, '&': operator.and_, '|': operator.or_}


class Values:
  """What a program means on one input, in plain Python."""

  def __init__(self, row):
    self.row, self.n = list(row), len(row)

  def __call__(self, p):
    kind, *rest = p
    n = self.n
    if kind == 'tokens':
      return self.row
    if kind == 'indices':
      return list(range(n))
    if kind == 'length':
      return [n] * n
    if kind == 'const':
      return [Fraction(str(rest[0])) if isinstance(rest[0], float) else rest[0]] * n
    if kind == 'default':
      return [rest[1] if v is None else v for v in self(rest[0])]
    if kind == 'where':
      return [None if c is None else a if c else b for c, a, b in zip(*map(self, rest))]
    if kind == 'divide':
      return [None if a is None or b is None else self.run(lambda a, b: Fraction(a + 0) / (b + 0), (a, b)) if b else rest[2]
              for a, b in zip(self(rest[0]), self(rest[1]))]
    if kind == 'width':
      return [sum(row) for row in self.pairs(rest[0])]
    if kind == 'total':
      values = self(rest[1])
      return [self.run(sum, ([v for v, chosen in zip(values, row) if chosen],)) for row in self.pairs(rest[0])]
    if kind == 'aggregate':
      selector, x, default, one = rest
      values = self(x)
      return [self.mean([v for v, chosen in zip(values, row) if chosen], default, one) for row in self.pairs(selector)]
    name, of = {'op': (rest[0], rest[1:]), 'apply': (rest[0], rest[1:])}.get(kind, (kind, rest))
    f = {'not': lambda v: not v, 'abs': abs}.get(kind) or (BINARY if kind == 'op' else FUNCTIONS)[name]
    return [None if any(v is None for v in row) else self.run(f, row) for row in zip(*map(self, of))]

  @staticmethod
  def run(f, row):
    try:
      return f(*row)
    except (TypeError, ZeroDivisionError) as error:
      raise Wrong(error) from None

  @staticmethod
  def mean(chosen, default, one):
    if not chosen:
      return default
    if one or any(isinstance(v, str) or v is None for v in chosen):
      if any(v != chosen[0] for v in chosen):
        raise Wrong('two values')
      return chosen[0]
    return Fraction(sum(Fraction(v) for v in chosen), len(chosen))

  def pairs(self, s):
    """[query][key]"""
    kind, *rest = s
    n = range(self.n)
    if kind in ('everything', 'until', 'before'):
      return [[kind == 'everything' or j < i or kind == 'until' and j == i for j in n] for i in n]
    if kind == 'select':
      keys, queries = self(rest[0]), self(rest[1])
      f = CHOICES.get(rest[2]) or BINARY[rest[2]]
      return [[k is not None and q is not None and bool(self.run(f, (k, q))) for k in keys] for q in queries]
    if kind in ('largest', 'smallest'):
      values, out = self(rest[1]), []
      for row in self.pairs(rest[0]):
        keys = sorted((j for j in n if row[j]), key=lambda j: (-values[j] if kind == 'largest' else values[j], j))
        out.append([keys != [] and j == keys[0] for j in n])
      return out
    parts = [self.pairs(part) for part in rest]
    if kind == 'not':
      return [[not v for v in row] for row in parts[0]]
    if kind in ('and', 'or'):
      return [[(a and b) if kind == 'and' else (a or b) for a, b in zip(*rows)] for rows in zip(*parts)]
    out = []
    for row in parts[0]:
      places = [j for j in n if row[j]]
      keep = (places[0] if kind == 'first' else places[-1]) if places else None
      out.append([j == keep for j in n])
    return out


def forward(compiled, row):
  """The logits [n, V] of one input: the decoder's arithmetic in NumPy, all of it in float32."""
  params, model = compiled.params, compiled.model
  blocks, n = params['blocks'], len(row) + 1
  tokens = [0] + [1 + compiled.vocabulary.index(v) for v in row]
  x = params['embedding'][tokens]
  if 'position' in params:
    x = x + params['position'][:n]
  at = np.arange(n)
  for layer in range(model.layers):
    q, k, v = (np.einsum('ld,dhk->hlk', x, blocks[b]['weight'][layer]) + blocks[b]['bias'][layer][:, None]
               for b in ('query', 'key', 'value'))
    scores = q @ k.transpose(0, 2, 1)
    if model.relative_bias:
      R = model.relative_bias
      scores = scores + blocks['relative_bias'][layer][:, np.clip(at[:, None] - at, -R, R) + R]
    if compiled.report.causal:
      scores = np.where(at[:, None] >= at, scores, np.float32(-1e30))
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    a = (weights / weights.sum(-1, keepdims=True)) @ v
    x = x + np.einsum('hlk,hkd->ld', a, blocks['out']['weight'][layer]) + blocks['out']['bias'][layer]
    u = np.maximum(x @ blocks['up']['weight'][layer] + blocks['up']['bias'][layer], 0)
    x = x + u @ blocks['down']['weight'][layer] + blocks['down']['bias'][layer]
  assert x.dtype == np.float32
  return x[1:], (x @ params['head'].T)[None]


def same(expected, output, bound):
  """Whether a row of values is right: listed ones exactly, numbers within the proven bound."""
  return all(isinstance(f, float) and isinstance(e, (int, Fraction)) and abs(float(e) - f) <= bound + 1e-6 * abs(float(e))
             or not isinstance(f, float) and e == f and (e is None) == (f is None) for e, f in zip(expected, output))


def rows(vocabulary, longest, rng):
  """Inputs of short, middle and full length, of few and of many tokens."""
  for n in (1, 2, 3, (longest + 1) // 2, longest, longest, longest, longest):
    few = rng.sample(list(vocabulary), rng.randint(1, min(len(vocabulary), 4)))
    yield [rng.choice(few) for _ in range(min(n, longest))]


def check(seed):
  """('right' | 'wrong' | 'beyond' | 'order' | 'no program' | 'refused', detail) of the program of a seed."""
  generator = Generator(seed)
  program = generator.program()
  rng = random.Random(seed)
  inputs = list(rows(generator.vocabulary, generator.longest, rng))
  wanted, undefined = [], 0
  for row in inputs:
    try:
      wanted.append(Values(row)(program))
    except Wrong:
      wanted.append(None)
      undefined += 1
  try:
    compiled = rasp.compile(build(program), generator.vocabulary, generator.longest)
  except rasp.RaspError as error:
    return ('no program' if undefined else 'refused'), str(error)
  for row, want in zip(inputs, wanted):
    if want is None:
      if not compiled.report.assumed:
        return 'wrong', (row, 'has no value, and nothing is assumed')
      continue
    hidden, logits = forward(compiled, row)
    got = compiled.decode(np.concatenate([logits[:, :1], logits[:, 1:]], 1))[0]
    if not same(want, got, compiled.report.bound):
      return 'wrong', (row, want, got)
    if compiled.readout.errors(hidden, want).max() > compiled.report.bound:
      # NumPy may sum the two units of a ramp in another order than the decoder does, which the proof is of.
      order = compiled.errors([row], [want], generator.longest).max() <= compiled.report.bound
      return 'order' if order else 'beyond', (row, want, got, compiled.readout.errors(hidden, want).max(), compiled.report.bound)
  return 'right', None
