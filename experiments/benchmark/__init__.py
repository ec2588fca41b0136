"""How fast this package is, beside what else one could use for the same training, measured on two cores.

  python -m experiments.benchmark [--rounds=7] [--smoke] [--output=experiments/results]
  about 20 minutes and 8 GB of memory; on an idle machine, or the numbers are of its neighbours

Compared is one update of one base MLP (32 bits, widths 256-128-64-64, ReLU, batch 128, two outputs of two classes, the
sum of their cross-entropies, Adam at 3e-4 everywhere, a new order of 8,192 examples each epoch, which is counted too),
in microseconds a run-step, wall and CPU:

  ours                          8 runs, 4 vmapped lanes on each of two virtual devices
  JAX, a jitted step per run    one run, a step called from Python, all threads
  PyTorch loop                  what a notebook has: DataLoader, nn.Sequential, Adam, one run, all threads
  PyTorch tuned                 arrays in memory, fused Adam, one thread; two runs, each in a process pinned to a core
  PyTorch ensemble bmm, vmap    many models at once by batched products or torch.func, in the fastest of several forms
                                (`FORMS`; part `calibration` has them all, the name says which it was)
  scikit-learn MLPClassifier    its own loop, all threads; its own initial weights
  matrix product                what the cores can do at all, in JAX and in PyTorch, 4096 x 4096

Contenders are processes that stay alive; one works at a time, and they take turns, in another order each round, after a
warm-up that is not counted. Ratios are ours / theirs, paired by round: below 1, ours is faster. Every run has its own
data and order, in ensembles too. Rates are 6 x weights x batch FLOP a run-step.

What is fair and what is not. Much of the distance to a plain loop is the second core, of which small layers make little
use, and much of the rest is many models in one product, which ensembles in PyTorch have too: they are the comparison that
counts, and they were given pinned processes, compiled whole steps and a choice of sizes (`mode="max-autotune"` was tried
and is no faster). All of it is on a CPU; on a GPU nothing here need hold. Threads wait as each library has them wait by
default, since told to wait passively PyTorch's loop takes twice as long: so CPU time counts waiting threads that spin
while their own contender works, and `idle_cpu_share` in the manifest is what they burnt in the turns of others.

Parts: `calibration`; `speed`; `ratio`; `accuracy` (each trained to its end, over its runs); `start` (import, first calls,
and the run-steps after which ours has made up for compiling; "cached" is with a warm compilation cache); `lanes`;
`runs` (an epoch of every chunk with data, weights, curves and fingerprints, and peak memory); `checkpoint`; `probe` (all
that the variance probe returns, permutations too, and r2 alone, for runs of a `vmap`; scikit-learn's permutations: one's).
`benchmark.csv` has a row a quantity: `part, name, quantity, unit, rounds, min, median, max`, over rounds or, for
accuracies, runs; where a library is missing, a row that says so. `benchmark_manifest.json`: versions, machine, load, cost.
"""
