"""
The long run of the fuzzers, by hand: `make fuzz SECONDS=600 ARGS='wire packets'`.

Every property of the files beside this one is driven for SECONDS: by atheris, which is led by the code it reaches,
where it is installed, else by hypothesis alone. What a run has learnt is kept in .cache/fuzz for the next. A failure is
printed, and hypothesis shows it again at the next `make test`; make it an @example there when it is mended.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
KEPT = ROOT / ".cache" / "fuzz"
MEMORY = 2000  # MiB that a fuzzer may use
LONGEST = 1 << 14  # bytes of choices that atheris hands to hypothesis


def properties(module: ModuleType) -> dict[str, Callable[..., Any]]:
    return {name: test for name, test in vars(module).items() if getattr(test, "hypothesis", None) is not None}


def load(path: Path) -> ModuleType:
    specification = importlib.util.spec_from_file_location(f"tests.fuzz.{path.stem}", path)
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    sys.modules[specification.name] = module
    specification.loader.exec_module(module)
    return module


def guided(path: Path, name: str, seconds: int) -> None:
    """One property, led by coverage. Never returns."""
    import atheris

    with atheris.instrument_imports(include=["isolated_python"]):
        test = properties(load(path))[name]
    corpus = KEPT / f"{path.stem}.{name}"
    corpus.mkdir(parents=True, exist_ok=True)
    limits = [f"-max_total_time={seconds}", f"-rss_limit_mb={MEMORY}", f"-max_len={LONGEST}"]
    where = [f"-artifact_prefix={corpus}-", "-print_final_stats=1", "-verbosity=0"]
    atheris.Setup([sys.argv[0], *limits, *where, str(corpus)], test.hypothesis.fuzz_one_input)  # type: ignore[attr-defined]
    atheris.Fuzz()


def unguided(path: Path, name: str, seconds: int) -> None:
    """One property, by hypothesis alone: from bytes at random, until the time is over."""
    test = properties(load(path))[name]
    end, rounds = time.monotonic() + seconds, 0
    while time.monotonic() < end:
        test.hypothesis.fuzz_one_input(os.urandom(LONGEST))  # type: ignore[attr-defined]
        rounds += 1
    print(f"stat::number_of_executed_units: {rounds}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=int, default=60, help="for each property")
    parser.add_argument("--one", nargs=2, metavar=("FILE", "NAME"), help=argparse.SUPPRESS)
    parser.add_argument("words", nargs="*", help="parts of the names of files or properties; all without")
    asked = parser.parse_args()
    by = guided if importlib.util.find_spec("atheris") else unguided
    if asked.one:
        by(Path(asked.one[0]), asked.one[1], asked.seconds)
        return 0
    failed = 0
    for path in sorted(HERE.glob("test_*.py")):
        for name in properties(load(path)):
            if asked.words and not any(word in f"{path.stem}::{name}" for word in asked.words):
                continue
            command = [sys.executable, "-P", __file__, "--seconds", str(asked.seconds), "--one", str(path), name]
            ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
            said = ran.stdout + ran.stderr
            count = said.rpartition("number_of_executed_units: ")[2].split("\n")[0] if "executed_units" in said else "?"
            failed += ran.returncode != 0
            print(f"{'ok' if ran.returncode == 0 else 'FAILED':7} {count.strip():>9}  {path.stem}::{name}", flush=True)
            if ran.returncode:
                print(said[-6000:])
    return 1 if failed else 0


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    sys.exit(main())
