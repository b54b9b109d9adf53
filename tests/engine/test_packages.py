"""Which packages a list of grants leaves in sight, asked of environments that are made up file by file."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable
from pathlib import Path

import pytest
from isolated_python.engine import interpreters, sight
from isolated_python.engine.packages import Interpreter
from isolated_python.engine.sight import View
from isolated_python.errors import IsolatedPythonError
from isolated_python.policy.profile import Modules, Profile
from isolated_python.record import replace

VERSION = (sys.version_info[0], sys.version_info[1])


class Site:
    """A folder of packages, and distributions put into it as an installer would."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.mkdir(parents=True)
        self.add("ipykernel", ["ipykernel/__init__.py"], requires=["traitlets"])
        self.add("traitlets", ["traitlets/__init__.py"])

    def add(self, name: str, files: Iterable[str], requires: Iterable[str] = (), version: str = "1.0") -> Path:
        about = self.path / f"{name.replace('-', '_')}-{version}.dist-info"
        about.mkdir()
        lines = [f"Name: {name}", f"Version: {version}", *(f"Requires-Dist: {one}" for one in requires)]
        (about / "METADATA").write_text("\n".join(lines) + "\n\nRequires-Dist: not-a-header\n")
        for file in files:
            place = self.path / file
            place.parent.mkdir(parents=True, exist_ok=True)
            place.touch()
        own = [f"{about.name}/METADATA", f"{about.name}/RECORD"]
        (about / "RECORD").write_text("".join(f"{file},,\n" for file in (*files, *own)))
        return about

    def view(self, *grants: str, **modules: bool) -> View:
        profile = replace(Profile(), modules=Modules(grant=grants, **modules))
        found = sight.view(profile, Interpreter(VERSION, (str(self.path),)), ())
        assert found is not None
        return found

    def seen(self, *grants: str) -> set[str]:
        """What is left of the folder: every file, by its path in it."""
        hidden = [f"{folder}/{name}" for folder, names in self.view(*grants).hidden for name in names]
        files = [str(path) for path in self.path.rglob("*") if path.is_file()]
        kept = [file for file in files if not any(f"{file}/".startswith(f"{path}/") for path in hidden)]
        return {os.path.relpath(file, self.path) for file in kept if ".dist-info" not in file} - {
            "ipykernel/__init__.py",
            "traitlets/__init__.py",
        }


def near(view: View, folder: Path) -> dict[str, tuple[str, ...]]:
    """What is hidden there; what is hidden of this machine's own interpreters is another matter."""
    return {path: names for path, names in view.hidden if path.startswith(str(folder))}


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path / "site")


def test_a_grant_shows_a_distribution_and_all_that_it_requires(site: Site) -> None:
    """By the name of the distribution or of its module; what nobody named is not there, metadata included."""
    site.add("scikit-learn", ["sklearn/__init__.py", "scikit_learn.libs/libgomp.so"], ["numpy>=1", "joblib"])
    site.add("numpy", ["numpy/__init__.py", "numpy/core.cpython-311-x86_64-linux-gnu.so", "numpy.libs/blas.so"])
    site.add("joblib", ["joblib/__init__.py"])
    site.add("requests", ["requests/__init__.py"])
    wanted = {
        "sklearn/__init__.py", "scikit_learn.libs/libgomp.so", "joblib/__init__.py",
        "numpy/__init__.py", "numpy/core.cpython-311-x86_64-linux-gnu.so", "numpy.libs/blas.so",
    }  # fmt: skip
    for name in ("scikit-learn", "scikit_learn", "Scikit.Learn", "sklearn", "scikit-*", "@data-science"):
        assert site.seen(name) == wanted, name
    hidden = dict(site.view("sklearn").hidden)
    assert hidden[str(site.path)] == ("requests", "requests-1.0.dist-info")


