"""Package metadata. Tool settings and the build backend live in pyproject.toml."""

from pathlib import Path

from setuptools import find_packages, setup

TRAIN = [
    "transformers>=5.11",
    "trl>=1.16",
    "accelerate>=1.15",
    "datasets>=4.0",
    "peft>=0.21",
    "pydantic>=2.10",
    "pyyaml>=6.0",
    "jsonschema>=4.23",
]
REPORT = ["plotly>=6.0", "matplotlib>=3.9"]
CLI = ["typer>=0.20", "rich>=13.9"]
TEST = [
    "pytest>=8.3",
    "pytest-timeout>=2.3",
    "pytest-xdist>=3.6",
    "hypothesis>=6.100",
    "playwright>=1.50",
    "ruff>=0.14",
    "mypy>=1.18",
    "types-PyYAML",
    "types-jsonschema",
]
DOCS = ["mkdocs>=1.6", "mkdocs-material>=9.7", "mkdocstrings-python>=2.0", "latex2mathml>=3.78"]
BENCH = ["pytest>=8.3", "pytest-benchmark>=5.0"]
# Peers to measure against; in no other extra.
BENCH_CIRCUITS = ["pytest>=8.3", "pytest-benchmark>=5.0", "transformer-lens>=4.3"]
BENCH_MERGEKIT = ["pytest>=8.3", "pytest-benchmark>=5.0", "mergekit>=0.1.5"]
BENCH_PEERS = ["mergekit>=0.1.5", "torchjd>=0.18", "git-theta>=0.2"]
BENCH_DELTAS = ["pytest>=8.3", "pytest-benchmark>=5.0", "weightscope>=0.4.3", "deltatensors>=0.2", "zipnn>=0.5.4"]
GYM = ["reasoning-gym>=0.1.23"]

setup(
    name="rlforget",
    version="0.1.0",
    description="diff, blame and revert for the weights of fine-tuned language models",
    long_description=Path(__file__).with_name("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.11",
    packages=[
        *find_packages(include=["rlforget", "rlforget.*"]),
        "rlforget_kernels",
        *(f"rlforget_kernels.{name}" for name in find_packages("kernels/rlforget_kernels")),
    ],
    # The kernels live under kernels/, which must never be importable itself: transformers imports a PyPI
    # package of that name where one is found.
    package_dir={"rlforget_kernels": "kernels/rlforget_kernels"},
    package_data={
        "rlforget": ["py.typed", "domains/miniature/weights/*", "report/*.css", "report/*.js"],
        "rlforget_kernels": ["py.typed"],
        "rlforget_kernels.common": ["*.json"],
    },
    install_requires=[
        "torch>=2.8",
        "triton>=3.4; sys_platform == 'linux'",
        "numpy>=1.26",
        "safetensors>=0.5",
        "numba>=0.61",
        "scipy>=1.13",
        "zstandard>=0.23",
        "xxhash>=3.4",
    ],
    extras_require={
        "train": TRAIN,
        "report": REPORT,
        "cli": CLI,
        "test": TEST,
        "docs": DOCS,
        "bench": BENCH,
        "bench-circuits": BENCH_CIRCUITS,
        "bench-mergekit": BENCH_MERGEKIT,
        "bench-deltas": BENCH_DELTAS,
        "bench-peers": BENCH_PEERS,
        "reasoning-gym": GYM,
        "all": [*TRAIN, *REPORT, *CLI, *TEST, *DOCS, *BENCH, *GYM],
    },
    entry_points={"console_scripts": ["rlforget = rlforget.__main__:main"]},
)
