"""Every setting of a run, as plain dataclasses, and the checks that need no device and no file.

A config file returns a `Config`; flags such as `--config.model.layers=6` overwrite its fields. Checks raise
`ConfigError` with one line that names the value, what was expected and the nearest valid choice. The classes have
slots, so that setting a field that does not exist is an error.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from foundation.errors import ConfigError, nearest


@dataclasses.dataclass(slots=True, unsafe_hash=True)  # hashed as a part of a module, once it is checked and at rest
class Model:
  name: str = 'decoder'  # a key of framework.models.MODELS
  layers: int = 4
  width: int = 128
  heads: int = 4
  kv_heads: int = 0  # 0: as many as heads
  head_width: int = 0  # of a query, key and value; 0: width / heads
  feedforward: int = 0  # 0: 4 widths, or 8/3 widths (to a multiple of 8) for swiglu
  position: str = 'rope'  # rope | learned | sinusoidal | none
  rope_base: float = 10000.0
  relative_bias: int = 0  # farthest distance with its own bias on the attention logits, one a head and layer; 0: none
  mask: str = 'causal'  # causal | strict (a token does not read itself) | bidirectional
  attention_scale: str = 'sqrt'  # of the logits: sqrt (1 / sqrt of the head width) | one | log (of the keys in view)
  norm: str = 'rmsnorm'  # rmsnorm | layernorm | none
  norm_epsilon: float = 1e-5
  activation: str = 'gelu'  # gelu (tanh form) | relu | relu2 (its square) | swiglu
  bias: bool = False  # on every projection and norm
  tied_head: bool = True  # the output head is the transposed embedding
  loops: int = 1  # times that the layers run, with the same parameters
  dropout: float = 0.0
  dtype: str = 'float32'  # of the arithmetic
  param_dtype: str = 'float32'
  attention: str = 'auto'  # a backend of pallas_kernels.attention, or auto
  scan: bool = False  # one compiled layer run N times: compiles faster, steps slower on a CPU
  remat: str = 'none'  # none | dots (keep matrix products) | full: what the backward pass recomputes


@dataclasses.dataclass(slots=True, unsafe_hash=True)
class Tiered:
  """Read by model.name = tiered, whose highest tier is a decoder of the section `model`."""
  tiers: int = 2
  widths: str = ''  # of the tiers, lowest first, as in '64,128'; '': all model.width
  layers: str = ''  # of the tiers, lowest first; '': all model.layers
  steps: str = ''  # training steps of the tiers, lowest first; '': training.steps for each
  period: int = 64  # tokens from a start to the next (P)
  rollout: int = 16  # tokens of a rollout (R)
  samples: int = 1  # rollouts a start (K)
  starts: str = 'period'  # period | trigger (after a token) | entropy (where tier 1 is unsure)
  most_starts: int = 0  # of a window, the first ones; 0: window / period
  random_phase: bool = True  # windows have their first start at a random place of the first period
  trigger: int = 0  # token after which a trigger start stands
  entropy: float = 3.0  # bits of tier 1's prediction from which on an entropy start stands
  delay: int = 0  # tokens from a start to the first that may read its rollouts
  layout: str = 'stream'  # stream | stamp | cross
  read: str = 'tokens'  # what cross reads: tokens | hidden (states of the tier below)
  both_ways: bool = False  # stamp: the tokens of a rollout read each other in both directions
  across: bool = True  # stamp: rollouts read other rollouts
  last: int = 0  # stamp: only the rollouts of so many newest starts are read; 0: all
  first_bias: float = 0.0  # stamp: the learned bias of rollouts' attention weights begins here; -20 is nearly unread
  content: str = 'own'  # own | filler | shuffled | other_document | oracle | corrupted: what the top tier reads
  corruption: float = 0.5  # corrupted: share of the true future's tokens that the tier below replaces by its own
  temperature: float = 1.0  # of the rollouts
  top_k: int = 0  # of the rollouts; 0: all tokens
  rollout_dropout: float = 0.15  # share of starts whose rollouts a tier in training does not see
  warm_start: bool = True  # a tier of the size of the tier below begins as a copy of it
  memorisation: float = 0.01  # greatest excess of rollouts' accuracy on training text over held-out text
  cached: bool = False  # rollouts of the training text are written to disk before a tier is trained
  folds: int = 0  # cross-fitting: a fold of the documents has rollouts by tiers that were not trained on it; 0: none


@dataclasses.dataclass(slots=True)
class Encoder:
  """Read by model.name = encoder_decoder; its decoder is that of the section `model`, predicting data.stride tokens."""
  kind: str = 'bidirectional'  # bidirectional | right_to_left | right_to_left_scan | prefix (one stack for both)
  layers: int = 0  # 0: model.layers; the scan has one
  width: int = 0  # 0: model.width


@dataclasses.dataclass(slots=True)
class Data:
  path: str = ''  # file, folder or glob of .txt .py .jsonl, also .gz; '': the Python standard library's sources
  validation_path: str = ''  # '': a tenth of `path` is held out
  task: str = ''  # a synthetic language of framework.data.tasks in place of text, as zipf_pairs or zipf_pairs:noise=0.1
  tokens: int = 0  # of the training text, from its beginning: fewer are read for more epochs; 0: all
  tokenizer: str = 'bytes'  # bytes | chars | bpe
  vocabulary: int = 4096  # of bpe, the end-of-document token included
  window: int = 256  # tokens read (L)
  stride: int = 0  # tokens predicted per window (S <= L); 0: the window
  scored: str = 'stride'  # targets: stride (each token once an epoch) | window (all of a window: window / stride times)
  unscored: float = 0.0  # share of each window whose first targets are not scored
  random_phase: bool = False  # each epoch cuts the text elsewhere
  folds: int = 0  # parts of the training text, of whole documents; 0: none
  left_out: int = 0  # of the folds, the one that is not trained on
  packed: bool = True  # attention stays inside a document
  cache: str = ''  # folder of tokenised corpora; '': $XDG_CACHE_HOME/lemma, else ~/.cache/lemma


@dataclasses.dataclass(slots=True)
class Optimizer:
  name: str = 'adamw'  # adamw | lion | muon
  learning_rate: float = 1e-3
  final_learning_rate: float = 1e-4
  warmup_steps: int = 100
  schedule: str = 'cosine'  # cosine | linear | wsd | constant, each after a linear warm-up
  decay_fraction: float = 0.2  # of the steps, at the end (wsd)
  beta1: float = 0.9
  beta2: float = 0.99
  epsilon: float = 1e-8
  weight_decay: float = 0.1  # decoupled, on matrices only
  clip_norm: float = 1.0  # of the whole gradient; 0: never


@dataclasses.dataclass(slots=True)
class Training:
  steps: int = 1000
  batch: int = 16  # windows per step, over all devices and hosts
  accumulation: int = 1  # microbatches per step
  partition: str = 'pmap'  # pmap (replicated) | mesh (one program over a named mesh)
  devices: int = 0  # simulated devices on a CPU; 0: one per core
  seed: int = 0
  log_every: int = 10  # steps between rows of metrics.jsonl
  skip_nonfinite: int = 0  # steps with NaN or infinity that may be skipped; 0: the first stops the run
  tensorboard: bool = False


@dataclasses.dataclass(slots=True)
class Evaluation:
  every_steps: int = 0  # 0: only at the end
  windows: int = 0  # in training and at its end, evenly spread over the held-out text; 0: all
  batch: int = 0  # windows per batch; 0: the training batch
  stride: int = 0  # 0: the data's stride


@dataclasses.dataclass(slots=True)
class Checkpoint:
  every_steps: int = 200  # 0: only at the end
  keep: int = 2  # newest
  keep_every: int = 0  # besides, every checkpoint at a multiple of this; 0: none
  at_decay: bool = False  # wsd: also one where the decay begins, which is kept; longer runs can branch from it


@dataclasses.dataclass(slots=True)
class Config:
  model: Model = dataclasses.field(default_factory=Model)
  data: Data = dataclasses.field(default_factory=Data)
  optimizer: Optimizer = dataclasses.field(default_factory=Optimizer)
  training: Training = dataclasses.field(default_factory=Training)
  evaluation: Evaluation = dataclasses.field(default_factory=Evaluation)
  checkpoint: Checkpoint = dataclasses.field(default_factory=Checkpoint)
  tiered: Tiered = dataclasses.field(default_factory=Tiered)
  encoder: Encoder = dataclasses.field(default_factory=Encoder)


CHOICES = {
    'model.position': ('rope', 'learned', 'sinusoidal', 'none'),
    'model.mask': ('causal', 'strict', 'bidirectional'),
    'model.attention_scale': ('sqrt', 'one', 'log'),
    'model.norm': ('rmsnorm', 'layernorm', 'none'),
    'model.activation': ('gelu', 'relu', 'relu2', 'swiglu'),
    'model.dtype': ('float32', 'bfloat16'),
    'model.param_dtype': ('float32', 'bfloat16'),
    'model.remat': ('none', 'dots', 'full'),
    'data.tokenizer': ('bytes', 'chars', 'bpe'),
    'data.scored': ('stride', 'window'),
    'encoder.kind': ('bidirectional', 'right_to_left', 'right_to_left_scan', 'prefix'),
    'tiered.starts': ('period', 'trigger', 'entropy'),
    'tiered.layout': ('stream', 'stamp', 'cross'),
    'tiered.read': ('tokens', 'hidden'),
    'tiered.content': ('own', 'filler', 'shuffled', 'other_document', 'oracle', 'corrupted'),
    'optimizer.name': ('adamw', 'lion', 'muon'),
    'optimizer.schedule': ('cosine', 'linear', 'wsd', 'constant'),
    'training.partition': ('pmap', 'mesh'),
}

# key: (least, greatest), both allowed
BOUNDS = {
    'model.layers': (1, 1000), 'model.width': (1, 10**6), 'model.heads': (1, 10**4), 'model.kv_heads': (0, 10**4),
    'model.head_width': (0, 10**6), 'model.relative_bias': (0, 10**6), 'model.loops': (1, 10**6),
    'model.feedforward': (0, 10**7), 'model.rope_base': (1.0, 1e12), 'model.norm_epsilon': (1e-12, 1.0),
    'model.dropout': (0.0, 0.99),
    'data.vocabulary': (257, 2**24), 'data.tokens': (0, 2**40), 'data.window': (1, 2**24), 'data.stride': (0, 2**24),
    'data.unscored': (0.0, 0.99), 'data.folds': (0, 10**4), 'data.left_out': (0, 10**4),
    'optimizer.learning_rate': (0.0, 100.0), 'optimizer.final_learning_rate': (0.0, 100.0),
    'optimizer.warmup_steps': (0, 10**9), 'optimizer.decay_fraction': (0.0, 1.0), 'optimizer.beta1': (0.0, 0.999999),
    'optimizer.beta2': (0.0, 0.999999), 'optimizer.epsilon': (0.0, 1.0), 'optimizer.weight_decay': (0.0, 100.0),
    'optimizer.clip_norm': (0.0, 1e9),
    'training.steps': (1, 10**9), 'training.batch': (1, 10**7), 'training.accumulation': (1, 10**6),
    'training.devices': (0, 4096), 'training.seed': (0, 2**32 - 1), 'training.log_every': (1, 10**9),
    'training.skip_nonfinite': (0, 10**9),
    'evaluation.every_steps': (0, 10**9), 'evaluation.windows': (0, 10**9), 'evaluation.batch': (0, 10**7),
    'evaluation.stride': (0, 2**24),
    'checkpoint.every_steps': (0, 10**9), 'checkpoint.keep': (1, 10**6), 'checkpoint.keep_every': (0, 10**9),
    'encoder.layers': (0, 1000), 'encoder.width': (0, 10**6),
    'tiered.tiers': (1, 100), 'tiered.period': (1, 2**24), 'tiered.rollout': (1, 2**24), 'tiered.samples': (1, 10**6),
    'tiered.most_starts': (0, 2**24), 'tiered.trigger': (0, 2**24), 'tiered.entropy': (0.0, 64.0),
    'tiered.delay': (0, 2**24), 'tiered.last': (0, 2**24), 'tiered.first_bias': (-1e4, 1e4),
    'tiered.corruption': (0.0, 1.0), 'tiered.temperature': (0.0, 1e4), 'tiered.top_k': (0, 2**24),
    'tiered.rollout_dropout': (0.0, 1.0), 'tiered.memorisation': (0.0, 1.0), 'tiered.folds': (0, 10**4),
}


def flatten(config: Any, prefix: str = '') -> dict[str, Any]:
  """{'model.layers': 4, ...} in the order of the fields."""
  out = {}
  for field in dataclasses.fields(config):
    value = getattr(config, field.name)
    if dataclasses.is_dataclass(value):
      out.update(flatten(value, f'{prefix}{field.name}.'))
    else:
      out[prefix + field.name] = value
  return out


def from_flat(flat: Mapping[str, Any]) -> Config:
  """The inverse of `flatten`; keys that are absent keep their defaults. Raises ConfigError on an unknown key."""
  config = Config()
  known = flatten(config)
  for key, value in flat.items():
    if key not in known:
      raise ConfigError(f"config has no key '{key}'{nearest(key, known)}")
    section, name = key.split('.')
    setattr(getattr(config, section), name, value)
  return config


def check_fields(config: Config) -> None:
  """Types, bounds and choices of every single field."""
  for field in dataclasses.fields(Config):
    section = getattr(config, field.name)
    if type(section) is not field.default_factory:
      raise ConfigError(f'{field.name} is {type(section).__name__}; expected framework.config.'
                        f'{field.default_factory.__name__}')
  defaults = flatten(Config())
  for key, value in flatten(config).items():
    expected = type(defaults[key])
    whole = expected is float and type(value) is int
    if type(value) is not expected and not whole:
      raise ConfigError(f'{key} is {value!r}; expected {expected.__name__}')
    if key in CHOICES and value not in CHOICES[key]:
      raise ConfigError(f"{key} is '{value}'; expected one of {', '.join(CHOICES[key])}{nearest(value, CHOICES[key])}")
    if key in BOUNDS:
      low, high = BOUNDS[key]
      if not low <= value <= high:  # NaN fails too
        raise ConfigError(f'{key} is {value}; expected {low} to {high}, nearest is '
                          f'{low if value != value or value < low else high}')
    if whole:  # after the bounds: a huge integer is no float
      section, name = key.split('.')
      setattr(getattr(config, section), name, float(value))


def divisors_near(value: int, total: int) -> str:
  """The divisors of `total` around `value`, as words."""
  all_divisors = [d for d in range(1, total + 1) if total % d == 0]
  below = [d for d in all_divisors if d <= value][-1:]
  above = [d for d in all_divisors if d > value][:1]
  return ' or '.join(str(d) for d in below + above)


def per_tier(key: str, text: str, tiers: int, default: int) -> list[int]:
  """One whole number a tier from a list such as '64,128'. Raises ConfigError, naming `key`."""
  if not text:
    return [default] * tiers
  words = text.split(',')
  if len(words) != tiers or not all(word.strip().isdecimal() and int(word) for word in words):
    raise ConfigError(f"{key} is '{text}'; expected {tiers} whole numbers from 1, lowest tier first, nearest is "
                      f"'{','.join([str(default)] * tiers)}'")
  return [int(word) for word in words]


def check_tiered(config: Config) -> None:
  """Raises ConfigError for settings of tiers that do not go together."""
  t, m, d = config.tiered, config.model, config.data
  for name in ('mask', 'attention_scale', 'relative_bias', 'head_width'):
    if getattr(m, name) != getattr(Model, '__dataclass_fields__')[name].default:
      raise ConfigError(f"model.{name} is {getattr(m, name)}; model.name 'tiered' needs its default "
                        f"{Model.__dataclass_fields__[name].default!r}")
  for width in per_tier('tiered.widths', t.widths, t.tiers, m.width):
    if width % (2 * m.heads if m.position == 'rope' else m.heads):
      raise ConfigError(f"tiered.widths is '{t.widths}'; expected multiples of {2 * m.heads} for model.heads "
                        f'{m.heads}, nearest to {width} is {max(1, round(width / (2 * m.heads))) * 2 * m.heads}')
  per_tier('tiered.layers', t.layers, t.tiers, m.layers)
  per_tier('tiered.steps', t.steps, t.tiers, config.training.steps)
  if t.period > d.window and t.starts == 'period':
    raise ConfigError(f'tiered.period is {t.period}; expected at most data.window {d.window}')
  if t.starts != 'period' and not t.most_starts:
    raise ConfigError(f"tiered.most_starts is 0; tiered.starts '{t.starts}' needs the most starts of a window, nearest "
                      f'is {max(1, d.window // t.period)}')
  if t.delay >= d.window:
    raise ConfigError(f'tiered.delay is {t.delay}; expected less than data.window {d.window}')
  only = {'both_ways': ('stamp', False), 'across': ('stamp', True), 'last': ('stamp', 0), 'first_bias': ('stamp', 0.0),
          'read': ('cross', 'tokens')}
  for name, (layout, default) in only.items():
    if t.layout != layout and getattr(t, name) != default:
      raise ConfigError(f"tiered.{name} is {getattr(t, name)}; only tiered.layout '{layout}' has it, this is "
                        f"'{t.layout}': expected {default}")
  t.cached = t.cached or t.folds > 0
  if t.folds == 1:
    raise ConfigError('tiered.folds is 1, which leaves nothing to train on; expected 0 or at least 2')
  if t.folds and t.starts == 'entropy':
    raise ConfigError(f"tiered.folds is {t.folds}; with tiered.starts 'entropy' every fold's tier has starts of its "
                      'own: expected 0')
  if t.cached:
    for key, value, wanted in (('tiered.read', t.read, 'tokens'), ('data.random_phase', d.random_phase, False),
                               ('data.task', d.task, '')):
      if value != wanted:
        raise ConfigError(f'{key} is {value!r}; tiered.cached keeps the tokens that follow each window of a text: '
                          f'expected {wanted!r}')
  if t.read == 'hidden' and t.content not in ('own', 'shuffled'):
    raise ConfigError(f"tiered.content is '{t.content}'; tiered.read 'hidden' has no such content, nearest is 'own'")


def check_encoder(config: Config) -> None:
  """Raises ConfigError for an encoder without a history, or of a width that its heads do not divide."""
  d, m, width = config.data, config.model, config.encoder.width or config.model.width
  if d.stride >= d.window:
    raise ConfigError(f"data.stride is {d.stride}; model.name 'encoder_decoder' reads the window's tokens before it, "
                      f'so expected less than data.window {d.window}, nearest is {d.window - 1}')
  if d.scored != 'stride' or d.unscored:
    key, value = ('scored', d.scored) if d.scored != 'stride' else ('unscored', d.unscored)
    raise ConfigError(f"data.{key} is {value}; model.name 'encoder_decoder' scores its block alone: expected "
                      f'{getattr(Data(), key)}')
  if config.evaluation.stride != d.stride:
    raise ConfigError(f"evaluation.stride is {config.evaluation.stride}; model.name 'encoder_decoder' predicts "
                      f'data.stride tokens a window: expected {d.stride}')
  if width % (2 * m.heads):
    raise ConfigError(f'encoder.width is {width}; expected a multiple of {2 * m.heads} for model.heads {m.heads}, '
                      f'nearest is {max(1, round(width / (2 * m.heads))) * 2 * m.heads}')


def check(config: Config) -> Config:
  """Fills in the derived fields and raises ConfigError for whatever needs no device and no file to be seen wrong."""
  check_fields(config)
  m, d, o, t, e = config.model, config.data, config.optimizer, config.training, config.evaluation
  m.kv_heads = m.kv_heads or m.heads
  m.feedforward = m.feedforward or (4 * m.width if m.activation != 'swiglu' else -(-8 * m.width // 24) * 8)
  d.stride = d.stride or d.window
  e.batch = e.batch or t.batch
  e.stride = e.stride or d.stride
  if m.width % m.heads and not m.head_width:
    raise ConfigError(f'model.heads is {m.heads}; expected a divisor of model.width {m.width}, nearest is '
                      f'{divisors_near(m.heads, m.width)}')
  if m.heads % m.kv_heads:
    raise ConfigError(f'model.kv_heads is {m.kv_heads}; expected a divisor of model.heads {m.heads}, nearest is '
                      f'{divisors_near(m.kv_heads, m.heads)}')
  if m.position == 'rope' and m.head_width % 2:
    raise ConfigError(f'model.head_width is {m.head_width}; rope needs an even one, nearest is {m.head_width + 1}')
  if m.position == 'rope' and not m.head_width and (m.width // m.heads) % 2:
    raise ConfigError(f'model.width / model.heads is {m.width // m.heads}; rope needs an even head width, nearest is '
                      f'model.width {m.width + m.heads}')
  if m.position == 'sinusoidal' and m.width % 2:
    raise ConfigError(f'model.width is {m.width}; sinusoidal positions need an even one, nearest is {m.width + 1}')
  for key, stride in (('data.stride', d.stride), ('evaluation.stride', e.stride)):
    if stride > d.window:
      raise ConfigError(f'{key} is {stride}; expected at most data.window {d.window}')
  if d.left_out and d.left_out >= d.folds:
    raise ConfigError(f'data.left_out is {d.left_out}; expected a fold of data.folds {d.folds}, nearest is '
                      f'{max(0, d.folds - 1)}')
  if d.folds == 1:
    raise ConfigError('data.folds is 1, which leaves nothing to train on; expected 0 or at least 2')
  if d.folds and d.random_phase:
    raise ConfigError('data.random_phase is True with data.folds, whose windows stay where they are; expected False')
  if t.batch % t.accumulation:
    raise ConfigError(f'training.accumulation is {t.accumulation}; expected a divisor of training.batch {t.batch}, '
                      f'nearest is {divisors_near(t.accumulation, t.batch)}')
  if o.schedule != 'constant' and o.final_learning_rate > o.learning_rate:
    raise ConfigError(f'optimizer.final_learning_rate is {o.final_learning_rate}; expected at most '
                      f'optimizer.learning_rate {o.learning_rate}')
  if config.checkpoint.at_decay and o.schedule != 'wsd':
    raise ConfigError(f"checkpoint.at_decay is True; expected optimizer.schedule 'wsd' with it, not '{o.schedule}'")
  if o.warmup_steps >= t.steps and o.warmup_steps > 0:
    raise ConfigError(f'optimizer.warmup_steps is {o.warmup_steps}; expected fewer than training.steps {t.steps}, '
                      f'nearest is {t.steps - 1}')
  if m.name == 'tiered':
    check_tiered(config)
  if m.name == 'encoder_decoder':
    check_encoder(config)
  return config


def check_devices(config: Config, devices: int) -> None:
  """Raises ConfigError if the batch does not divide over `devices` and microbatches."""
  t = config.training
  parts = devices * t.accumulation
  if t.batch % parts:
    below = t.batch // parts * parts
    nearest_batch = f'{below} or {below + parts}' if below else f'{parts}'
    raise ConfigError(f'training.batch is {t.batch}; expected a multiple of {devices} devices x {t.accumulation} '
                      f'microbatches = {parts}, nearest is {nearest_batch}')
