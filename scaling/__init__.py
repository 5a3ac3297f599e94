"""Scaling laws: from finished runs to what to train next, with how sure one may be.

In a notebook:

  from scaling import laws, lints, plan, table, uncertainty
  from scaling.fit import fit
  from scaling.objective import Loss

  runs = table.read('runs')                                # result.json folders, or a CSV
  observations, warnings = lints.check(runs)               # raises ConfigError on an unfit table
  result = fit(observations, laws.coupled(), Loss('huber', 0.0))
  print(result.values, result.notes)                       # {'E': ..., ...}, doubts in words
  print(uncertainty.profile(result, uncertainty.n_opt(result.law, 1e20)))
  print(plan.compute_optimal(result, 1e20))

`table` reads, `lints` refuses, `laws` and `objective` define, `fit` fits, `uncertainty` doubts, `approaches` and
`holdout` compare, `plan` recommends, `ledger` remembers, `plot` and `report` show.
From a shell: python -m scaling --help.
"""
