"""Scaling laws from the command line: python -m scaling COMMAND --runs=PATH [flags].

Commands:
  fit      a law, its errors and intervals, every doubt; --report=FOLDER writes a page with figures
  predict  the loss of a run that has not started, with its interval; --ledger=FILE writes it down
  plan     the best N and D for a budget, with repeated data or with inference to pay
  design   the next runs to buy, for the most information on the optimum
  compare  laws by their errors of prediction, approaches side by side, and a ledger with what was measured

Example:
  python -m scaling fit --runs=runs --delta=1e-3
`python -m scaling COMMAND --help` shows a command's flags and examples. PATH is a folder of runs with result.json, or a
CSV whose columns N, D and loss are found by name.
"""

import os
import sys

from absl import app, flags

HELP = {
    'fit': """python -m scaling fit: fits a law and says how sure it is.

Prints a row a parameter (value, bootstrap standard error, profile interval and its simulated coverage), the objective,
the correlations, and doubts in words. Ends with 1 if the fit is not accepted, with 2 if the table is refused.

Examples:
  python -m scaling fit --runs=../shared/data/scaling/chinchilla_epoch_245.csv --exclude=outlier5 --delta=1e-3
  python -m scaling fit --runs=runs --law=coupled --loss=student_t --report=report
  python -m scaling fit --runs=ladder.csv --columns=N=params,loss=c4 --where='role=train,N<2e9' --allow=few_sizes
  python -m scaling fit --runs=repeat.csv --law=repeated_tied --fix=E=1.869,A=520.8,B=1487.7,alpha=0.3527
""",
    'predict': """python -m scaling predict: the loss of a run of N parameters and D tokens, with its interval.

With --ledger the prediction is written before the run starts; an entry is never rewritten.

Examples:
  python -m scaling predict --runs=runs --law=coupled --N=819e3 --D=8e6
  python -m scaling predict --runs=runs --N=819e3 --D=8e6 --ledger=ledger.jsonl --name=largest
""",
    'plan': """python -m scaling plan: what to train for a budget.

A budget is in FLOPs, seconds or dollars (--unit). --unique: only so many tokens exist (a law of repeated data).
--target_loss with --prefill and --decode: the cheapest model of that loss that serves so many tokens.

Examples:
  python -m scaling plan --runs=runs --budget=1e18 --N=5e8
  python -m scaling plan --runs=runs --budget=200 --unit=dollars --flops_per_second=4e14 --dollars_per_hour=2.5
  python -m scaling plan --runs=repeat.csv --law=repeated --budget=1e21 --unique=1e9
  python -m scaling plan --runs=experts.csv --law=experts --budget=1e20 --K=16
  python -m scaling plan --runs=runs --target_loss=2.1 --prefill=2e12 --decode=1e11
""",
    'design': """python -m scaling design: the next runs to buy, the most information on N_opt(C) per FLOP first.

Repeats stop where seed noise is below the misfit allowed to a run far below C.

Example:
  python -m scaling design --runs=runs --compute_target=1e20 --budget=1e18 --seed_noise=0.002
  python -m scaling design --runs=repeat.csv --law=repeated --budget=1e19 --unique=1e9
""",
    'compare': """python -m scaling compare: laws by prediction, approaches side by side, and a ledger's entries.

A law is fitted below a compute and tested above it, for every compute that leaves enough runs.

With --ledger, --name and --measured what a run measured is written beside its prediction, and the two are shown.

Examples:
  python -m scaling compare --runs=runs --laws=additive,tied,kaplan,coupled
  python -m scaling compare --ledger=ledger.jsonl --name=largest --measured=2.311
""",
}
FLAGS_OF = {
    'table': ('runs', 'columns', 'units', 'exclude', 'where', 'params', 'compute', 'allow', 'vocabulary'),
    'fitting': ('law', 'loss', 'delta', 'penalty', 'fix'),
    'fit': ('bootstrap', 'kind', 'simulations', 'level', 'compute_target', 'posterior', 'report',
            'positions'),
    'predict': ('N', 'D', 'U', 'K', 'level', 'simulations', 'ledger', 'name'),
    'plan': ('budget', 'unit', 'flops_per_second', 'dollars_per_hour', 'prefill_flops_per_second',
             'decode_flops_per_second', 'unique', 'target_loss', 'prefill', 'decode', 'level', 'N', 'K'),
    'design': ('compute_target', 'budget', 'unique', 'K', 'seed_noise', 'misfit', 'most'),
    'compare': ('laws', 'reach', 'compute_target', 'ledger', 'name', 'measured'),
}

