"""Scaling laws from the command line: python -m scaling COMMAND --runs=PATH [flags].

PATH is a folder of runs with result.json, or a CSV whose columns N, D and loss are found by name.

Example:
  python -m scaling fit --runs=runs --delta=1e-3
"""

import dataclasses
import math
import pathlib
import sys
import types

from foundation.command import Command, Flag, run
from foundation.errors import ConfigError
from foundation.printable import printable
from scaling import options
from scaling.options import (AT, EXPERTS, FITTING, LAWS, LEDGER, LEVEL, OBJECTIVE, SIMULATIONS, TABLE, TARGET, UNIQUE,
                             number)


def _target(flags, observations) -> float:
  return flags.compute_target or 10.0 * float(observations.C.max())


def _end(result) -> int:
  return 0 if result.accepted else 1


def run_fit(flags) -> int:
  """Prints a law, how sure it is, and every doubt; writes the page of --report."""
  from scaling import report, uncertainty
  if flags.report:
    report.check_folder('--report', pathlib.Path(flags.report))
  result, findings = options.fitted(flags)
  C = _target(flags, result.observations)
  about = report.doubt(result, C, flags.bootstrap, flags.simulations, flags.level, flags.kind, flags.delta == 0)
  print(report.summary(result, about, findings))
  if flags.posterior:
    draws, state = uncertainty.posterior(result.observations, result.law)
    print('posterior, Student-t: ' + ', '.join(
        f'{name} {value.mean():.5g} ± {value.std():.3g}' for name, value in result.law.display(draws).items()) +
          f'; r_hat {state["r_hat"]:.3f}, {state["divergences"]} divergences')
  if flags.positions:
    print(report.positions_text(options.runs(flags), options.counting(flags), max(flags.positions, 0)))
  sys.stdout.flush()
  if flags.report:
    page = report.page(flags.report, result.observations, result, about, C, options.loss(flags), findings=findings)
    print(f'report {page}')
  return _end(result)


def run_predict(flags) -> int:
  """Prints the loss of one run with its interval; writes it to --ledger."""
  from scaling import ledger, prediction, uncertainty
  from scaling.fit import fit
  law, loss, fixed = options.asked(flags)
  if flags.N <= 0 or flags.D <= 0:
    raise ConfigError(f'--N={flags.N:g} --D={flags.D:g}: expected the parameters and tokens of the run to predict')
  if flags.ledger and not flags.name:
    raise ConfigError('--ledger needs --name, the name of the prediction')
  if flags.U and 'u' not in law.columns:
    raise ConfigError(f'--U={flags.U:g}: law {law.name} knows no repetition; fit --law=repeated, repeated_tied or '
                      'repeated_coupled')
  experts = options.experts(flags, law)
  o, findings = options.table(flags, law)
  quantity = uncertainty.loss_at(law, flags.N, flags.D, flags.U or None, experts, options.at(flags), o.convention.k)
  held = prediction.same_cell(o, flags.N, flags.D) if flags.ledger else o.N < 0
  o = o.take(~held)
  result = fit(o, law, loss, fixed)
  interval, mean, walk = prediction.predict(result, quantity, flags.N, flags.D, flags.level, loss)
  if flags.simulations:
    share, noise = uncertainty.worst_coverage(result, [quantity], flags.level, flags.simulations,
                                              flags.delta == 0)[0]
    mean = dataclasses.replace(mean, coverage=share, noise=noise)
  print(f'{law.name}: {interval} (one run, with its noise)\n{law.name}: {mean} (the law itself)')
  C = o.convention.k * flags.N * flags.D
  print(f'{C / float(o.C.max()):.3g} times the largest compute fitted ({o.convention}); rms residual '
        f'{100 * result.rms:.3f} %')
  if walk.cuts:
    print(f'both intervals hold the drift of the law, as seen in {walk.cuts} held-out extrapolations: '
          f'{100 * walk.variance ** 0.5:.2g} % of the loss for a factor e beyond the runs')
  for note in (*filter(None, [walk.note]), *result.notes, *map(str, findings)):
    print(f'doubt: {note}')
  if flags.ledger:
    sys.stdout.flush()
    ledger.predict(flags.ledger, flags.name, N=flags.N, D=flags.D, C=C, k=o.convention.k, loss=interval.estimate,
                   low=interval.low, high=interval.high, level=flags.level, law=law.name,
                   objective=f'{flags.loss} {flags.delta:g}', runs=len(o), source=o.source, seen=bool(held.any()))
    print(f'written to {flags.ledger} as {flags.name}' + (
        f' ({held.sum()} runs of this cell are in the table: no prediction, though they were held back from the fit)'
        if held.any() else ''))
  return _end(result)


