"""The archives hold everything, and what is installed from them alone runs, away from the checkout."""

import os
import re
import runpy
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from pathlib import Path
from unittest import mock

import pytest

ROOT = Path(__file__).resolve().parents[1]
README = """# Title
![a picture](docs/images/report.png) and [a page](docs/search.md#part), [out](https://example.org), [here](#part)
"""


@pytest.fixture(scope="module")
def setup_py():
    with mock.patch("setuptools.setup"):
        yield runpy.run_path(str(ROOT / "setup.py"))


def test_the_version_stands_in_one_place(setup_py):
    from dmae import __version__

    assert setup_py["version"]() == __version__
    for page, pattern in {"CITATION.cff": r"^version: (.+)$", "CHANGELOG.md": r"^## \[(\d[^\]]*)\]"}.items():
        found = re.search(pattern, (ROOT / page).read_text(encoding="utf-8"), re.M)
        assert found is None or found.group(1) == __version__, page


def test_links_lead_somewhere_on_a_package_page(setup_py):
    absolute = setup_py["long_description"](README, "https://example.com/a/b", "v1")
    assert "![a picture](https://example.com/a/b/raw/v1/docs/images/report.png)" in absolute
    assert "[a page](https://example.com/a/b/blob/v1/docs/search.md#part)" in absolute
    assert "[out](https://example.org), [here](#part)" in absolute
    alone = setup_py["long_description"](README, "", "v1")
    assert alone == "# Title\n and a page, [out](https://example.org), [here](#part)\n"


@pytest.fixture(scope="module")
def archives(tmp_path_factory):
    """(source archive, wheel built from that source archive and nothing else)"""
    pytest.importorskip("build")
    folder = tmp_path_factory.mktemp("archives")
    subprocess.run([sys.executable, "-m", "build", "--no-isolation", "-o", folder, ROOT], check=True)
    return next(folder.glob("*.tar.gz")), next(folder.glob("*.whl"))


def tracked() -> set[str]:
    """The files of the repository."""
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False)
    if listed.returncode:
        pytest.skip("not a git checkout")
    return set(listed.stdout.splitlines())


@pytest.mark.slow
def test_the_source_archive_holds_every_file_of_the_repository(archives):
    with tarfile.open(archives[0]) as archive:
        packed = {name.split("/", 1)[1] for name in archive.getnames() if "/" in name}
    assert tracked() <= packed
    assert not [name for name in packed if name.startswith(("outputs/", "build/", ".venv"))]


@pytest.mark.slow
def test_the_wheel_holds_every_file_of_the_rooms_and_nothing_else(archives, setup_py):
    with zipfile.ZipFile(archives[1]) as wheel:
        packed = {name for name in wheel.namelist() if ".dist-info/" not in name}
    expected = {
        package.replace(".", "/") + path.removeprefix(folder)
        for package, folder in setup_py["ROOMS"].items()
        for path in tracked()
        if path.startswith(f"{folder}/")
    }
    assert packed == expected


@pytest.fixture(scope="module")
def installed(archives, tmp_path_factory):
    """`installed("dmae", …)` runs a command of an environment that holds the wheel; the rest is borrowed from ours."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder / "venv", with_pip=True, symlinks=True)
    scripts = folder / "venv" / "bin"
    subprocess.run([scripts / "python", "-m", "pip", "install", "-q", "--no-deps", archives[1]], check=True)
    site = Path(sysconfig.get_path("purelib", vars={"base": str(folder / "venv")}))
    borrowed = [path for path in sys.path if path.endswith("site-packages")]
    (site / "borrowed.pth").write_text("\n".join(borrowed))
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
        "PATH": f"{scripts}:{os.environ['PATH']}",
    }

    def run(*arguments):
        return subprocess.run(
            [scripts / arguments[0], *arguments[1:]],
            cwd=folder,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )

    return run


@pytest.mark.second_env
def test_the_wheel_alone_runs_the_whole_line(installed):
    from dmae import __version__

    assert installed("dmae", "--version").stdout == f"dmae {__version__}\n"
    where = installed("python", "-c", "import dmae.training.run as run; print(run.__file__)").stdout
    assert "site-packages/dmae/training/run.py" in where and str(ROOT) not in where
    done = installed("dmae", "demo", "--preset", "tiny", "--set", "training.max_steps=4")
    assert done.returncode == 0, done.stdout + done.stderr
    found = installed("dmae", "search", "outputs/demo/index", "a red seven slides to the left", "--json")
    assert '"results"' in found.stdout, found.stderr
    installed(
        "python", "-c", "import glob, shutil; shutil.copy(glob.glob('outputs/demo/corpus/test/*.mp4')[0], 'clip.mp4')"
    )
    for code in re.findall(r"^```python\n(.*?)^```", (ROOT / "README.md").read_text(encoding="utf-8"), re.M | re.S):
        ran = installed("python", "-c", code)
        assert ran.returncode == 0 and ran.stdout, code + ran.stderr