flags.DEFINE_string('runs', '', 'folder of runs with result.json, or a CSV')
flags.DEFINE_string('columns', '', 'headers of standard names that are not found: N=params,loss=c4')
flags.DEFINE_string('units', '', 'loss=nats|bits, N and D=1|thousands|millions|billions|log10, C=flop|pflop_days')
flags.DEFINE_string('exclude', '', 'drop the rows where this column is not zero')
flags.DEFINE_string('where', '', 'keep the rows where every comparison holds: role=train,N<2e9,mult=1|2')
flags.DEFINE_string('params', '', 'what N counts: given | total | no_input | body; empty: the first there is')
flags.DEFINE_string('compute', '', 'what C counts: given | exact | 6nd; empty: the first there is')
flags.DEFINE_list('allow', [], 'codes of findings that do not refuse the table: few_sizes,short_range')
flags.DEFINE_float('vocabulary', 0.0, 'number of tokens in the vocabulary; 0: unknown')
flags.DEFINE_string('law', 'additive', 'additive | tied | kaplan | coupled | overtraining | bounded | repeated | '
                    'repeated_tied | repeated_coupled | experts')
flags.DEFINE_string('loss', 'huber', 'objective: huber | lad | student_t | asymmetric | squares')
flags.DEFINE_float('delta', 1e-3, 'Huber delta in ln loss; 0: fitted to the residuals')
flags.DEFINE_float('penalty', 10.0, 'asymmetric: weight of a law above its run')
flags.DEFINE_string('fix', '', 'parameters kept as given: E=1.7,alpha=0.34')
flags.DEFINE_integer('bootstrap', 1000, 'bootstrap draws')
flags.DEFINE_string('kind', 'pairs', 'bootstrap: pairs | cluster (by size) | residual')
flags.DEFINE_integer('simulations', 100, 'simulated tables for the coverage; 0: none')
flags.DEFINE_float('level', 0.9, 'nominal level of intervals')
flags.DEFINE_float('compute_target', 0.0, 'FLOPs of the decision; 0: ten times the largest run')
flags.DEFINE_bool('posterior', False, 'also a Student-t posterior by NUTS (extra: bayes)')
flags.DEFINE_string('report', '', 'folder for a report page with figures')
flags.DEFINE_integer('positions', 0, 'also a law for each of so many groups of positions in the window; -1: each')
flags.DEFINE_float('N', 0.0, 'parameters of the run to predict; plan: of a run to compare with the best')
flags.DEFINE_float('D', 0.0, 'tokens of the run to predict')
flags.DEFINE_float('U', 0.0, 'unique tokens of the run to predict; 0: all of D')
flags.DEFINE_float('K', 1.0, 'experts of the run; a law of experts counts its active parameters')
flags.DEFINE_string('ledger', '', 'append-only file of predictions')
flags.DEFINE_string('name', '', 'name of a ledger entry')
flags.DEFINE_float('measured', 0.0, 'measured loss of the ledger entry, nats per token')
flags.DEFINE_float('budget', 0.0, 'budget in --unit')
flags.DEFINE_string('unit', 'flops', 'flops | seconds | dollars')
flags.DEFINE_float('flops_per_second', 0.0, 'useful FLOP/s in training')
flags.DEFINE_float('dollars_per_hour', 0.0, 'price of the machine')
flags.DEFINE_float('prefill_flops_per_second', 0.0, 'useful FLOP/s in prefill; 0: as in training')
flags.DEFINE_float('decode_flops_per_second', 0.0, 'useful FLOP/s in decode; 0: as in training')
flags.DEFINE_float('unique', 0.0, 'unique tokens that exist; 0: no limit')
flags.DEFINE_float('target_loss', 0.0, 'loss to reach, nats per token')
flags.DEFINE_float('prefill', 0.0, 'prompt tokens served over the life of the model')
flags.DEFINE_float('decode', 0.0, 'generated tokens served over the life of the model')
flags.DEFINE_float('seed_noise', 0.0, 'sd of ln loss between seeds; 0: the rms residual')
flags.DEFINE_float('misfit', 0.002, 'sd of ln loss a decade of compute below the target that no repeat removes')
flags.DEFINE_integer('most', 20, 'runs shown')
flags.DEFINE_list('laws', ['additive', 'tied', 'kaplan', 'coupled'], 'laws to compare')
flags.DEFINE_float('reach', 0.0, 'only cuts at most the largest compute over this; 0: all')

