"""What the attacker wants: a package that its profile does not grant. It is not there, whatever way is taken to it."""

from __future__ import annotations

import gc
import glob
import importlib
import marshal
import multiprocessing
import os
import pickle
import site
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from functools import partial
from importlib import machinery, metadata, util
from typing import Any

from tests.escapes.attack import Attack, attack
from tests.escapes.modules.packages import HIDDEN, Installer, Package
from tests.escapes.places import Place
from tests.escapes.proof import prove
from tests.escapes.tools import first

hidden = partial(attack, Package, stopped_by="mount", overrides=HIDDEN, profiles=("standard",))


def test_use_a_hidden_package(attack: Attack, place: Place, proven: set[tuple[str, str]]) -> None:
    prove(attack, place, proven)


def reach(target: Any) -> None:
    """Look for modules where the packages lie."""
    sys.path[:0] = [one for one in target.folders if one not in sys.path]
    importlib.invalidate_caches()


def there(target: Any, act: Any) -> str:
    """What `act` finds. That the package itself is missing is a refusal; of any other module, a broken attack."""
    try:
        return f"{target.pure} {act()}"
    except ModuleNotFoundError as error:
        if (error.name or "").startswith(target.pure):
            raise FileNotFoundError(str(error)) from None
        raise


def proof(target: Any) -> str:
    """The package, imported in the plain way."""
    return there(target, lambda: importlib.import_module(target.pure + "._version").version)


def run(command: list[str], **environment: str) -> str:
    found = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **environment}, timeout=10)
    if found.returncode:
        raise OSError(found.stderr[-200:])
    return found.stdout.strip()


def reads(target: Any) -> str:
    """A program for another interpreter."""
    return f"import {target.pure}._version as v; print({target.pure!r}, v.version)"


@hidden()
def by_importlib(target: Any) -> str:
    """Import it by the functions that are behind the import statement."""
    reach(target)

    def found_and_loaded() -> str:
        spec = util.find_spec(f"{target.pure}._version")
        module = util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module.version

    return first([lambda: proof(target), lambda: there(target, found_and_loaded)])


@hidden(runs="cell")
def by_the_import_that_the_guard_replaced(target: Any) -> str:
    """Import it in a cell by the true __import__, which every builtin function leads to."""
    reach(target)
    true = print.__self__.__import__  # type: ignore[attr-defined]
    return there(target, lambda: true(f"{target.pure}._version", fromlist=["version"]).version)


@hidden()
def by_an_interpreter_without_site(target: Any) -> str:
    """Start an interpreter that knows of no list, no hook and no folder, and show it the way."""
    code = f"import sys; sys.path[:0] = {target.folders!r}; {reads(target)}"
    return run([sys.executable, "-I", "-S", "-c", code])


@hidden()
def by_another_interpreter(target: Any) -> str:
    """Try every interpreter there is, with the packages named in its environment."""
    pythons = [sys.executable, *glob.glob("/usr/bin/python3*"), *glob.glob("/usr/local/bin/python3*")]
    where = ":".join(target.folders)
    return first(lambda p=python: run([p, "-c", reads(target)], PYTHONPATH=where) for python in pythons)


@hidden()
def by_fork_and_exec(target: Any) -> str:
    """Fork, and become an interpreter by a shell."""
    reader, writer = os.pipe()
    if os.fork() == 0:
        os.dup2(writer, 1)
        line = f'PYTHONPATH={target.folders[0]} exec {sys.executable} -c "{reads(target)}"'
        os.execv("/bin/sh", ["sh", "-c", line])
    os.close(writer)
    os.wait()
    return os.read(reader, 100).decode().strip()


@hidden()
def by_a_worker(target: Any) -> str:
    """Let a forked worker import it, and send it back."""
    context = multiprocessing.get_context("fork")
    here, there = context.Pipe()

    def work() -> None:
        reach(target)
        there.send(proof(target))

    worker = context.Process(target=work)
    worker.start()
    there.close()
    try:
        return here.recv()
    finally:
        worker.join()


@hidden()
def by_a_loader_made_by_hand(target: Any) -> str:
    """Load its source, its compiled source, and its library by loaders that look for nothing."""

    def source(folder: str) -> str:
        loader = machinery.SourceFileLoader("stolen", f"{folder}/{target.pure}/_version.py")
        space: dict[str, Any] = {}
        exec(loader.get_code("stolen"), space)
        return f"{target.pure} {space['version']}"

    def compiled(folder: str) -> str:
        for path in glob.glob(f"{folder}/{target.pure}/__pycache__/_version.*.pyc"):
            space: dict[str, Any] = {}
            with open(path, "rb") as file:
                exec(marshal.loads(file.read()[16:]), space)
            return f"{target.pure} {space['version']}"
        raise FileNotFoundError("no compiled source")

    return first(lambda f=folder, load=load: load(f) for folder in target.folders for load in (source, compiled))


