"""Compares the training speed of this package with alternatives for the same training, on two CPU cores.

  python -m experiments.benchmark [--rounds=7] [--smoke] [--output=experiments/results]
  It takes about 20 minutes and 8 GB of memory, and needs an idle machine: other load distorts the numbers.
  --part=transformer [--form=decoder] measures Transformers instead, see below; about 40 minutes.
  --part=convnet [--form=plain] measures convolutional networks instead; 24 minutes for the plain one.

The unit of comparison is one update of one base MLP: 32 bits, widths 256-128-64-64, ReLU, batch 128, two outputs of two
classes, the sum of their cross-entropies, Adam at 3e-4 for all contenders, and a new order of the 8,192 examples each
epoch, whose cost is included. The benchmark reports wall and CPU time in microseconds per run-step:

  ours                          8 runs, 4 vmapped lanes on each of two virtual devices
  JAX, a jitted step per run    one run, a step called from Python, all threads
  PyTorch loop                  typical notebook code: DataLoader, nn.Sequential, Adam, one run, all threads
  PyTorch tuned                 arrays in memory, fused Adam, one thread; two runs, each in a process pinned to a core
  PyTorch ensemble bmm, vmap    many models at once by batched products or torch.func, in the fastest of several ways
                                (`WAYS`; part `calibration` lists all of them, and the name tells which one was used)
  scikit-learn MLPClassifier    its own loop, all threads; its own initial weights
  matrix product                the speed limit of the cores, in JAX and in PyTorch, 4096 x 4096

Contenders are processes that stay alive. After a warm-up that is not counted they take turns, one at a time, in a
different order each round. Ratios are ours / theirs, paired by round: below 1, ours is faster. Every run has its own
data and order, in ensembles too. Rates count 6 x weights x batch FLOP per run-step.

How fair the comparison is. Much of the difference from a plain loop comes from the second core, which small layers hardly
use, and much of the rest from training many models in one product. PyTorch ensembles do this too, so they are the
comparison that counts. They were given pinned processes, compiled whole steps and a choice of sizes
(`mode="max-autotune"` was tried and is no faster). All measurements are on a CPU; they need not hold on a GPU. Idle
threads wait in each library's default way, since PyTorch's loop takes twice as long with passive waiting. CPU time
therefore includes threads that spin while their own contender works; `idle_cpu_share` in the manifest is the CPU time
that they use during the turns of other contenders.

Parts:

- `calibration`, `speed`, `ratio`
- `accuracy`: each contender trained to the end, over its runs
- `start`: import, first calls, and the number of run-steps after which ours has made up for compiling; "cached" means
  with a warm compilation cache
- `lanes`
- `runs`: an epoch of every chunk with data, weights, curves and fingerprints, and peak memory
- `checkpoint`
- `probe`: all results of the variance probe, including permutations, and r2 alone, for the runs of one `vmap`;
  scikit-learn's permutations are those of one run, scaled up

The part `transformer` has a table of its own, in which the names of the rows begin with the form of the Transformer and
with what would be the part of an MLP. The Transformers are those of the experiment `output_position`: strings of 16
tokens, four outputs, 8,000 examples, batch 64, Adam at 0.001, and for ours the lanes that planning chooses.
`encoder_decoder` has width 64 and two blocks in each stack, `decoder` has width 48 and three blocks. Their rivals in
PyTorch are

  tuned       arrays in memory, fused Adam, one thread; two runs, each in a process pinned to a core
  ensemble    batched by hand: dense layers of all runs as one batched product, and their attention as one call of
              `scaled_dot_product_attention`

each eager or compiled, and the ensemble in several sizes, whichever is fastest. As in ours, their last block of a decoder
is computed for the answers alone. Rows with `check` give the relative difference of each rival's loss from ours on the
same weights. It is measured before the timing, and the benchmark stops if it is 0.0001 or more. Rates include the matrix
products of attention. Accuracies are greedy, after the 1,000 updates of the experiment; those of an ensemble are of one
with two models per process, because this takes less time to train. Rows with `profile` give the share of each kind of
operation in the time of our steps, according to JAX's profiler.

The part `convnet` is like it. The networks read images of 32 pixels and report shape and color; batch 64, Adam at 0.001.
`plain` is that of the experiment `vision_plain`, four convolutions of 32 to 128 channels; `residual` is that of
`vision_residual`, a stem and three blocks of 16 to 64 channels with weighted skips. Each run has 8,192 images, an eighth of
the experiment's, and sees them eight times as often, so that the number of updates is that of the experiment and the data
of many runs fit into memory. Images are uint8 in memory for all contenders, and each batch is converted in its step. The
rivals in PyTorch are

  tuned       as above, with channels last in memory
  ensemble    channels of all runs side by side: a grouped convolution has a group for each run, and a group norm the
              groups of all runs; channels first or last in memory

chosen as above. A convolution whose padding is not the same on both sides, as ours at stride 2, is padded before it. For
`plain`, further rows give the time of a run-step in the same training loop with XLA's own convolutions in place of ours,
which are products of windows (im2col): a few updates per call, and the ratio XLA's own / ours.

`benchmark.csv`, `transformer.csv` and `convnet.csv` have one row per quantity: `part, name, quantity, unit, rounds, min,
median, max`, over rounds or, for accuracies, over runs. If a library is missing, a row says so. Manifests such as
`benchmark_manifest.json` have versions, machine, load and cost.
"""
