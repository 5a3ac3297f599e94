"""What a run measures while it trains: the metrics of each step become rows, one step late, so that nothing waits."""

from collections.abc import Callable
import math
from typing import Any

import jax

from framework import config as config_lib
from framework.data import mixtures, windows
from framework.training import clock, writer


class NonFinite(RuntimeError):
  """The loss or the gradient was NaN or infinite; the message is one line for the user."""


class Meter:
  """Rows of a run, its clock and its count of targets.

  Args:
    text: what is trained on.
    record: of the checkpoint that the run goes on from: step, targets, seconds, and the row of a step that has yet to
      be evaluated, as `pending`.
    step_flops: training FLOPs of a step, over all devices.
  """

  def __init__(self, c: config_lib.Config, text: windows.Windows, record: dict[str, Any], step_flops: float,
               out: writer.Writer):
    self._c, self._text, self._out = c, text, out
    self._tokens_per_byte = text.tokens_per_byte
    self._clock = clock.Clock(record['seconds'], c.training.batch * c.data.window, step_flops)
    self._pending: tuple[int, dict[str, jax.Array]] | None = None
    self.row: dict[str, Any] | None = record.get('pending')  # of the last step that ended, until it is written
    self.targets = record['targets']

  @property
  def seconds(self) -> float:
    return self._clock.seconds

  def take(self, number: int, metrics: dict[str, jax.Array], saved: Callable[[], list[int]]) -> None:
    """Ends the step before, writes its row, and keeps this one's metrics, whose arrays may not be there yet."""
    self.end(saved)
    self.write()
    self._pending = (number, metrics)

  def pause(self) -> None:
    """What follows until the next step is no step's time."""
    self._clock.pause()

  def end(self, saved: Callable[[], list[int]]) -> None:
    """Reads the pending step's metrics, which waits for that step.

    Raises:
      NonFinite: it was not finite, and more such steps than may be skipped; `saved` gives the steps of checkpoints.
    """
    if self._pending is None:
      return
    number, metrics = self._pending[0], jax.device_get(self._pending[1])
    self._pending = None
    self._clock.tick()
    self.targets += int(metrics['targets'])
    self._refuse_nonfinite(number, metrics, saved)
    self.row = self._row(number, metrics)

  def write(self, result: dict[str, Any] | None = None) -> None:
    """Writes the row of the step that ended, with the held-out losses of its evaluation if there was one."""
    if self.row is None:
      return
    row, number, self.row = self.row, self.row['step'], None
    if result:
      row = row | {'validation_loss': result['nats_per_token'], 'validation_bits_per_byte': result['bits_per_byte']}
      if 'sources' in result:
        row |= {'validation_losses': {name: one['nats_per_token'] for name, one in result['sources'].items()}}
    rates = self._clock.rates(self._c.training.steps - number)
    if number % self._c.training.log_every == 0 or number == self._c.training.steps or result:
      self._out.row(row, rates)
    self._out.live(number, row, rates)

  def _row(self, number: int, metrics: dict[str, Any]) -> dict[str, Any]:
    loss, norm = (float(metrics[name]) if metrics['finite'] else None for name in ('loss', 'gradient_norm'))
    row = {'step': number, 'loss': loss, 'bits_per_byte': loss and loss / math.log(2) * self._tokens_per_byte,
           'tokens': self.targets, 'learning_rate': float(metrics['learning_rate']), 'gradient_norm': norm,
           'epoch': round(number * self._c.training.batch / self._text.count, 6)}
    if isinstance(self._text, mixtures.MixedWindows):
      row['epochs'] = self._text.epochs(number * self._c.training.batch, self._c.training.seed)
    return row | ({'skipped': int(metrics['skipped'])} if metrics['skipped'] else {})

  def _refuse_nonfinite(self, number: int, metrics: dict[str, Any], saved: Callable[[], list[int]]) -> None:
    t, skipped = self._c.training, int(metrics['skipped'])
    if metrics['finite'] or (t.skip_nonfinite and skipped <= t.skip_nonfinite):
      return
    bad = self._text.drawn(t.batch, t.seed, number - 1)
    steps = saved()
    raise NonFinite(
        f"step {number}: loss {float(metrics['loss'])}, gradient norm {float(metrics['gradient_norm'])}; windows "
        f"{', '.join(map(str, bad))}; last good checkpoint: {steps[-1] if steps else 'none'}"
        + (f'; {skipped} steps skipped, training.skip_nonfinite is {t.skip_nonfinite}' if skipped else ''))
