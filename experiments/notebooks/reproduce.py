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
# This notebook trains eight networks, plots how much variance each feature explains by layer, draws the figures of the
# first experiment, and shows the figures and verdicts of the reference runs.

# %% tags=["parameters"]
SIZE = {"preset": "quick", "num_seeds": 8, "settings": ["joint"]}  # {"preset": "full"} is the reference run
WORKDIR = "/tmp/repbias_notebook"  # with the same folder and size again, finished work is skipped
REPOSITORY = "https://github.com/OWNER/repbias_jax"  # where Colab clones from: replace OWNER with the owner of your copy

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
import matplotlib.pyplot as plt
from IPython.display import Image, Markdown, display

import repbias_jax
from experiments import scorecard
from experiments.claims import EXPERIMENTS, complexity
from repbias_jax.report import card

# %matplotlib inline

# %% [markdown]
# ## A quick run
#
# Eight networks take a few minutes on two cores. They show the effect and are too few for a verdict, which needs twelve.

# %%
results = repbias_jax.run(complexity, WORKDIR, **SIZE)
sites = results.sites("sgd.joint")
for feature in ("parity1", "parity4"):
    for seed in results.values("sgd.joint", "r2", feature).index:
        by_layer = [results.values("sgd.joint", "r2", feature, site)[seed] for site in sites]
        plt.plot(sites, by_layer, color={"parity1": "C0", "parity4": "C1"}[feature], label=feature if seed == 0 else None)
plt.ylabel("variance explained, r2")
plt.legend()
plt.show()

# %%
for drawn in complexity.figures(results):
    display(drawn.figure, Markdown(drawn.caption))

# %% [markdown]
# ## The reference runs
#
# Sixteen seeds; settings and statistics were fixed before the runs. Verdicts and figures are those committed in
# `experiments/results`.

# %%
references = scorecard.sources()
display(Markdown(card.markdown(card.rows_of(references), "../results")))

# %%
for reference in references:
    display(Markdown(f"### {reference.title}"))
    for name, caption in EXPERIMENTS[reference.name].CAPTIONS.items():
        picture = scorecard.ROOT / scorecard.RESULTS / reference.name / "figures" / f"{name}.png"
        display(Image(picture, width=800), Markdown(caption))
