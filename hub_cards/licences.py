"""Licences: the words the Hub accepts in a card, and under which terms base models are published."""

import difflib
from pathlib import Path
from typing import NamedTuple

# hf.co/docs/hub/repositories-licenses
HUB_LICENCES = frozenset(Path(__file__).with_suffix(".txt").read_text(encoding="utf-8").split())


class Terms(NamedTuple):
    """Under which licence a base model is published, and what its card asks for besides."""

    licence: str
    asks: str = ""


BASE_TERMS = {
    "openai/clip-": Terms(
        "mit (of the code; the card states none for the weights)",
        "Its model card is for research: any deployed use, commercial or not, is out of scope without tests of that "
        "very use, and surveillance and face recognition always are.",
    ),
    "laion/CLIP-": Terms("mit", "Its model card is for research and asks for tests before any deployment."),
    "google/siglip": Terms("apache-2.0"),
    "google/videoprism": Terms("apache-2.0 (of the code; everything else cc-by-4.0)"),
    "facebook/metaclip": Terms("cc-by-nc-4.0", "Commercial use is not permitted."),
}


def check_licence(licence: str | None) -> None:
    """Raises ValueError, naming the nearest, unless the Hub knows the word; None states nothing and passes."""
    if licence is not None and licence not in HUB_LICENCES:
        near = difflib.get_close_matches(licence.lower(), HUB_LICENCES, n=1, cutoff=0.5)
        meant = f"did you mean {near[0]!r}? " if near else ""
        raise ValueError(
            f"--license {licence!r} is no word of the Hub; {meant}valid ones: hf.co/docs/hub/repositories-licenses, or "
            "'other' for terms of your own in a LICENSE file"
        )


def base_terms(base: str | None) -> Terms | None:
    """The terms of a base model, None where they are not known here: its own page tells them."""
    return next((terms for start, terms in BASE_TERMS.items() if base and base.startswith(start)), None)
