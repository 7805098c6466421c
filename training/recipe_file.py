"""Reading a recipe: a YAML file on top of another (`base:`), one of its variants, and `--set section.key=value`.

Order of precedence, weakest first: base, file, variant, `--set`.
"""

import difflib
import re
from pathlib import Path
from typing import Any

import yaml

SECTIONS = ("model", "processor", "data", "training")
# Top-level words of a recipe besides its sections.
FILE_WORDS = ("base", "variant", "variants", *SECTIONS)


def read_recipe(path: Path, overrides: list[str] | tuple[str, ...] = ()) -> dict[str, Any]:
    """The resolved words of a recipe, unchecked within their sections. ValueError names what is wrong."""
    raw = _read_with_base(path, seen=())
    changes = [_parse_override(text) for text in overrides]
    for keys, value in changes:
        if keys == ["variant"]:
            raw["variant"] = value
    raw = _apply_variant(raw, path)
    for keys, value in changes:
        if keys != ["variant"]:
            _merge(raw, _nested(keys, value))
    return raw


def recipes_folder() -> Path:
    return Path(__file__).resolve().parent / "recipes"


def find_recipe(name: str | Path, beside: Path = Path()) -> Path:
    """A path from `beside` on, or a recipe that comes along, by its name. FileNotFoundError says which those are."""
    for path in (beside / name, recipes_folder() / f"{name}.yaml", recipes_folder() / name):
        if path.is_file():
            return path
    names = sorted(recipe.stem for recipe in recipes_folder().glob("*.yaml"))
    close = difflib.get_close_matches(Path(name).stem, names, n=1, cutoff=0.7)
    meant = f"did you mean {close[0]}? " if close else ""
    raise FileNotFoundError(f"{name}: no such recipe; {meant}The ones that come along: {', '.join(names)}")


def check_words(given: dict[str, Any], valid, where: str) -> None:
    for key in given:
        if key not in valid:
            raise ValueError(f"{where}: unknown key {key!r}{nearest(str(key), list(valid))}")


def nearest(word: str, valid: list[str]) -> str:
    close = difflib.get_close_matches(word, valid, n=1, cutoff=0.5)
    return f"; did you mean {close[0]!r}?" if close else f"; valid: {', '.join(valid)}"


def _read_with_base(path: Path, seen: tuple[Path, ...]) -> dict[str, Any]:
    try:
        raw = yaml.load(path.read_text(encoding="utf-8"), Loader=_Loader) or {}
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: not valid YAML: {error}") from None
    if not isinstance(raw, dict):
        raise ValueError(f"{path}: a recipe is a mapping with the words {', '.join(FILE_WORDS)}")
    check_words(raw, FILE_WORDS, str(path))
    if raw.get("base") is None:
        return raw
    base = find_recipe(str(raw["base"]), path.parent).resolve()
    if base in seen:
        raise ValueError(f"{path}: `base` goes round in a circle through {base}")
    return _merge(_read_with_base(base, (*seen, base)), raw)


def _apply_variant(raw: dict[str, Any], path: Path) -> dict[str, Any]:
    """Lay the chosen variant's words over the file's."""
    chosen, offered = raw.get("variant"), raw.pop("variants", None) or {}
    if chosen is None:
        return raw
    if chosen not in offered:
        raise ValueError(f"{path}: no variant {chosen!r}{nearest(str(chosen), list(offered))}")
    check_words(offered[chosen], SECTIONS, f"{path}: variant {chosen}")
    return _merge(raw, offered[chosen])


def _merge(low: dict[str, Any], high: dict[str, Any]) -> dict[str, Any]:
    """Lay `high` over `low` in place, mappings word by word; everything else replaces."""
    for key, value in high.items():
        if isinstance(value, dict) and isinstance(low.get(key), dict):
            _merge(low[key], value)
        else:
            low[key] = value
    return low


def _parse_override(text: str) -> tuple[list[str], Any]:
    name, equals, value = text.partition("=")
    keys = name.strip().split(".")
    if not equals or (keys != ["variant"] and (len(keys) < 2 or keys[0] not in SECTIONS)):
        raise ValueError(
            f"--set {text}: write section.key=value, e.g. --set training.num_train_epochs=1; "
            f"sections: {', '.join(SECTIONS)}, and variant=NAME"
        )
    try:
        return keys, yaml.load(value, Loader=_Loader)
    except yaml.YAMLError as error:
        raise ValueError(f"--set {text}: {value!r} is not valid YAML ({error})") from None


def _nested(keys: list[str], value: Any) -> dict[str, Any]:
    for key in reversed(keys):
        value = {key: value}
    return value


class _Loader(yaml.SafeLoader):
    """YAML 1.1 reads 1e-4 as a word; recipes mean the number. A key given twice is an error, not the last one."""

    def construct_mapping(self, node, deep=False):
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        double = sorted({str(key) for key in keys if keys.count(key) > 1})
        if double:
            raise yaml.constructor.ConstructorError(None, None, f"key given twice: {double}", node.start_mark)
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+$|^[-+]?\.[0-9]+$"),
    list("-+.0123456789"),
)