def run_plan(flags) -> int:
  """Prints the best run for a budget, or the cheapest of a loss."""
  from scaling import plan
  if not flags.budget and not flags.target_loss:
    raise ConfigError('plan needs --budget (with --unit) or --target_loss (with --prefill, --decode)')
  given = {name: getattr(flags, name) for name in (
      'flops_per_second', 'dollars_per_hour', 'prefill_flops_per_second', 'decode_flops_per_second')}
  rates = plan.Rates(**given)
  if not flags.machine and flags.budget:
    rates.flops(flags.budget, flags.unit)  # refuses before it fits
  result, findings = options.fitted(flags)
  if flags.machine:
    rates = plan.Rates.of_machine(flags.machine, result.observations.convention.k, **given)
  C = rates.flops(flags.budget, flags.unit) if flags.budget else 0.0
  best = _best(flags, result, rates, C)
  print(f'N {best.N:.5g} parameters\nD {best.D:.5g} tokens ({best.ratio:.3g} per parameter)\nC {best.C:.5g} FLOPs, '
        f'{result.observations.convention}\n'
        f'loss {best.loss:.5g} nats per token\nnearly as good: N from {best.near[0]:.3g} to {best.near[1]:.3g}')
  if rates.flops_per_second:
    seconds = best.C / rates.flops_per_second
    price = f', {seconds / 3600 * rates.dollars_per_hour:.4g} dollars' if rates.dollars_per_hour else ''
    print(f'training {seconds:.4g} seconds{price}')
  if not flags.target_loss and not flags.unique:
    _print_decision(flags, result, C)
  for note in (*best.notes, *result.notes, *map(str, findings)):
    print(f'doubt: {note}')
  return _end(result)


def _best(flags, result, rates, C: float):
  """The plan that the flags ask for; prints what is special to its kind."""
  from scaling import plan, report, uncertainty
  if flags.target_loss:
    best, saved = plan.inference_aware(result, flags.target_loss, flags.prefill, flags.decode, rates)
    print(f'{100 * saved:.1f} % of the cost saved against the compute-optimal model of this loss')
    return best
  if not flags.unique:
    return plan.compute_optimal(result, C, options.experts(flags, result.law), options.at(flags))
  best = plan.with_repetition(result, C, flags.unique)
  print(f'{best.epochs:.2f} epochs of {flags.unique:.4g} unique tokens')
  for name in ('R_D', 'R_N'):
    if name in result.law.parameters and name not in result.fixed:
      interval = uncertainty.profile(result, uncertainty.parameter(result.law, name), flags.level)
      print(report.parameter_row(interval, result.errors[name]))
  return best


def _print_decision(flags, result, C: float) -> None:
  """Intervals of N_opt and its loss at C FLOPs, and what another size would lose."""
  import numpy as np
  from scaling import prediction, uncertainty
  K, at = options.experts(flags, result.law), options.at(flags)
  k = result.observations.convention.k
  print(uncertainty.profile(result, uncertainty.n_opt(result.law, C, K, k, at), flags.level))
  quantity, (N, D) = uncertainty.best_loss(result.law, C, K, k, at), result.optimum(C, K, at)
  print(prediction.predict(result, quantity, float(N), float(D), flags.level, options.loss(flags))[1])
  if flags.N:
    lost = uncertainty.regret(result.law, uncertainty.bootstrap(result, 300), C, flags.N, K, k, at)
    low, middle, high = np.nanquantile(lost, [(1 - flags.level) / 2, 0.5, (1 + flags.level) / 2])
    print(f'N {flags.N:.4g} instead loses {middle:.3g} nats per token, {100 * flags.level:g} % of bootstraps '
          f'[{low:.3g}, {high:.3g}]')


