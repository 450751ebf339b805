"""Installation of gm. Pinned versions: constraints.txt, whose head says how it is made."""

from setuptools import find_packages, setup

setup(
    name="gm",
    version="0.1.0",
    description="Likelihood-based generative models in JAX: train, evaluate, compare.",
    license="Apache-2.0",
    python_requires=">=3.11",
    packages=find_packages(include=["gm*", "experiments*"]),
    package_data={
        "experiments": ["published.json", "accelerators.json"],
        "gm": ["py.typed"],  # the types are for callers too (PEP 561)
        "gm.report": ["page.*"],
    },
    # Named as its module, so that `-p gm.pytest_plugin` does not register it twice.
    entry_points={"pytest11": ["gm.pytest_plugin = gm.pytest_plugin"]},
    install_requires=[
        "jax>=0.10.2,<0.13",
        "flax>=0.12.8,<0.13",  # linen modules
        "optax>=0.2.8,<0.3",
        "orbax-checkpoint>=0.12.8,<0.13",  # its API still moves between minor versions
        "tensorflow-datasets>=4.9.10",  # the catalogue, and array_record files
        "importlib_resources>=6",  # imported by tensorflow-datasets, not declared there
        "grain>=0.2.16",  # streams data sets that do not fit in memory
        "absl-py>=2.1",
        "numpy>=2.0",
        "scipy>=1.13",  # the normal quantile in float64, for the codec of flows
        "constriction>=0.4,<0.6",  # entropy coding: ANS and range coding, in Rust
        "pillow>=10",  # reads and writes images
        "scikit-learn>=1.5",  # carries the digits data set
        "rich>=13",  # progress and tables on a terminal
        "matplotlib>=3.9",  # learning curves as PNG
        "plotly>=6.1",  # the report's charts; carries the script that the page holds
        "jinja2>=3.1.5",  # the report's page, with every name escaped
        "safetensors>=0.5",  # exported weights, which run no code when they are read
        "tensorboardX>=2.6.2",  # event files for TensorBoard, without TensorFlow
    ],
    extras_require={
        "cuda": ["jax[cuda12]"],
        "tpu": ["jax[tpu]"],
        "tf": ["tensorflow-cpu>=2.21"],  # only to prepare stock TFDS data sets
        "images": ["scikit-image>=0.25"],  # carries the photographs of --dataset=photos
        "slurm": ["submitit>=1.5.3"],  # arrays of jobs, requeued with their state
        "test": [
            "pytest>=8",
            "pytest-xdist>=3.6",  # both cores
            "hypothesis>=6.100",
            "ruff==0.14.6",  # formatter and linter, pinned so that CI agrees
            "mypy>=1.18",
            "scikit-image>=0.25",
            "selenium>=4.25",  # drives a Chromium that is there, to try the report
            "nbclient>=0.10",  # executes the notebook
            "ipykernel>=6.29",  # its kernel
        ],
    },
)
