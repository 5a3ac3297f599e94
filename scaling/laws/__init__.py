"""What a loss is as a function of parameters N and training tokens D, and where each law puts the optimum.

A law is a file that defines `law()`, which returns a `Law`; its fields, in _law.py, are all that the commands ask of
it. A law that needs ln(vocabulary) in nats takes it as its one argument. A law of one's own needs no edit here: any
command takes --law=path/to/mine.py (compare: --laws), for example

  from scaling.laws import Law

  def law():
    '''A third term for the compute itself.'''
    def log_loss(theta, x, xp):
      e, a, b, alpha, beta, g, gamma = (theta[..., i, None] for i in range(7))
      return xp.log(xp.exp(e) + xp.exp(a - alpha * x['n']) + xp.exp(b - beta * x['d'])
                    + xp.exp(g - gamma * (x['n'] + x['d'])))
    return Law('mine', 'E + A/N^alpha + B/D^beta + G/(ND)^gamma', 'me', ('E', 'A', 'B', 'alpha', 'beta', 'G', 'gamma'),
               log_loss, logs=('E', 'A', 'B', 'G'), tries={'G': [1.0], 'gamma': [0.2]})

Before it is fitted its functions are called once: a start, a shape, a derivative or an optimum that contradicts the
loss is refused. Laws work on logarithms, of the columns (`n` = ln N, ...) and of the loss. Losses are in nats per
token, N in parameters, D in tokens, C in FLOPs. A law reads any columns: those of scaling.columns by their keys, as in
columns=('n', 'd', 'bits'), and one of its own as columns=('n', 'd', Column('depth', unit='layers')).
"""

from scaling.columns import Column
from scaling.laws._find import law, names
from scaling.laws._law import Law, Terms
from scaling.laws._optimum import allocation
from scaling.laws.additive import law as additive
from scaling.laws.bounded import law as bounded
from scaling.laws.coupled import law as coupled
from scaling.laws.experts import experts
from scaling.laws.kaplan import law as kaplan
from scaling.laws.overtraining import law as overtraining
from scaling.laws.repeated import repeated
from scaling.laws.tied import law as tied

__all__ = ['Column', 'Law', 'Terms', 'additive', 'allocation', 'bounded', 'coupled', 'experts', 'kaplan', 'law', 'names',
           'overtraining', 'repeated', 'tied']