def run_design(flags) -> int:
  """Prints the next runs to buy, the most informative first."""
  from scaling import plan
  result, _ = options.fitted(flags)
  C = _target(flags, result.observations)
  bought = plan.next_runs(result, C, flags.budget, seed_noise=flags.seed_noise, misfit=flags.misfit,
                          unique=flags.unique, K=options.experts(flags, result.law) or 1.0)
  target = 'the loss of the best run' if 'u' in result.law.columns else 'N_opt'
  print(f'{"N":>10s} {"D":>10s} {"epochs":>6s} {"experts":>7s} {"repeat":>6s} {"FLOPs":>10s}   sd of ln {target} at '
        f'{C:.3g} FLOPs')
  for item in bought[:flags.most]:
    print(f'{item.N:10.4g} {item.D:10.4g} {item.D / item.U:6.3g} {item.K:7g} {item.repeat:6d} {item.cost:10.3g}   '
          f'{item.sd_before:.4f} -> {item.sd_after:.4f}')
  if len(bought) > flags.most:
    print(f'and {len(bought) - flags.most} more, to {bought[-1].sd_after:.4f}')
  return _end(result)


def run_compare(flags) -> int:
  """Prints laws by their error of prediction, the approaches, and the ledger beside what was measured."""
  if not flags.runs and not flags.ledger:
    raise ConfigError('compare needs --runs, --ledger or both')
  if flags.runs:
    _compare_laws(flags)
  if flags.ledger:
    _compare_ledger(flags)
  return 0


def _compare_laws(flags) -> None:
  from scaling import holdout, laws, report
  from scaling.approaches import side_by_side
  from scaling.fit import fit
  chosen, loss = [laws.law(name, options.uninformed(flags), '--laws') for name in flags.laws], options.loss(flags)
  observations, findings = options.table(flags, *chosen)
  cuts = holdout.thin(observations)
  errors = [holdout.holdout(observations, law, loss, cuts=cuts, reach=flags.reach) for law in chosen]
  print(report.comparison(errors, [fit(observations, law, loss).rms for law in chosen]))
  print(report.approaches_text(*side_by_side(observations, loss), _target(flags, observations)))
  for finding in findings:
    print(f'warning: {finding}')


def _compare_ledger(flags) -> None:
  from scaling import ledger
  if flags.mend and (line := ledger.mend(flags.ledger)):
    print(f'{flags.ledger}: the last line was cut short and now lies in {flags.ledger}.torn: {printable(line, 80)}')
  if flags.measured:
    ledger.measure(flags.ledger, flags.name, flags.measured)
  records = ledger.read(flags.ledger)
  measured = {r['name']: r for r in records if r['kind'] == 'measurement'}
  for p in (r for r in records if r['kind'] == 'prediction'):
    law, written = printable(p['law'], 120), printable(p['written'], 60)
    text = (f'{printable(p["name"], 120)}: predicted {p["loss"]:.5g} [{p["low"]:.5g}, {p["high"]:.5g}] by {law} at '
            f'{written}')
    m = measured.get(p['name'])
    text += ', not measured' if m is None else (f', measured {m["measured"]:.5g} ({m["error_percent"]:+.2f} %), '
                                                f'{"inside" if m["inside"] else "outside"} the interval')
    print(text + (' (the run was in the table)' if p['seen'] else ''))