FLAGS = flags.FLAGS


def _runs():
  from scaling import table
  if not FLAGS.runs:
    raise table.TableError('--runs is missing: a folder of runs with result.json, or a CSV with columns N, D, loss')
  runs = table.read(FLAGS.runs, table.parse_assignments(FLAGS.columns, '--columns'),
                    table.parse_assignments(FLAGS.units, '--units'))
  runs = runs.where(FLAGS.where) if FLAGS.where else runs
  return runs.exclude(FLAGS.exclude) if FLAGS.exclude else runs


def _counting():
  from scaling import table
  return table.Counting(FLAGS.params, FLAGS.compute)


def _table():
  """(observations, findings) of the runs, each cell at its best learning rate."""
  import math
  from scaling import lints, table
  runs = _runs()
  _, findings = lints.check(runs, _counting(), FLAGS.allow, math.log(FLAGS.vocabulary) if FLAGS.vocabulary else None)
  return table.best_rate(runs).observe(_counting()), findings


def _loss():
  from scaling.objective import Loss
  return Loss(FLAGS.loss, FLAGS.delta, FLAGS.penalty)


def _law(name=''):
  import math
  from scaling.laws import law
  return law(name or FLAGS.law, math.log(FLAGS.vocabulary) if FLAGS.vocabulary else None)


def _experts(law):
  """--K, or None for a law without experts."""
  from scaling.table import TableError
  if FLAGS.K < 1:
    raise TableError(f'--K={FLAGS.K:g}: expected a number of experts from 1 up')
  if 'k' not in law.columns:
    if FLAGS.K != 1:
      raise TableError(f'--K={FLAGS.K:g}: law {law.name} knows no experts; fit --law=experts')
    return None
  return FLAGS.K


def _fitted():
  from scaling.fit import fit
  from scaling.table import TableError, parse_assignments
  observations, findings = _table()
  fixed = {}
  for name, value in parse_assignments(FLAGS.fix, '--fix').items():
    try:
      fixed[name] = float(value)
    except ValueError:
      raise TableError(f'--fix: {name}={value!r} is not a number') from None
  return fit(observations, _law(), _loss(), fixed), findings


def _target(observations) -> float:
  return FLAGS.compute_target or 10.0 * float(observations.C.max())


def _end(result) -> int:
  return 0 if result.accepted else 1


def run_fit() -> int:
  from scaling import report, uncertainty
  result, findings = _fitted()
  C = _target(result.observations)
  about = report.doubt(result, C, FLAGS.bootstrap, FLAGS.simulations, FLAGS.level, FLAGS.kind, FLAGS.delta == 0)
  print(report.summary(result, about, findings))
  if FLAGS.posterior:
    draws, state = uncertainty.posterior(result.observations, result.law)
    print('posterior, Student-t: ' + ', '.join(
        f'{name} {value.mean():.5g} ± {value.std():.3g}' for name, value in result.law.display(draws).items()) +
          f'; r_hat {state["r_hat"]:.3f}, {state["divergences"]} divergences')
  if FLAGS.positions:
    print(report.positions_text(_runs(), _counting(), max(FLAGS.positions, 0)))
  if FLAGS.report:
    print(f'report {report.page(FLAGS.report, result.observations, result, about, C, _loss(), findings=findings)}')
  return _end(result)


