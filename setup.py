"""Packaging: the top-level folders are installed as `dmae.<folder>`; no other name is taken in site-packages.

The version is that of dmae/__init__.py. Where a release is built by GitHub's own runner, its repository gives the URLs.
"""

import os
import re
from pathlib import Path

from setuptools import setup

ROOT = Path(__file__).resolve().parent
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
    "dmae.data.moving_objects": "data/moving_objects",
    "dmae.evaluation": "evaluation",
    "dmae.visuals": "visuals",
    "dmae.training": "training",
    "dmae.training.recipes": "training/recipes",
    "dmae.retrieval": "retrieval",
    "dmae.retrieval.server": "retrieval/server",
    "dmae.hub_cards": "hub_cards",
    "dmae.hub_cards.space": "hub_cards/space",
}

TRAIN = [
    "accelerate", "datasets", "evaluate", "tensorboard", "matplotlib", "pyyaml", "jinja2", "huggingface_hub",
    "detect-secrets", "pydantic",
]  # fmt: skip
SEARCH = ["faiss-cpu", "pyarrow"]
QDRANT = ["qdrant-client"]
SERVE = ["fastapi", "uvicorn", "jinja2", "python-multipart", "pillow", "prometheus-client"]
UI = ["gradio", "pillow"]
PEFT = ["peft"]
RAY = ["ray[data]"]
WATCH = ["watchdog"]
FUSED = ["triton"]  # a CUDA build of torch brings its own, which is therefore not pinned
TEST = [
    "pytest", "peft", "pytest-timeout", "pytest-xdist", "hypothesis", "ruff", "pre-commit", "pandas", *QDRANT, *WATCH,
]  # fmt: skip
CHECK = ["basedpyright", "mkdocs-material", "mkdocstrings[python]"]
RELEASE = ["build"]
MTEB = ["mteb", "sentence-transformers"]
BROWSER = ["playwright", "axe-playwright-python"]
EXPORT = ["onnx", "onnxruntime", "onnxscript"]
BENCH = ["opencv-python-headless", "coverage"]


def version() -> str:
    """`__version__` of dmae/__init__.py, read without importing it."""
    text = (ROOT / "dmae" / "__init__.py").read_text(encoding="utf-8")
    return re.search(r'^__version__ = "(.+)"$', text, re.M).group(1)


def repository() -> str:
    """The address of the repository that builds this, "" where it is not known."""
    name = os.environ.get("GITHUB_REPOSITORY", "")
    return f"{os.environ.get('GITHUB_SERVER_URL', 'https://github.com')}/{name}" if name else ""


def long_description(text: str, url: str, tag: str) -> str:
    """README for a package page, where relative links lead nowhere: absolute with a repository, else without them.

    Without a repository pictures are left out and links keep their words.
    """
    image, link = r"!\[([^\]]*)\]\((?!https?:)([^)\s]+)\)", r"(?<!!)\[([^\]]*)\]\((?!https?:|#)([^)\s]+)\)"
    if not url:
        return re.sub(link, r"\1", re.sub(image, "", text))
    text = re.sub(image, rf"![\1]({url}/raw/{tag}/\2)", text)
    return re.sub(link, rf"[\1]({url}/blob/{tag}/\2)", text)


URL = repository()

setup(
    name="dmae",
    version=version(),
    description="Text-to-video retrieval with DMAE / TPM-CL on CLIP: train, evaluate, publish, search your own videos",
    long_description=long_description((ROOT / "README.md").read_text(encoding="utf-8"), URL, f"v{version()}"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    license_files=["LICENSE"],
    author="The DMAE maintainers",
    keywords=["text-to-video retrieval", "video search", "CLIP", "transformers", "contrastive learning"],
    project_urls={
        "Paper": "https://arxiv.org/abs/2309.11082",
        **({"Source": URL, "Issues": f"{URL}/issues", "Changelog": f"{URL}/blob/main/CHANGELOG.md"} if URL else {}),
    },
    python_requires=">=3.10",
    packages=list(ROOMS),
    package_dir=ROOMS,
    include_package_data=False,
    package_data={
        "dmae": ["py.typed"],
        "dmae.processing": ["tagger/*", "tagger/*/*"],
        "dmae.metrics.text_video_retrieval": ["*.md"],
        "dmae.training": ["launch/*"],
        "dmae.training.recipes": ["*.yaml"],
        "dmae.retrieval.server": ["templates/*", "static/*"],
        "dmae.visuals": ["templates/*"],
        "dmae.hub_cards": ["*.md", "*.txt", "*.html", "space/*"],
        "dmae.hub_cards.space": ["*.txt", "*.md"],
    },
    install_requires=[
        "torch>=2.11",
        "transformers>=5.17",
        "av>=18",
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
        "serve": SERVE,
        "ui": UI,
        "peft": PEFT,
        "ray": RAY,
        "watch": WATCH,
        "fused": FUSED,
        "test": TEST,
        "mteb": [*TRAIN, *MTEB],
        "browser": BROWSER,
        "export": EXPORT,
        "bench": BENCH,
        "check": CHECK,
        "release": RELEASE,
        "all": TRAIN + SEARCH + QDRANT + SERVE + UI + PEFT + EXPORT + TEST + BROWSER + MTEB + WATCH,
    },
    entry_points={"console_scripts": ["dmae=dmae.cli:main"]},
    classifiers=[
        "Development Status :: 4 - Beta",
        "Environment :: Console",
        "Intended Audience :: Developers",
        "Intended Audience :: Science/Research",
        "Operating System :: POSIX :: Linux",
        "Programming Language :: Python :: 3",
        "Programming Language :: Python :: 3.10",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Topic :: Multimedia :: Video",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
        "Typing :: Typed",
    ],
)
