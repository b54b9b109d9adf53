"""
Runs other people's suites with our provisioner as the default, and compares nothing but outcomes.

    python tests/upstream/run.py [SUITE…] [--stock] [--verbose]

Each suite is the tests of a published sdist, unpacked into .cache/upstream and run from inside it. `--stock` runs them
without our provisioner: the yardstick. Tests that cannot hold by design are named in not-by-design.txt.
Exit status: 0 when nothing failed.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tarfile
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
CACHE = HERE.parent.parent / ".cache" / "upstream"
BUDGET = 1200  # seconds that one suite may take
EACH = 120  # seconds that one test may take
# pytest-asyncio warns where this is unset, and most suites make of every warning an error.
FEW = 3  # failed tests that are tried a second time, by themselves; more than that is no accident
QUIET = "-o asyncio_default_fixture_loop_scope=function"


@dataclass(frozen=True)
class Suite:
    distribution: str
    tests: tuple[str, ...]
    stock: bool = True  # does it ask anything of a machine without our package?
    options: tuple[str, ...] = ()


def _tests(pattern: str, names: str) -> tuple[str, ...]:
    return tuple(pattern.format(name) for name in names.split())


TESTS, PAPERMILL = "tests/test_{}.py", "papermill/tests/test_{}.py"
SUITES = {
    "jupyter_kernel_test": Suite("jupyter_kernel_test", ("test_ipykernel.py",)),
    "jupyter_kernel_test-isolated": Suite(
        "jupyter_kernel_test", (str(HERE / "test_isolated_kernel.py"),), stock=False, options=("-o", "pythonpath=.")
    ),
    "jupyter_client-provisioning": Suite("jupyter_client", _tests(TESTS, "provisioning")),
    "jupyter_client-kernelmanager": Suite("jupyter_client", _tests(TESTS, "kernelmanager")),
    "jupyter_client-multikernelmanager": Suite("jupyter_client", _tests(TESTS, "multikernelmanager")),
    "jupyter_client-others": Suite(
        "jupyter_client", _tests(TESTS, "client restarter manager runapp kernelapp transport_security")
    ),
    "nbclient": Suite("nbclient", ("tests",)),
    "ipykernel": Suite("ipykernel", _tests(TESTS, "message_spec kernel subshells async debugger curve start_kernel")),
    "jupyter_server": Suite(
        "jupyter_server",
        ("tests/services/kernels", "tests/services/sessions"),
        # Five tests build a request in a way that tornado 6.6 calls deprecated; that is between the two of them.
        options=(
            "-Wignore:The method, uri, and version arguments:DeprecationWarning",
            "-Wignore:The start_line argument to HTTPServerRequest:DeprecationWarning",
        ),
    ),
    "nbconvert": Suite("nbconvert", ("tests/preprocessors/test_execute.py",)),
    "papermill": Suite("papermill", _tests(PAPERMILL, "execute engines clientwrap cli")),
}


def pinned() -> dict[str, str]:
    """The versions in requirements.txt, by distribution with underscores."""
    lines = (HERE / "requirements.txt").read_text().splitlines()
    return {name.replace("-", "_"): version for name, _, version in (line.partition("==") for line in lines) if version}


def unpacked(distribution: str) -> Path:
    """The folder of the distribution's sdist, fetched by pip where it is not yet there."""
    version = pinned()[distribution]
    folder = CACHE / f"{distribution}-{version}"
    if not folder.is_dir():
        sdists = CACHE / "sdists"
        # Only the suite itself is wanted as source: --no-binary :all: would build its build tools, too.
        download = ["download", "--quiet", "--no-deps", "--no-binary", distribution, "--dest", str(sdists)]
        subprocess.run([sys.executable, "-m", "pip", *download, f"{distribution}=={version}"], check=True)
        with tarfile.open(sdists / f"{distribution}-{version}.tar.gz") as archive:
            if hasattr(tarfile, "data_filter"):  # Python 3.11.4
                archive.extraction_filter = tarfile.data_filter
            archive.extractall(CACHE)
    return folder


def refused_by_design(suite: str) -> list[str]:
    """The node ids that not-by-design.txt names for this suite."""
    found = []
    for line in (HERE / "not-by-design.txt").read_text().splitlines():
        entry, mark, why = line.partition("  # ")
        if entry.startswith("#") or not entry.strip():
            continue
        if not (mark and why.strip()):
            raise SystemExit(f"not-by-design.txt: no reason given for {entry!r}")
        name, _, node = entry.strip().partition("::")
        if name not in SUITES or not node:
            raise SystemExit(f"not-by-design.txt: {entry!r} names no suite of {', '.join(SUITES)}")
        if name == suite:
            found.append(node)
    return found


