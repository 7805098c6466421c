"""transformers' common tests of the installed version, from its archive: what fails is listed with its reason."""

import re
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
import transformers

HERE = Path(__file__).resolve().parent
NO_AUDIO = "the tester takes every feature_extractor for one of audio and passes audio=; it samples frames here"
CONSENT = "the tester loads parts of a saved folder without trust_remote_code, and they are this package's classes"
FEATURES = "get_*_features gives unit embeddings with their masks, not one tower's last_hidden_state and pooler_output"
TOWERS = "states are captured by the towers, which are transformers' own classes, not by the model around them"
EXPECTED = {
    "test_get_text_features_output_0": FEATURES,
    "test_get_text_features_output_2": FEATURES,
    "test_get_video_features_output_0": FEATURES,
    "test_get_video_features_output_2": FEATURES,
    "test_model_outputs_equivalence": "the tester subtracts every output; masks are of type bool",
    "test_can_capture_specific_layers_hidden_states": TOWERS,
    "test_capture_outputs_decorator": TOWERS,
    "test_kwargs_overrides_default_subprocessor_kwargs_2_audio": NO_AUDIO,
    "test_overlapping_text_image_kwargs_handling_2_audio": NO_AUDIO,
    "test_processor_with_multiple_inputs": NO_AUDIO,
    "test_structured_kwargs_nested_from_dict_2_audio": NO_AUDIO,
    "test_subprocessor_defaults_preserved_by_kwargs_2_audio": NO_AUDIO,
    "test_unstructured_kwargs_2_audio": NO_AUDIO,
    "test_unstructured_kwargs_batched_2_audio": NO_AUDIO,
    "test_subprocessor_defaults_3_audio": NO_AUDIO,
    "test_subprocessor_defaults_0_text": CONSENT,
    "test_processor_from_and_save_pretrained_as_nested_dict": CONSENT,
    "test_processor_from_pretrained_vs_from_components": CONSENT,
    "test_tokenizer_decode_defaults": CONSENT,
}


def test_the_page_lists_what_fails():
    page = (HERE.parents[1] / "docs/how_to/neighbours.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (`test_.*?) \| (.*?) \|$", page, re.M)
    assert {name: why for names, why in rows for name in re.findall(r"`(\w+)`", names)} == EXPECTED


@pytest.mark.second_env
@pytest.mark.timeout(900)
def test_common_tests_of_transformers(tmp_path):
    tests = transformers_tests(tmp_path)
    own = tests / "models" / "dmae"
    own.mkdir(parents=True)
    for folder in (tests, tests / "models", own):
        (folder / "__init__.py").touch()
    shutil.copy(HERE / "transformers_testers.py", own / "test_dmae.py")
    command = [sys.executable, "-m", "pytest", "-q", "-rf", "-p", "no:cacheprovider", "-W", "ignore", str(own)]
    environment = {"HF_HUB_OFFLINE": "1", "PYTHONPATH": str(tmp_path / "more"), "PATH": "/usr/bin:/bin"}
    done = subprocess.run(command, cwd=tests.parent, env=environment, capture_output=True, text=True, check=False)
    failed = set(re.findall(r"^(?:SUB)?FAILED.*::(test_\w+)", done.stdout, re.MULTILINE))
    passed = int(re.search(r"(\d+) passed", done.stdout).group(1))
    assert failed == set(EXPECTED), done.stdout[-3000:]
    assert passed >= 75, done.stdout[-300:]


def transformers_tests(folder: Path) -> Path:
    """transformers' `tests` folder, made importable: what the archive leaves out of it is not called by these tests."""
    pip = [sys.executable, "-m", "pip", "-q"]
    wanted = f"transformers=={transformers.__version__}"
    build = ["--no-deps", "--no-binary", "transformers", "--no-build-isolation"]
    subprocess.run([*pip, "download", *build, "-d", folder, wanted], check=True)
    subprocess.run([*pip, "install", "--no-deps", "--target", folder / "more", "parameterized"], check=True)
    (archive,) = folder.glob("transformers-*.tar.gz")
    with tarfile.open(archive) as source:
        source.extractall(folder, [item for item in source if "/tests/" in item.name], filter="data")
    (tests,) = folder.glob("transformers-*/tests")
    for path, text in {
        "exporters/test_export.py": "class ExportTesterMixin: pass\n",
        "generation/test_utils.py": "class GenerationTesterMixin: pass\n",
        "../utils/fetch_hub_objects_for_ci.py": "def url_to_local_path(url, *_, **__):\n    return url\n",
    }.items():
        (tests / path).parent.mkdir(exist_ok=True)
        (tests / path).write_text(text)
        (tests / path).with_name("__init__.py").touch()
    return tests