def run_gain(flags) -> int:
  """Prints how many times the compute the recipe of --against needs for the loss of that of --runs."""
  from scaling import recipes
  if not flags.against:
    raise ConfigError('--against is missing: the runs of the recipe to compare with')
  new, findings = options.fitted(flags)
  old, others = options.fitted(types.SimpleNamespace(**{**vars(flags), 'runs': flags.against}))
  print(recipes.text(old, new, flags.level, flags.compute_target))
  for name, result, found in (('new', new, findings), ('old', old, others)):
    for note in (*result.notes, *map(str, found)):
      print(f'doubt: {name}: {note}')
  return max(_end(new), _end(old))


def run_rates(flags) -> int:
  """Prints the best rate and batch of each cell, their laws, and the law of the loss at the optima."""
  from scaling import rates, report
  from scaling.fit import fit
  law, loss, fixed = options.asked(flags)
  runs = options.runs(flags)
  print(rates.text(runs, options.counting(flags), flags.N, flags.D, flags.level))
  try:
    result = fit(rates.observations(rates.optima(runs, options.counting(flags))[0], runs.source), law, loss, fixed)
  except ConfigError as error:
    print(f'the loss at the optima has no law: {error}')
    return 1
  print('the loss at the optima:\n' + report.summary(result))
  return _end(result)