def test_extras_and_markers_decide_what_is_required(site: Site) -> None:
    site.add("a", ["a.py"], ['b; extra == "more"', 'c; python_version < "3"', 'd; sys_platform == "linux"', "e[more]"])
    site.add("b", ["b.py"])
    site.add("c", ["c.py"])
    site.add("d", ["d.py"])
    site.add("e", ["e.py"], ['f; extra == "more"', 'g; extra == "other"'])
    site.add("f", ["f.py"], ["a"])  # a circle
    site.add("g", ["g.py"])
    assert site.seen("a") == {"a.py", "d.py", "e.py", "f.py"}


def test_the_marker_of_another_python_is_its_own(site: Site) -> None:
    site.add("a", ["a.py"], ['b; python_version < "3.10"'])
    site.add("b", ["b.py"])
    profile = replace(Profile(), modules=Modules(grant=("a",)))
    view = sight.view(profile, Interpreter((3, 9), (str(site.path),)), ())
    assert view is not None
    assert not near(view, site.path)


def test_a_namespace_is_parted_between_those_who_share_it(site: Site) -> None:
    """Also its compiled leftovers, which a loader made by hand would take."""
    site.add("google-a", ["google/cloud/a/__init__.py", "google/one.py", "google/__pycache__/one.cpython-311.pyc"])
    site.add("google-b", ["google/cloud/b/__init__.py", "google/two.py", "google/__pycache__/two.cpython-311.pyc"])
    (site.path / "google/left.py").touch()
    assert site.seen("google-a") == {
        "google/cloud/a/__init__.py", "google/one.py", "google/__pycache__/one.cpython-311.pyc",
    }  # fmt: skip
    assert site.seen("google").issuperset({"google/one.py", "google/two.py"})


def test_compiled_leftovers_of_single_modules_are_hidden(site: Site) -> None:
    site.add("six", ["six.py"])
    site.add("seven", ["seven.py", "__pycache__/seven.cpython-311.pyc"])
    (site.path / "__pycache__").mkdir(exist_ok=True)
    (site.path / "__pycache__/six.cpython-311.pyc").touch()
    assert site.seen("six") == {"six.py", "__pycache__/six.cpython-311.pyc"}
    assert site.seen("seven") == {"seven.py", "__pycache__/seven.cpython-311.pyc"}


def test_programs_of_hidden_packages_are_hidden(tmp_path: Path) -> None:
    site = Site(tmp_path / "prefix/lib/python3.11/site-packages")
    (tmp_path / "prefix/bin").mkdir()
    site.add("ruff", ["ruff/__init__.py", "../../../bin/ruff"])
    site.add("numpy", ["numpy/__init__.py"])
    hidden = dict(site.view("numpy").hidden)
    assert hidden[str(tmp_path / "prefix/bin")] == ("ruff",)
    assert str(tmp_path / "prefix/bin") not in dict(site.view("ruff").hidden)


def test_a_program_of_two_packages_is_there_if_one_is(tmp_path: Path) -> None:
    site = Site(tmp_path / "prefix/lib/python3.11/site-packages")
    (tmp_path / "prefix/bin").mkdir()
    site.add("jupyter", ["../../../bin/jupyter", "../../../bin/other"])
    site.add("jupyter-core", ["jupyter_core/__init__.py", "../../../bin/jupyter"])
    assert dict(site.view("jupyter-core").hidden)[str(tmp_path / "prefix/bin")] == ("other",)


def test_an_editable_install_is_shown_where_it_lies(site: Site, tmp_path: Path) -> None:
    """By a .pth file, or by a finder whose place only direct_url.json tells; not granted, it is hidden or not shown."""
    for name in ("one", "two"):
        (tmp_path / name / "src" / name).mkdir(parents=True)
    site.add("one", ["_one.pth"])
    (site.path / "_one.pth").write_text(f"{tmp_path}/one/src\n")
    about = site.add("two", ["__editable__.two.pth", "__editable___two_finder.py"])
    (site.path / "__editable__.two.pth").write_text("import __editable___two_finder\n")
    direct = {"url": f"file://{tmp_path}/two", "dir_info": {"editable": True}}
    (about / "direct_url.json").write_text(json.dumps(direct))
    for name, other in (("one", "two"), ("two", "one")):
        view = site.view(name)
        assert f"{tmp_path}/{name}/src" in view.adds
        assert f"{tmp_path}/{other}/src" not in view.adds
        assert f"{tmp_path}/{other}" in dict(view.hidden)
        assert name in view.granted
        assert other in view.refused


