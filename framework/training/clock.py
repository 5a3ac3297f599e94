"""Time: seconds spent stepping, tokens a second, model FLOP/s utilisation and the time that remains."""

import time

import jax

# Dense bfloat16 FLOP/s of one device, by the vendors' data sheets; a device that is not here has no MFU.
PEAK_FLOPS = {
    'NVIDIA H100 80GB HBM3': 989e12, 'NVIDIA H100 PCIe': 756e12, 'NVIDIA H200': 989e12,
    'NVIDIA A100-SXM4-40GB': 312e12, 'NVIDIA A100-SXM4-80GB': 312e12, 'NVIDIA A100 80GB PCIe': 312e12,
    'TPU v4': 275e12, 'TPU v5': 459e12, 'TPU v5p': 459e12, 'TPU v5 lite': 197e12, 'TPU v6 lite': 918e12,
}


class Clock:
  """Counts the seconds of a run over all its resumptions; the first step of each, which compiles, is left out.

  Args:
    seconds: spent before this start, from the checkpoint.
    step_tokens: tokens read in a step, over all devices.
    step_flops: training FLOPs of a step, over all devices.
  """

  def __init__(self, seconds: float, step_tokens: int, step_flops: float):
    self.seconds, self.step_tokens, self.step_flops = seconds, step_tokens, step_flops
    self.steps = 0
    self._last: float | None = None
    self._window = 0.0  # exponential mean of seconds a step
    peak = PEAK_FLOPS.get(jax.devices()[0].device_kind)
    self._peak = peak * jax.device_count() if peak else None

  def tick(self) -> None:
    """Call when a step has ended."""
    now = time.perf_counter()
    if self._last is not None:
      spent = now - self._last
      self.seconds += spent
      self.steps += 1
      self._window += (spent - self._window) * max(0.05, 1 / self.steps)
    self._last = now

  def pause(self) -> None:
    """Call before evaluating or saving: the time to the next tick is not a step's."""
    self._last = None

  def rates(self, steps_left: int) -> dict[str, float]:
    """seconds, tokens_per_second, eta_seconds, and mfu where the device's peak is known."""
    if not self.steps:
      return {'seconds': self.seconds}
    out = {'seconds': self.seconds, 'tokens_per_second': self.step_tokens / self._window,
           'eta_seconds': steps_left * self._window}
    if self._peak:
      out['mfu'] = self.step_flops / self._window / self._peak
    return out


def duration(seconds: float) -> str:
  """'1:02:03' or '2:03'."""
  minutes, s = divmod(int(seconds + 0.5), 60)
  hours, m = divmod(minutes, 60)
  return f'{hours}:{m:02d}:{s:02d}' if hours else f'{m}:{s:02d}'