@hidden()
def by_its_library(target: Any) -> str:
    """Load the machine code of a compiled package, by its path."""
    reach(target)

    def extension(path: str) -> str:
        loader = machinery.ExtensionFileLoader("_cext", path)
        spec = util.spec_from_file_location("_cext", path, loader=loader)
        module = util.module_from_spec(spec)
        loader.exec_module(module)
        return f"{target.compiled} {module.__version__}"

    paths = [path for folder in target.folders for path in glob.glob(f"{folder}/{target.compiled}/_cext*.so")]
    return first(lambda p=path: extension(p) for path in paths)


@hidden()
def by_its_metadata(target: Any) -> str:
    """Learn its version from what the installer has left beside it."""
    found = [*metadata.distributions(name=target.pure, path=target.folders)]
    return f"{target.pure} {found[0].version}" if found else "nothing"


@hidden()
def by_a_site_of_its_own(target: Any) -> str:
    """Have the folder of packages taken on as a site, with all that its .pth files add."""
    for folder in target.folders:
        site.addsitedir(folder)
    return proof(target)


@hidden()
def by_a_pickle(target: Any) -> str:
    """Let a pickle import it, in C."""
    reach(target)
    return there(target, lambda: pickle.loads(f"c{target.pure}._version\nversion\n.".encode()))


@hidden()
def by_a_zip(target: Any) -> str:
    """Pack its files into an archive, and import it from there."""
    paths = [path for folder in target.folders for path in glob.glob(f"{folder}/{target.pure}/*.py")]
    packed = os.path.abspath(f"packed-{os.getpid()}.zip")
    with zipfile.ZipFile(packed, "w") as archive:
        for path in paths:
            archive.write(path, f"{target.pure}/{os.path.basename(path)}")
    sys.path.insert(0, packed)
    return proof(target)


@attack(Installer, stopped_by="mount", overrides=HIDDEN, profiles=("standard",))
def by_the_wheels_of_the_system(target: Any) -> str:
    """Import the installer that an interpreter brings along, from its wheels or its folder."""

    def tried(path: str) -> str:
        code = f"import sys; sys.path.insert(0, {path!r}); import pip; print('pip', pip.__version__)"
        return run([sys.executable, "-I", "-S", "-c", code])

    wheels = glob.glob("/usr/share/python-wheels/*.whl") + glob.glob("/usr/lib/python3*/ensurepip/_bundled/*.whl")
    return first(lambda p=path: tried(p) for path in (*wheels, *target.folders, "/usr/lib/python3/dist-packages"))


@hidden(seconds=60)
def anywhere_in_sight(target: Any) -> str:
    """Search every folder that can be seen for its metadata: views, wheels, caches, other environments."""

    def places() -> Iterator[str]:
        for root in (*target.folders, "/"):
            for folder, names, _ in os.walk(root):
                names[:] = [name for name in names if f"{folder}/{name}" not in ("//proc", "//sys", "//dev")]
                yield from (f"{folder}/{name}" for name in names if name.startswith(target.pure + "-"))

    found = next(places(), "").rpartition("/")[2]
    return found.removesuffix(".dist-info").replace("-", " ")


@hidden()
def through_what_holds_the_trees(target: Any) -> str:
    """Go around the view: by the root of every process, by open folders, by the parts that an overlay is made of."""
    roots = [f"/proc/{pid}/{way}" for pid in os.listdir("/proc") if pid.isdigit() for way in ("root", "cwd")]
    roots += [f"/proc/self/fd/{number}" for number in range(64)] + glob.glob("/run/*") + glob.glob("/run/*/*")
    tails = [
        folder for whole in target.folders for folder in (whole, whole.rpartition("/lib/")[2], "site-packages", "")
    ]

    def read(path: str) -> str:
        space: dict[str, Any] = {}
        with open(f"{path}/{target.pure}/_version.py") as file:
            exec(file.read(), space)
        return f"{target.pure} {space['version']}"

    ups = ("", "/..", "/../..", "/../../..", "/../../../..")
    return first(lambda r=root, u=up, t=tail: read(f"{r}{u}/{t}") for root in roots for up in ups for tail in tails)


@hidden(runs="cell")
def from_what_is_left_in_memory(target: Any) -> str:
    """Find it among all objects of a process that may have imported it once."""
    reach(target)
    first([lambda: proof(target), lambda: ""])
    for name in [name for name in sys.modules if name.startswith(target.pure)]:
        del sys.modules[name]
    for thing in gc.get_objects():
        if isinstance(thing, dict) and str(thing.get("__name__", "")) == f"{target.pure}._version":
            return f"{target.pure} {thing['version']}"
    return ""


@hidden(runs="cell")
def from_sys_modules(target: Any) -> str:
    """Take a module that somebody else has imported: the kernel, its zygote, a library."""
    reach(target)
    first([lambda: proof(target), lambda: ""])
    found = [sys.modules[name] for name in (*sys.modules,) if name.endswith(f"{target.pure}._version")]
    return f"{target.pure} {found[0].version}" if found else ""
