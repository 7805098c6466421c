"""Packaging: the top-level folders are installed as `dmae.<folder>`; no other name is taken in site-packages."""

from pathlib import Path

from setuptools import setup

ROOMS = {
    "dmae": "dmae",
    "dmae.commands": "dmae/commands",
    "dmae.modeling_dmae": "modeling_dmae",
    "dmae.processing": "processing",
    "dmae.metrics": "metrics",
    "dmae.metrics.text_video_retrieval": "metrics/text_video_retrieval",
    "dmae.inference": "inference",
    "dmae.data": "data",
    "dmae.data.loaders": "data/loaders",
    "dmae.data.frame_cache": "data/frame_cache",
    "dmae.data.moving_digits": "data/moving_digits",
    "dmae.evaluation": "evaluation",
    "dmae.visuals": "visuals",
    "dmae.training": "training",
    "dmae.training.recipes": "training/recipes",
    "dmae.retrieval": "retrieval",
    "dmae.hub_cards": "hub_cards",
    "dmae.hub_cards.space": "hub_cards/space",
}

TRAIN = ["accelerate", "datasets", "evaluate", "tensorboard", "matplotlib", "pyyaml", "jinja2", "huggingface_hub"]
SEARCH = ["faiss-cpu", "pyarrow"]
QDRANT = ["qdrant-client"]
UI = ["gradio", "pillow"]
RAY = ["ray[data]"]
TEST = ["pytest", "pytest-timeout", "hypothesis", "ruff", "pre-commit", "pandas", *QDRANT]
BROWSER = ["playwright"]
BENCH = ["opencv-python-headless"]

setup(
    name="dmae",
    version="0.1.0",
    description="Text-to-video retrieval with DMAE / TPM-CL on CLIP: train, evaluate, publish, search your own videos",
    long_description=Path(__file__).with_name("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.10",
    packages=list(ROOMS),
    package_dir=ROOMS,
    include_package_data=False,
    package_data={
        "dmae.processing": ["tagger/*", "tagger/*/*"],
        "dmae.metrics.text_video_retrieval": ["*.md"],
        "dmae.training.recipes": ["*.yaml"],
        "dmae.retrieval": ["*.html", "*.css", "*.js"],
        "dmae.hub_cards": ["*.md", "*.txt", "space/*"],
        "dmae.hub_cards.space": ["*.txt", "*.md"],
    },
    install_requires=[
        "torch>=2.11",
        "transformers>=5.17",
        "av>=15",
        "numpy>=1.26",
        "spacy>=3.8",
        "scikit-learn>=1.5",
        "safetensors",
        "filelock",
        "typer",
        "rich",
    ],
    extras_require={
        "train": TRAIN,
        "search": SEARCH,
        "qdrant": QDRANT,
        "ui": UI,
        "ray": RAY,
        "test": TEST,
        "browser": BROWSER,
        "bench": BENCH,
        "all": TRAIN + SEARCH + QDRANT + UI + TEST + BROWSER,
    },
    entry_points={"console_scripts": ["dmae=dmae.cli:main"]},
    classifiers=[
        "License :: OSI Approved :: Apache Software License",
        "Programming Language :: Python :: 3",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
    ],
)
