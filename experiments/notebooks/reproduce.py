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
from IPython.display import Image, Markdown, display

import repbias_jax
from experiments import EXPERIMENTS, complexity, scorecard
from repbias_jax.report import card

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
