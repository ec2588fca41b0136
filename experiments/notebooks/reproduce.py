# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Learned representations are biased by complexity
#
# Networks are trained to report two features of one input. Both play the same role and both are learned; still the
# simpler one fills most of the representation (Lampinen, Chan and Hermann 2024,
# [arXiv 2405.05847](https://arxiv.org/abs/2405.05847)).
#
# This notebook makes a quick run of the first experiment, draws its figures, and shows the figures and verdicts of the
# reference runs. It loads and plots; how anything is computed stands in the package.

# %% tags=["parameters"]
SIZE = "--preset=quick --num_seeds=4"  # of the run made here; "--preset=full" is the reference run's
WORKDIR = "/tmp/repbias_notebook"  # the same folder and size again: what is done is not done twice
REPOSITORY = "https://github.com/OWNER/repbias_jax"  # where Colab clones from: put the owner of your copy in

# %% [markdown]
# ## Install
#
# On Colab only. If Colab asks for a restart afterwards, do that and run all cells again. Elsewhere, install as
# `BUILD.md` says.

# %%
import os
import subprocess
import sys

if "google.colab" in sys.modules:
    if not os.path.isdir("/content/repbias_jax"):
        subprocess.run(["git", "clone", "--depth=1", REPOSITORY, "/content/repbias_jax"], check=True)
    os.chdir("/content/repbias_jax")
    subprocess.run([sys.executable, "-m", "pip", "install", "-q", "-e", ".", "-c", "requirements.txt"], check=True)

# %%
from pathlib import Path

from IPython.display import Image, Markdown, display

import experiments
import repbias_jax
from experiments import EXPERIMENTS, complexity
from repbias_jax.report import tables

# %matplotlib inline

# %% [markdown]
# ## A quick run
#
# A few minutes on two cores. Four seeds show the effect and are too few for a verdict: that takes twelve.

# %%
# !{sys.executable} -m experiments.run --experiment=complexity --workdir={WORKDIR} {SIZE}

# %%
results = repbias_jax.load(WORKDIR)
for drawn in complexity.figures(results):
    display(drawn.figure, Markdown(drawn.caption))

# %%
display(Markdown(tables.markdown(tables.read_claims(results.folder))))

# %% [markdown]
# ## The reference runs
#
# Sixteen seeds; settings and statistics were fixed before the runs. Figures and verdicts are those committed in
# `experiments/results`.

# %%
for name, module in EXPERIMENTS.items():
    reference = Path(experiments.__file__).parent / "results" / name
    if claims := tables.read_claims(reference):
        display(Markdown(f"### {module.EXPERIMENT.title}"), Markdown(tables.markdown(claims)))
        for figure, caption in module.CAPTIONS.items():
            display(Image(reference / "figures" / f"{figure}.png", width=800), Markdown(caption))