def run_predict() -> int:
  import dataclasses
  from scaling import ledger, uncertainty
  from scaling.table import TableError
  if FLAGS.N <= 0 or FLAGS.D <= 0:
    raise TableError(f'--N={FLAGS.N:g} --D={FLAGS.D:g}: expected the parameters and tokens of the run to predict')
  if FLAGS.ledger and not FLAGS.name:
    raise TableError('--ledger needs --name, the name of the prediction')
  result, findings = _fitted()
  quantity = uncertainty.loss_at(result.law, FLAGS.N, FLAGS.D, FLAGS.U or None, _experts(result.law))
  interval = uncertainty.profile(result, quantity, FLAGS.level, new_run=True)
  mean = uncertainty.profile(result, quantity, FLAGS.level)
  if FLAGS.simulations:
    found = uncertainty.coverage(result, [quantity], FLAGS.level, FLAGS.simulations, fit_scale=FLAGS.delta == 0)
    mean = dataclasses.replace(mean, coverage=float(found[0]))
  o = result.observations
  if FLAGS.ledger:
    seen = bool(((abs(o.N / FLAGS.N - 1) < 1e-3) & (abs(o.D / FLAGS.D - 1) < 1e-3)).any())
    ledger.predict(FLAGS.ledger, FLAGS.name, N=FLAGS.N, D=FLAGS.D, loss=interval.estimate, low=interval.low,
                   high=interval.high, level=FLAGS.level, law=result.law.name,
                   objective=f'{FLAGS.loss} {FLAGS.delta:g}', runs=len(o), source=o.source, seen=seen)
  print(f'{result.law.name}: {interval} (one run, with its noise)\n{result.law.name}: {mean} (the law itself)')
  print(f'{6 * FLAGS.N * FLAGS.D / float(o.C.max()):.3g} times the largest compute fitted; rms residual '
        f'{100 * result.rms:.3f} %')
  for note in (*result.notes, *map(str, findings)):
    print(f'doubt: {note}')
  if FLAGS.ledger:
    print(f'written to {FLAGS.ledger} as {FLAGS.name}' + (' (this run is in the table: no prediction)' if seen else ''))
  return _end(result)


def run_plan() -> int:
  import numpy as np
  from scaling import plan, report, uncertainty
  from scaling.table import TableError
  if not FLAGS.budget and not FLAGS.target_loss:
    raise TableError('plan needs --budget (with --unit) or --target_loss (with --prefill, --decode)')
  rates = plan.Rates(FLAGS.flops_per_second, FLAGS.dollars_per_hour, FLAGS.prefill_flops_per_second,
                     FLAGS.decode_flops_per_second)
  result, findings = _fitted()
  C = rates.flops(FLAGS.budget, FLAGS.unit) if FLAGS.budget else 0.0
  if FLAGS.target_loss:
    best, saved = plan.inference_aware(result, FLAGS.target_loss, FLAGS.prefill, FLAGS.decode, rates)
    print(f'{100 * saved:.1f} % of the cost saved against the compute-optimal model of this loss')
  elif FLAGS.unique:
    best = plan.with_repetition(result, C, FLAGS.unique)
    print(f'{best.epochs:.2f} epochs of {FLAGS.unique:.4g} unique tokens')
    for name in ('R_D', 'R_N'):
      if name not in result.fixed:
        interval = uncertainty.profile(result, uncertainty.parameter(result.law, name), FLAGS.level)
        print(report.parameter_row(interval, result.errors[name]))
  else:
    best = plan.compute_optimal(result, C, _experts(result.law))
  print(f'N {best.N:.5g} parameters\nD {best.D:.5g} tokens ({best.ratio:.3g} per parameter)\nC {best.C:.5g} FLOPs\n'
        f'loss {best.loss:.5g} nats per token\nnearly as good: N from {best.near[0]:.3g} to {best.near[1]:.3g}')
  if rates.flops_per_second:
    seconds = best.C / rates.flops_per_second
    price = f', {seconds / 3600 * rates.dollars_per_hour:.4g} dollars' if rates.dollars_per_hour else ''
    print(f'training {seconds:.4g} seconds{price}')
  if not FLAGS.target_loss and not FLAGS.unique:
    for quantity in (uncertainty.n_opt(result.law, C, _experts(result.law)),
                     uncertainty.best_loss(result.law, C, _experts(result.law))):
      print(uncertainty.profile(result, quantity, FLAGS.level))
    if FLAGS.N:
      lost = uncertainty.regret(result.law, uncertainty.bootstrap(result, 300), C, FLAGS.N, _experts(result.law))
      low, middle, high = np.nanquantile(lost, [(1 - FLAGS.level) / 2, 0.5, (1 + FLAGS.level) / 2])
      print(f'N {FLAGS.N:.4g} instead loses {middle:.3g} nats per token, {100 * FLAGS.level:g} % of bootstraps '
            f'[{low:.3g}, {high:.3g}]')
  for note in (*best.notes, *result.notes, *map(str, findings)):
    print(f'doubt: {note}')
  return _end(result)


