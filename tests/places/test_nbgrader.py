"""A graded class: a submission runs in a sandbox, gets the score it has earned, and reaches nothing of the course's."""

from __future__ import annotations

import csv
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_notebook

from tests.places.conftest import BIN, DEPLOY, SMALL, environment

# The course's notebook: solution, its test, solution, its test.
CELLS = (
    ("double", 0, "def double(x):\n    ### BEGIN SOLUTION\n    return 2 * x\n    ### END SOLUTION"),
    (
        "test-double", 2,
        "assert double(2) == 4\n### BEGIN HIDDEN TESTS\nassert double(21) == 42\n### END HIDDEN TESTS",
    ),
    (
        "total", 0,
        "def total(path):\n    ### BEGIN SOLUTION\n    return sum(map(int, open(path)))\n    ### END SOLUTION",
    ),
    ("test-total", 3, "assert total('data.txt') == 6"),
)  # fmt: skip
DOUBLE, TOTAL = "def double(x):\n    return 2 * x", "def total(path):\n    return sum(map(int, open(path)))"

# Who submits, what, and the score that it has earned.
SUBMITTED: dict[str, tuple[str, str, float]] = {
    "honest": (DOUBLE, TOTAL, 5),
    "broken": ("def double(x):\n    return x ** 2", "def total(path):\n    return sum(pth)", 0),
    "thief": (DOUBLE + "\nLOOK", TOTAL, 5),
    "forger": (
        "open('p1.ipynb', 'w').write('{}'); open('data.txt', 'w').write('6')\ndef double(x):\n    return 0",
        TOTAL, 3,
    ),
    "endless": (DOUBLE, "def total(path):\n    while True: pass", 2),
    "greedy": (DOUBLE, "def total(path):\n    hoard = []\n    while True: hoard.append(b'x' * (8 << 20))", 2),
    "many": (
        DOUBLE,
        "def total(path):\n    import subprocess\n    return [subprocess.Popen(['sleep', '9']) for _ in range(300)]", 2,
    ),
    "quitter": (DOUBLE, "def total(path):\n    import os\n    os._exit(0)", 2),
}  # fmt: skip

# What the thief runs: is anything of the course's there, or a way out of the machine?
LOOK = """
import os, socket
for path in {wanted!r}:
    print(path, 'reached' if os.path.lexists(path) else 'absent')
try:
    socket.socket(socket.AF_INET, socket.SOCK_DGRAM).connect(('192.0.2.1', 9))
    print('network reached')
except OSError:
    print('network absent')
print('variables', [name for name in os.environ if 'GRADE' in name or 'TOKEN' in name])
"""
SETTINGS = f"""
c.CourseDirectory.course_id = "course"
c.Execute.timeout = 4
c.IsolatedProvisioner.overrides = {SMALL!r}
"""


class Course:
    """A folder as nbgrader wants it, with the configuration from deploy/."""

    def __init__(self, home: Path) -> None:
        self.folder, self.environment = home / "course", environment(home, SECRET_TOKEN="x")
        source = self.folder / "source" / "ps1"
        source.mkdir(parents=True)
        shutil.copy(DEPLOY / "nbgrader_config.py", self.folder)
        with (self.folder / "nbgrader_config.py").open("a") as file:
            file.write(SETTINGS)
        nbformat.write(new_notebook(cells=[cell(*about) for about in CELLS]), source / "p1.ipynb")
        (source / "data.txt").write_text("1\n2\n3\n")
        self.run("jupyter-isolated", "install", "--profile", "grading", "--user")
        self.run("nbgrader", "generate_assignment", "ps1", "--create")

    def run(self, program: str, *arguments: str) -> str:
        command = [sys.executable, f"{BIN}/{program}", *arguments]
        done = subprocess.run(
            command, cwd=self.folder, env=self.environment, capture_output=True, text=True, timeout=100
        )
        assert done.returncode == 0, done.stderr
        return done.stderr

    def submit(self, who: str, double: str, total: str) -> None:
        """With a wish for a kernel that has no sandbox, and more points for each test."""
        shutil.copytree(self.folder / "release" / "ps1", self.folder / "submitted" / who / "ps1")
        path = self.folder / "submitted" / who / "ps1" / "p1.ipynb"
        notebook = nbformat.read(path, 4)
        wanted = ("gradebook.db", "nbgrader_config.py", "source/ps1/p1.ipynb", "submitted/honest/ps1/p1.ipynb")
        look = LOOK.format(wanted=[str(self.folder / name) for name in wanted] + ["../../honest", "/etc/shadow"])
        notebook.cells[0].source, notebook.cells[2].source = double.replace("LOOK", look), total
        notebook.cells[1].metadata.nbgrader.points = 100
        notebook.metadata.kernelspec = {"name": "python3", "display_name": "Python 3", "language": "python"}
        nbformat.write(notebook, path)

    def graded(self, who: str) -> Any:
        return nbformat.read(self.folder / "autograded" / who / "ps1" / "p1.ipynb", 4)


def cell(name: str, points: int, source: str) -> Any:
    about: dict[str, Any] = {"grade_id": name, "schema_version": 3, "cell_type": "code", "task": False}
    about |= {"grade": True, "solution": False, "locked": True, "points": points} if points else {
        "grade": False, "solution": True, "locked": False,
    }  # fmt: skip
    return new_code_cell(source, metadata={"nbgrader": about})


@pytest.fixture(scope="module")
def course(homes: Callable[[], Path]) -> Course:
    return Course(homes())


def test_the_honest_the_broken_the_thief_and_the_greedy_get_what_they_have_earned(course: Course) -> None:
    said = grade(course, "honest", "broken", "thief", "greedy")

    assert errors(course, "honest") == ""
    assert "NameError" in errors(course, "broken")
    # Why, in the notebook that goes back to a student, and in the teacher's terminal.
    assert "more than the 384 MiB of memory" in errors(course, "greedy")
    assert "more than the 384 MiB of memory" in said
    seen = course.graded("thief").cells[0].outputs[0].text
    assert "reached" not in seen
    assert seen.count("absent") == 7
    assert "variables []" in seen


@pytest.mark.thorough
def test_so_do_the_forger_the_endless_the_many_and_the_quitter(course: Course) -> None:
    grade(course, "forger", "endless", "many", "quitter")

    assert (course.folder / "autograded" / "forger" / "ps1" / "data.txt").read_text() == "1\n2\n3\n"
    assert "No reply from kernel before timeout" in errors(course, "endless")
    assert "capabilities.threads" in errors(course, "many")
    assert "KernelDied" in errors(course, "quitter")


def grade(course: Course, *whom: str) -> str:
    """Submit, grade and see the scores; what nbgrader said is returned."""
    for who in whom:
        course.submit(who, *SUBMITTED[who][:2])
    said = course.run("nbgrader", "autograde", "ps1")
    course.run("nbgrader", "export")
    with (course.folder / "grades.csv").open() as file:
        scores = {row["student_id"]: float(row["score"]) for row in csv.DictReader(file)}
    assert {who: scores[who] for who in whom} == {who: SUBMITTED[who][2] for who in whom}
    return said


def errors(course: Course, who: str) -> str:
    outputs = [output for one in course.graded(who).cells for output in one.get("outputs", ())]
    return "\n".join("".join([one.ename, *one.traceback]) for one in outputs if one.output_type == "error")