COMMANDS = (
    Command('fit', run_fit, 'fits a law and says how sure it is', """
Prints a row a parameter (value, bootstrap standard error, profile interval and its simulated coverage), the objective,
the correlations, and doubts in words. Ends with 1 if the fit is not accepted, with 2 if the table is refused.

Examples:
  python -m scaling fit --runs=chinchilla.csv --exclude=outlier --delta=1e-3
  python -m scaling fit --runs=runs --law=coupled --loss=student_t --report=report
  python -m scaling fit --runs=ladder.csv --columns=N=params,loss=c4 --where='role=train,N<2e9' --allow=few_sizes
  python -m scaling fit --runs=repeat.csv --law=repeated_tied --fix=E=1.869,A=520.8,B=1487.7,alpha=0.3527
""", (
        *FITTING,
        Flag('bootstrap', int, 1000, 'bootstrap draws', least=2),
        Flag('kind', str, 'pairs', 'bootstrap of rows, of sizes with all their rows, or of residuals',
             ('pairs', 'cluster', 'residual')),
        SIMULATIONS, LEVEL, TARGET,
        Flag('posterior', bool, False, 'also a Student-t posterior by NUTS (extra: bayes)'),
        Flag('report', str, '', 'folder for a report page with figures'),
        Flag('positions', int, 0, 'also a law for each of so many groups of positions in the window; -1: each',
             least=-1))),
    Command('predict', run_predict, 'the loss of a run of N parameters and D tokens, with its interval', """
With --ledger the prediction is written before the run starts; an entry is never rewritten.

Examples:
  python -m scaling predict --runs=runs --law=coupled --N=819e3 --D=8e6
  python -m scaling predict --runs=runs --N=819e3 --D=8e6 --ledger=ledger.jsonl --name=largest
""", (
        *FITTING,
        number('N', 0.0, 'parameters of the run'),
        number('D', 0.0, 'tokens of the run'),
        number('U', 0.0, 'unique tokens of the run; 0: all of D'),
        EXPERTS, AT, LEVEL, SIMULATIONS, *LEDGER)),
    Command('plan', run_plan, 'what to train for a budget', """
A budget is in FLOPs, seconds or dollars (--unit). --unique: only so many tokens exist (a law of repeated data).
--target_loss with --prefill and --decode: the cheapest model of that loss that serves so many tokens.

Examples:
  python -m scaling plan --runs=runs --budget=1e18 --N=5e8
  python -m scaling plan --runs=runs --budget=200 --unit=dollars --flops_per_second=4e14 --dollars_per_hour=2.5
  python -m scaling plan --runs=runs --budget=5000 --unit=dollars --machine=plans/h100.json
  python -m scaling plan --runs=repeat.csv --law=repeated --budget=1e21 --unique=1e9
  python -m scaling plan --runs=experts.csv --law=experts --budget=1e20 --K=16
  python -m scaling plan --runs=runs --target_loss=2.1 --prefill=2e12 --decode=1e11
""", (
        *FITTING,
        number('budget', 0.0, 'budget in --unit'),
        Flag('unit', str, 'flops', 'of the budget', ('flops', 'seconds', 'dollars')),
        Flag('machine', str, '', 'file that experiments.plan --output wrote: its tokens/s, at most, and its price'),
        number('flops_per_second', 0.0, 'useful FLOP/s in training'),
        number('dollars_per_hour', 0.0, 'price of the machine'),
        number('prefill_flops_per_second', 0.0, 'useful FLOP/s in prefill; 0: as in training'),
        number('decode_flops_per_second', 0.0, 'useful FLOP/s in decode; 0: as in training'),
        UNIQUE,
        number('target_loss', 0.0, 'loss to reach, nats per token'),
        number('prefill', 0.0, 'prompt tokens served over the life of the model'),
        number('decode', 0.0, 'generated tokens served over the life of the model'),
        LEVEL,
        number('N', 0.0, 'parameters of a run to compare with the best'),
        EXPERTS, AT)),
    Command('design', run_design, 'the next runs to buy, the most information on N_opt(C) per FLOP first', """
Repeats stop where seed noise is below the misfit allowed to a run far below C.

Examples:
  python -m scaling design --runs=runs --compute_target=1e20 --budget=1e18 --seed_noise=0.002
  python -m scaling design --runs=repeat.csv --law=repeated --budget=1e19 --unique=1e9
""", (
        *FITTING, TARGET,
        number('budget', 0.0, 'FLOPs to spend'),
        UNIQUE, EXPERTS,
        number('seed_noise', 0.0, 'sd of ln loss between seeds; 0: the rms residual'),
        number('misfit', 0.002, 'sd of ln loss a decade of compute below the target that no repeat removes'),
        Flag('most', int, 20, 'runs shown', least=0))),
    Command('rates', run_rates, 'the best learning rate and batch of each cell of a sweep, as laws of N and D', """
In each cell a quadratic in ln rate and ln batch; the optima inside what was tried make the laws, those at an edge say
what to run next. scaling.rates.next_cells and .settings are what a sweep file calls.

Examples:
  python -m scaling rates --runs=runs
  python -m scaling rates --runs=steplaw.csv --N=1e10 --D=2e11
""", (
        *FITTING, LEVEL,
        number('N', 0.0, 'parameters of a run whose rate and batch are asked for'),
        number('D', 0.0, 'its tokens'))),
    Command('gain', run_gain, 'how many times the compute an old recipe needs for the loss of a new one', """
The compute-equivalent gain at four computes that both recipes ran and one beyond, with its interval, and whether it
grows. Each recipe is a table of runs, and is fitted by itself.

Examples:
  python -m scaling gain --runs=new.csv --against=old.csv
  python -m scaling gain --runs=new --against=old --law=coupled --compute_target=1e22
""", (
        *FITTING, LEVEL, TARGET,
        Flag('against', str, '', 'runs of the old recipe'))),
    Command('compare', run_compare, "laws by prediction, approaches side by side, and a ledger's entries", """
A law is fitted below a compute and tested above it, for every compute that leaves enough runs.
With --ledger, --name and --measured what a run measured is written beside its prediction, and the two are shown.

Examples:
  python -m scaling compare --runs=runs --laws=additive,tied,kaplan,coupled
  python -m scaling compare --ledger=ledger.jsonl --name=largest --measured=2.311
""", (
        *TABLE, *OBJECTIVE,
        Flag('laws', list, ['additive', 'tied', 'kaplan', 'coupled'], f'some of {LAWS}, or paths of .py files'),
        number('reach', 0.0, 'only cuts at most the largest compute over this; 0: all'),
        TARGET, *LEDGER,
        number('measured', 0.0, 'measured loss of the ledger entry, nats per token'),
        Flag('mend', bool, False, 'take a last line of the ledger that was cut short out, into a file beside it'))))


if __name__ == '__main__':
  sys.exit(run('python -m scaling', __doc__, COMMANDS))
