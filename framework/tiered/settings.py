"""The settings of tiers: what each tier has of them, and what does not go together."""

from framework import config as config_lib
from framework.config import ConfigError


def per_tier(t: config_lib.Tiered, name: str, default: int) -> list[int]:
  """The setting `name` of each tier, lowest first, from a list such as '64,128'. Raises ConfigError."""
  text = getattr(t, name)
  if not text:
    return [default] * t.tiers
  words = text.split(',')
  if len(words) != t.tiers or not all(word.strip().isdecimal() and int(word) for word in words):
    raise ConfigError(f"tiered.{name} is '{text}'; expected {t.tiers} whole numbers from 1, lowest tier first, nearest "
                      f"is '{','.join([str(default)] * t.tiers)}'")
  return [int(word) for word in words]


def resolve(config: config_lib.Config) -> None:
  """Fills in what follows from other settings of tiers; raises ConfigError for those that do not go together."""
  t, m, d, plain = config.tiered, config.model, config.data, config_lib.Model()
  for name in ('mask', 'attention_scale', 'relative_bias', 'head_width', 'sliding_window'):
    if getattr(m, name) != getattr(plain, name):
      raise ConfigError(f"model.{name} is {getattr(m, name)}; model.name 'tiered' needs its default "
                        f'{getattr(plain, name)!r}')
  for width in per_tier(t, 'widths', m.width):
    if width % (2 * m.heads if m.position == 'rope' else m.heads):
      raise ConfigError(f"tiered.widths is '{t.widths}'; expected multiples of {2 * m.heads} for model.heads "
                        f'{m.heads}, nearest to {width} is {max(1, round(width / (2 * m.heads))) * 2 * m.heads}')
  per_tier(t, 'layers', m.layers)
  per_tier(t, 'steps', config.training.steps)
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