def test_a_path_that_nobody_owns_is_a_folder_of_packages_like_any_other(site: Site, tmp_path: Path) -> None:
    more = tmp_path / "more"
    more.mkdir()
    (more / "mine.py").touch()
    (more / "yours.py").touch()
    (site.path / "local.pth").write_text(f"# a comment\n{more}\n")
    view = site.view("mine")
    assert near(view, tmp_path) == {str(more): ("yours.py",)}
    assert str(more) in view.adds
    assert "local.pth" in dict(site.view("traitlets").hidden)[str(site.path)]


def test_a_distribution_of_the_system_has_no_list_of_files(site: Site) -> None:
    about = site.path / "numpy-1.0.egg-info"
    about.mkdir()
    (about / "PKG-INFO").write_text("Name: numpy\n")
    (about / "top_level.txt").write_text("numpy\n")
    (about / "requires.txt").write_text("blas\n\n[tests]\npytest\n")
    site.add("blas", ["blas.py"])
    site.add("pytest", ["pytest.py"])
    (site.path / "numpy").mkdir()
    (site.path / "numpy/__init__.py").touch()
    assert site.seen("numpy") == {"numpy/__init__.py", "blas.py", "numpy-1.0.egg-info/PKG-INFO"} | {
        f"numpy-1.0.egg-info/{name}" for name in ("top_level.txt", "requires.txt")
    }


def test_the_first_of_two_folders_wins(tmp_path: Path) -> None:
    user, main = Site(tmp_path / "user"), Site(tmp_path / "main")
    user.add("numpy", ["numpy/__init__.py"], version="2.0")
    main.add("numpy", ["numpy/__init__.py"], version="1.0")
    profile = replace(Profile(), modules=Modules(grant=("numpy",)))
    view = sight.view(profile, Interpreter(VERSION, (str(user.path), str(main.path))), ())
    assert view is not None
    assert "numpy" in dict(view.hidden)[str(main.path)]
    assert str(user.path) not in dict(view.hidden)


def test_the_guard_is_told_what_a_cell_may_import(site: Site) -> None:
    """What a granted package needs is there, and yet not granted to cells."""
    site.add("pandas", ["pandas/__init__.py"], ["numpy"])
    site.add("numpy", ["numpy/__init__.py"])
    view = site.view("pandas", "math", "json")
    assert view.granted == ("IPython", "__future__", "__main__", "builtins", "json", "math", "pandas")
    assert {"numpy", "socket", "os", "ipykernel"} <= {*view.refused}
    assert site.view("@stdlib").refused == ("ipykernel", "numpy", "pandas", "traitlets")
    assert site.view("math", hidden=False).hidden == ()


def test_an_empty_list_leaves_what_the_kernel_needs(site: Site) -> None:
    site.add("numpy", ["numpy/__init__.py"])
    assert near(site.view(), site.path) == {str(site.path): ("numpy", "numpy-1.0.dist-info")}


def test_what_is_kept_is_made_again_when_the_environment_changes(site: Site) -> None:
    site.add("numpy", ["numpy/__init__.py"])
    first = site.view("numpy")
    assert site.view("numpy") is first
    site.add("requests", ["requests/__init__.py"])
    again = site.view("numpy")
    assert again.digest != first.digest
    assert again.of == first.of
    assert "requests" in dict(again.hidden)[str(site.path)]


