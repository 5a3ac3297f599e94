"""The tiered rollout model: decoders above each other that think ahead in text. See framework.tiered."""

from framework.tiered.model import build
from framework.tiered.settings import resolve
from framework.tiered.stages import result, stages

__all__ = ['build', 'resolve', 'result', 'stages']