def environment(home: str, stock: bool) -> dict[str, str]:
    """What a suite is told: this interpreter first, a home of its own, and who provisions kernels."""
    told = {name: value for name, value in os.environ.items() if name in ("LANG", "TERM", "TZ", "CI")}
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
    told |= {"PATH": path, "HOME": home, "TMPDIR": home, "PYTHONDONTWRITEBYTECODE": "1"}
    return told if stock else told | {"JUPYTER_DEFAULT_PROVISIONER_NAME": "isolated-python"}


def run(name: str, *, stock: bool, verbose: bool, only: tuple[str, ...] = ()) -> dict[str, tuple[str, str]]:
    """Outcome and reason of each test of the suite, by node id. A suite out of time fails the test it hung in."""
    suite, outcomes = SUITES[name], {}
    folder = unpacked(suite.distribution)
    with tempfile.TemporaryDirectory(prefix="upstream-") as home:
        os.chmod(home, 0o755)
        record = Path(home, "record.jsonl")
        record.touch()
        options = f"-q -p no:cacheprovider -p no:randomly -o addopts= {QUIET} --timeout={EACH}".split()
        options += ["--timeout-method=signal"]  # the other method ends the whole run, and with it what is to come
        options += [f"--rootdir={folder}", f"--confcutdir={folder}", "-c", str(folder / "pyproject.toml")]
        options += [] if stock else [f"--deselect={node}" for node in refused_by_design(name)]
        command = [
            sys.executable,
            str(HERE / "inside.py"),
            str(record),
            *options,
            *suite.options,
            *(only or suite.tests),
        ]
        log = CACHE / f"{name}.{'stock' if stock else 'isolated'}.log"
        with open(log, "wb") as output:
            process = subprocess.Popen(
                command,
                cwd=folder,
                env=environment(home, stock),
                stdin=subprocess.DEVNULL,
                stdout=None if verbose else output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
            try:
                process.wait(BUDGET)
            except subprocess.TimeoutExpired:
                pass
            finally:  # also when this program is told to end
                if process.poll() is None:
                    os.killpg(process.pid, signal.SIGKILL)
                    process.wait()
        for line in record.read_text().splitlines():
            node, outcome, reason = json.loads(line)
            if outcomes.get(node, ("", ""))[0] != "failed":  # a failed set-up or subtest is not undone by what follows
                outcomes[node] = (outcome, reason)
    for node, (outcome, _) in outcomes.items():
        if outcome == "started":
            outcomes[node] = ("failed", "never finished")
    if not outcomes:
        outcomes[name] = ("failed", f"nothing was collected, see {log}")
    return outcomes


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").strip().splitlines()[0])
    parser.add_argument("suite", nargs="*", choices=[*SUITES, []], metavar="SUITE", help=", ".join(SUITES))
    parser.add_argument("--stock", action="store_true", help="without our provisioner: the yardstick")
    parser.add_argument("--verbose", action="store_true", help="pytest's own output, as it comes")
    asked = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("told to end"))
    names = asked.suite or [name for name, suite in SUITES.items() if suite.stock or not asked.stock]
    CACHE.mkdir(parents=True, exist_ok=True)
    total = dict.fromkeys(("passed", "failed", "skipped"), 0)
    failures = []
    print(f"{'suite':36}{'passed':>8}{'failed':>8}{'skipped':>9}{'seconds':>9}")
    for name in names:
        began = time.monotonic()
        outcomes = run(name, stock=asked.stock, verbose=asked.verbose)
        failed = tuple(node for node, (outcome, _) in outcomes.items() if outcome == "failed" and "::" in node)
        if 0 < len(failed) <= FEW:
            # Many of these tests bet on a clock: what fails beside others and holds alone is told, and not counted.
            for node, (outcome, reason) in run(name, stock=asked.stock, verbose=asked.verbose, only=failed).items():
                if outcome == "passed":
                    print(f"held on the second try: {name}::{node}")
                    outcomes[node] = (outcome, reason)
        counted = {kind: sum(outcome == kind for outcome, _ in outcomes.values()) for kind in total}
        total = {kind: total[kind] + counted[kind] for kind in total}
        took = time.monotonic() - began
        print(f"{name:36}{counted['passed']:8}{counted['failed']:8}{counted['skipped']:9}{took:9.0f}", flush=True)
        failures += [(name, node, reason) for node, (outcome, reason) in outcomes.items() if outcome == "failed"]
    for name, node, reason in failures:
        print(f"FAILED {name}::{node}\n       {reason}")
    print(f"{total['passed']} passed, {total['failed']} failed, {total['skipped']} skipped")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