def test_nothing_that_is_needed_lies_below_what_is_hidden(site: Site, tmp_path: Path) -> None:
    """An environment within the source of a package that is installed from there, and not granted."""
    inner = Site(tmp_path / "project/.venv/lib/python3.11/site-packages")
    about = inner.add("project", ["__editable___project_finder.py"])
    direct = {"url": f"file://{tmp_path}/project", "dir_info": {"editable": True}}
    (about / "direct_url.json").write_text(json.dumps(direct))
    assert str(tmp_path) not in dict(inner.view("traitlets").hidden)


def broken(site: Site, what: str) -> str:
    """Break an environment; returns what to grant."""
    match what:
        case "no metadata":
            (site.add("numpy", ["numpy/__init__.py"]) / "METADATA").unlink()
        case "no record":
            (site.add("numpy", ["other/__init__.py"]) / "RECORD").unlink()
        case "two versions":
            site.add("numpy", ["numpy/__init__.py"])
            site.add("numpy", ["numpy/__init__.py"], version="2.0")
        case "a requirement that is none":
            site.add("numpy", ["numpy/__init__.py"], ["???"])
        case "no ipykernel":
            (site.path / "ipykernel-1.0.dist-info/METADATA").write_text("Name: other\n")
            site.add("numpy", ["numpy/__init__.py"])
        case "a link to nowhere":
            (site.path / "broken.pth").symlink_to("/nowhere/at/all")
            site.add("numpy", ["numpy/__init__.py"])
        case "a circle for a folder":
            (site.path / "more").mkdir()
            (site.path / "more.pth").write_text("more\n")
            os.symlink("loop", site.path / "more" / "loop")
            (site.path / "more" / "loop.pth").symlink_to("loop.pth")
            site.add("numpy", ["numpy/__init__.py"])
        case "a name of nothing":
            site.add("numpyro", ["numpyro/__init__.py"])
    return "numpy"


@pytest.mark.parametrize(
    ("what", "words"),
    [
        ("no metadata", "says nothing about its package: install numpy again"),
        ("no record", "has no list of its files: install numpy again"),
        ("two versions", "holds two versions of numpy"),
        ("a requirement that is none", "requires '???', which means nothing"),
        ("no ipykernel", "has no ipykernel"),
        ("a link to nowhere", "broken.pth cannot be read (No such file or directory)"),
        ("a circle for a folder", "loop.pth cannot be read (Too many levels of symbolic links)"),
        ("a name of nothing", "nothing here is called 'numpy': did you mean numpyro"),
    ],
)
def test_a_broken_environment_is_one_sentence(site: Site, what: str, words: str) -> None:
    grant = broken(site, what)
    with pytest.raises(IsolatedPythonError) as refused:
        site.view(grant)
    assert words in str(refused.value)
    assert "\n" not in str(refused.value)
    assert refused.value.remedy


def test_what_is_broken_and_not_granted_is_hidden(site: Site) -> None:
    """It stands in nobody's way: only what is granted must be whole."""
    (site.add("torch", ["torch/__init__.py"]) / "METADATA").unlink()
    site.add("twice", ["twice.py"])
    site.add("twice", ["twice.py"], version="2.0")
    site.add("numpy", ["numpy/__init__.py"])
    assert site.seen("numpy") == {"numpy/__init__.py"}


def test_another_environment_is_found_by_its_program(tmp_path: Path) -> None:
    prefix = tmp_path / "env"
    (prefix / "bin").mkdir(parents=True)
    (prefix / "lib/python3.9/site-packages").mkdir(parents=True)
    (prefix / "bin/python").symlink_to("/usr/bin/python3")
    (prefix / "pyvenv.cfg").write_text("home = /usr/bin\ninclude-system-site-packages = false\n")
    found = interpreters.of(str(prefix / "bin/python"))
    assert found.folders == (str(prefix / "lib/python3.9/site-packages"),)
    assert interpreters.of("/bin/sh").folders == ()
