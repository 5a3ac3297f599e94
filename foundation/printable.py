"""Text of somebody else's, made harmless for a terminal, a page or a drawing."""

import unicodedata

JOINERS = '\u200c\u200d'  # inside words of Persian and Hindi, and between the parts of an emoji


def printable(text: object, most: int = 0, keep: str = '') -> str:
  r"""The text with what acts on its reader written out: escapes as \x1b, line breaks as \n, marks that turn the
  direction of writing as \u202e, lone surrogates as \udc80.

  Args:
    most: characters, beyond which the middle is left out; 0: all are shown.
    keep: characters that stay as they are, such as line breaks.
  """
  text = str(text)
  if most and len(text) > most:
    text = f'{text[:most // 2]}…{text[len(text) - (most - 1) // 2:]}'
  if text.isprintable():
    return text
  return ''.join(c if c.isprintable() or c in keep or c in JOINERS or unicodedata.category(c) == 'Zs' else
                 c.encode('unicode_escape').decode() for c in text)
