"""Models that are known to fit, and what is known of them: what `dmae models` prints."""

import logging
import unicodedata
from dataclasses import dataclass
from pathlib import Path

logger = logging.getLogger(__name__)
DEFAULT = "openai/clip-vit-base-patch32"


@dataclass(frozen=True)
class Preset:
    """One checkpoint. recall: published zero-shot text-to-video R@1 on MSR-VTT 1k-A, None where none is known to us.

    cpu_seconds: CPU seconds of one thread for the vision tower on the frames of a clip (12, or the window of a tower
    that sees one), random weights of the true size (benchmarks/backbones.py); what a clip costs, not how well it is
    found.
    """

    name: str
    family: str
    parameters: int  # millions, both towers
    size: int
    patch: int
    languages: str
    licence: str
    recall: float | None
    source: str
    cpu_seconds: float | None
    note: str = ""


PORTILLO = "Portillo-Quintero et al. 2021, arXiv:2102.12443, mean of frames"
NONE_KNOWN = "no figure of this protocol known"
PRESETS = (
    Preset(
        DEFAULT, "clip", 151, 224, 32, "English", "MIT", 31.2, PORTILLO, 2.2,
        "the default: cheapest, and its zero-shot score is published",
    ),
    Preset(
        "google/videoprism-lvt-base-f16r288", "videoprism", 248, 288, 18, "English",
        "Apache-2.0 (code), CC-BY 4.0 (the rest)", 50.1,
        "google-deepmind/videoprism README, table of the public models", 29.3,
        "the best published score; one vector per window of 16 frames, no word or frame explanations",
    ),
    Preset("openai/clip-vit-base-patch16", "clip", 150, 224, 16, "English", "MIT", None, NONE_KNOWN, 6.4),
    Preset("openai/clip-vit-large-patch14", "clip", 428, 224, 14, "English", "MIT", None, NONE_KNOWN, 28.1),
    Preset(
        "google/siglip2-base-patch16-224", "siglip", 375, 224, 16, "more than 100", "Apache-2.0", None, NONE_KNOWN,
        6.8, "the multilingual one",
    ),
    Preset(
        "OFA-Sys/chinese-clip-vit-base-patch16", "chinese_clip", 188, 224, 16, "Chinese", "see its page", None,
        NONE_KNOWN, 5.9,
    ),
)  # fmt: skip
FAMILIES = ("clip", "metaclip_2", "chinese_clip", "altclip", "siglip", "siglip2", "videoprism", "pe_video")
# Scripts that a model of English alone has hardly seen: its tokenizer breaks them into bytes.
SCRIPTS = {"English": ("LATIN",), "Chinese": ("LATIN", "CJK")}


def check_name(name: str) -> None:
    """Refuse what is plainly no model, before anything slow is imported. FileNotFoundError."""
    path = Path(name)
    if path.is_dir() and not ((path / "config.json").is_file() or (path / "adapter_config.json").is_file()):
        raise FileNotFoundError(f"{name} is a folder without config.json, so it holds no model")
    if not path.exists() and (path.is_absolute() or name.startswith(".") or name.count("/") > 1):
        raise FileNotFoundError(f"{name}: no such model folder")


def preset_of(name: str) -> Preset | None:
    return next((preset for preset in PRESETS if preset.name == str(name)), None)


def unfamiliar_script(text: str, languages: str) -> str | None:
    """The script most letters of `text` are in, if a model of `languages` does not know it; else None.

    By script alone: a Spanish query to an English model is not noticed.
    """
    known = SCRIPTS.get(languages)
    letters = [unicodedata.name(letter, "?").split()[0] for letter in text if letter.isalpha()]
    strange = [script for script in letters if known and script not in known]
    return max(sorted(set(strange)), key=strange.count) if 2 * len(strange) > len(letters) else None


def warn_of_language(texts: list[str], languages: str) -> None:
    """Say once per call which text is in a script that the model does not know."""
    for text in texts:
        script = unfamiliar_script(text, languages)
        if script:
            logger.warning(
                "the model knows %s; %r is mostly in the %s script and will find little. "
                "Translate it, or index with a multilingual model (dmae models)", languages, text, script.lower()
            )  # fmt: skip
            return
