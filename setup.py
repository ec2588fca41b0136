"""Installation: ranges here, exact versions in requirements.txt."""

from setuptools import find_packages, setup

setup(
    name="repbias_jax",
    version="0.1.0",
    description="A laboratory for biases in learned feature representations",
    long_description=open("README.md", encoding="utf-8").read(),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    packages=find_packages(include=["repbias_jax*"]),
    package_data={"repbias_jax.report": ["*.html"]},
    entry_points={"console_scripts": ["repbias-probe=repbias_jax.probe:main"]},
    python_requires=">=3.11",
    install_requires=[
        "absl-py>=2.1",
        "chex>=0.1.90",
        "flax>=0.12,<0.13",
        "jax>=0.10,<0.13",
        "jinja2>=3.1",
        "matplotlib>=3.10",
        "numpy>=2.1",
        "optax>=0.2.5",
        "orbax-checkpoint>=0.12,<0.13",
        "pandas>=2.2",
        "scikit-learn>=1.6",
        "scipy>=1.14",
        "tensorstore>=0.1.80",
        "tqdm>=4.66",
    ],
    extras_require={
        "benchmark": ["torch>=2.6"],
        "cuda": ["jax[cuda13]>=0.10,<0.13"],
        "tpu": ["jax[tpu]>=0.10,<0.13"],
        "test": [
            "hypothesis>=6.100",
            "ipykernel>=7",
            "jupytext>=1.17",
            "nbclient>=0.10",
            "nbformat>=5.10",
            "pyright[nodejs]>=1.1.400",
            "PyYAML>=6",
            "pytest>=8",
            "pytest-xdist>=3.7",  # two workers
            "rsatoolbox>=0.3.2",
            "ruff>=0.11",
            "xarray>=2025.1",
            "zarr>=3.1",
        ],
    },
)