def run_design() -> int:
  from scaling import plan
  result, _ = _fitted()
  bought = plan.next_runs(result, _target(result.observations), FLAGS.budget, seed_noise=FLAGS.seed_noise,
                          misfit=FLAGS.misfit, unique=FLAGS.unique, K=_experts(result.law) or 1.0)
  target = 'the loss of the best run' if 'u' in result.law.columns else 'N_opt'
  print(f'{"N":>10s} {"D":>10s} {"epochs":>6s} {"experts":>7s} {"repeat":>6s} {"FLOPs":>10s}   sd of ln {target} at '
        f'{_target(result.observations):.3g} FLOPs')
  for item in bought[:FLAGS.most]:
    print(f'{item.N:10.4g} {item.D:10.4g} {item.D / item.U:6.3g} {item.K:7g} {item.repeat:6d} {item.cost:10.3g}   '
          f'{item.sd_before:.4f} -> {item.sd_after:.4f}')
  if len(bought) > FLAGS.most:
    print(f'and {len(bought) - FLAGS.most} more, to {bought[-1].sd_after:.4f}')
  return _end(result)


def run_compare() -> int:
  from scaling import ledger, report
  from scaling import holdout
  from scaling.approaches import side_by_side
  from scaling.fit import fit
  from scaling.table import TableError
  if not FLAGS.runs and not FLAGS.ledger:
    raise TableError('compare needs --runs, --ledger or both')
  if FLAGS.runs:
    observations, findings = _table()
    found = [holdout.holdout(observations, _law(name), _loss(), cuts=holdout.thin(observations), reach=FLAGS.reach)
             for name in FLAGS.laws]
    print(report.comparison(found, [fit(observations, _law(name), _loss()).rms for name in FLAGS.laws]))
    print(report.approaches_text(*side_by_side(observations, _loss()), _target(observations)))
    for finding in findings:
      print(f'warning: {finding}')
  if FLAGS.ledger:
    if FLAGS.measured:
      ledger.measure(FLAGS.ledger, FLAGS.name, FLAGS.measured)
    records = ledger.read(FLAGS.ledger)
    measured = {r['name']: r for r in records if r['kind'] == 'measurement'}
    for p in (r for r in records if r['kind'] == 'prediction'):
      text = f'{p["name"]}: predicted {p["loss"]:.5g} [{p["low"]:.5g}, {p["high"]:.5g}] by {p["law"]} at {p["written"]}'
      m = measured.get(p['name'])
      text += ', not measured' if m is None else (f', measured {m["measured"]:.5g} ({m["error_percent"]:+.2f} %), '
                                                  f'{"inside" if m["inside"] else "outside"} the interval')
      print(text + (' (the run was in the table)' if p['seen'] else ''))
  return 0


COMMANDS = {'fit': run_fit, 'predict': run_predict, 'plan': run_plan, 'design': run_design, 'compare': run_compare}


def _help(command: str) -> str:
  if command not in HELP:
    return __doc__
  fitting = FLAGS_OF['fitting'] if command != 'compare' else FLAGS_OF['fitting'][1:4]
  names = FLAGS_OF['table'] + fitting + FLAGS_OF[command]
  lines = [HELP[command], 'Flags:']
  for name in names:
    flag = FLAGS[name]
    default = f' (default {flag.default})' if flag.default not in ('', None, 0.0, []) else ''
    lines.append(f'  --{name}: {flag.help}{default}')
  return '\n'.join(lines) + '\n'


def main(argv) -> int:
  from scaling.table import TableError, nearest
  try:
    if len(argv) < 2 or argv[1] not in COMMANDS:
      given = repr(argv[1]) if len(argv) > 1 else 'no command'
      raise TableError(f'{given}: expected one of {", ".join(COMMANDS)}'
                       f'{nearest(argv[1], COMMANDS) if len(argv) > 1 else ""}')
    if len(argv) > 2:
      raise TableError(f'{argv[2]!r} is not a flag; flags are written --name=value')
    return COMMANDS[argv[1]]()
  except BrokenPipeError:
    raise
  except (TableError, OSError) as error:
    print(f'error: {error}', file=sys.stderr)
    return 2


if __name__ == '__main__':
  if any(argument in ('--help', '-h', '-help', '--helpfull', '--helpshort') for argument in sys.argv[1:]):
    print(_help(next((a for a in sys.argv[1:] if not a.startswith('-')), '')), end='')
    sys.exit(0)
  try:
    app.run(main)
  except BrokenPipeError:  # the reader of the output left early
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    sys.exit(0)
