"""The libraries of every day work in the default profile: all of them, one after the other, in one real kernel."""

from __future__ import annotations

import hashlib
from typing import Any

from tests.kernel.conftest import Server

CELLS = {
    "numpy": (
        (
            "import numpy as np\n"
            "a = np.random.default_rng(0).random((300, 300))\n"
            "print(np.allclose(a @ np.linalg.inv(a), np.eye(300)), np.fft.fft(a[0]).shape)"
        ),
        "True (300,)",
    ),
    "pandas": (
        (
            "import pandas as pd\n"
            "pd.DataFrame({'k': [1, 2, 1], 'v': [1., 2., 3.]}).to_csv('d.csv')\n"
            "print(pd.read_csv('d.csv').groupby('k').v.sum().tolist())"
        ),
        "[4.0, 2.0]",
    ),
    "scipy": (
        (
            "import scipy.optimize, scipy.linalg\n"
            "print(round(scipy.optimize.brentq(lambda x: x * x - 2, 0, 2), 6), len(scipy.linalg.eigvalsh(a + a.T)))"
        ),
        "1.414214 300",
    ),
    "scikit-learn, on two processes": (
        (
            "from sklearn.datasets import load_iris\n"
            "from sklearn.ensemble import RandomForestClassifier\n"
            "from sklearn.model_selection import cross_val_score\n"
            "flowers = load_iris(return_X_y=True)\n"
            "print(cross_val_score(RandomForestClassifier(10), *flowers, cv=2, n_jobs=2).mean() > 0.8)"
        ),
        "True",
    ),
    "sqlite3, in the workspace": (
        (
            "import sqlite3\n"
            "with sqlite3.connect('x.db') as c:\n"
            "    c.execute('pragma journal_mode=wal')\n"
            "    c.execute('create table t(x)')\n"
            "    c.execute('insert into t values (7)')\n"
            "print(c.execute('select x from t').fetchall())"
        ),
        "[(7,)]",
    ),
    "multiprocessing by fork": (
        "import multiprocessing\nwith multiprocessing.get_context('fork').Pool(2) as p: print(p.map(abs, [-1, -2]))",
        "[1, 2]",
    ),
    "multiprocessing by spawn": (
        "with multiprocessing.get_context('spawn').Pool(2) as p: print(p.map(abs, [-1, -2]))",
        "[1, 2]",
    ),
    "multiprocessing by fork server": (
        "with multiprocessing.get_context('forkserver').Pool(2) as p: print(p.map(abs, [-1, -2]))",
        "[1, 2]",
    ),
    "shared memory": (
        (
            "from multiprocessing.shared_memory import SharedMemory\n"
            "s = SharedMemory(create=True, size=1 << 20); s.buf[0] = 7\n"
            "t = SharedMemory(s.name); print(t.buf[0]); t.close(); s.close(); s.unlink()"
        ),
        "7",
    ),
    "subprocess": (
        (
            "import subprocess, sys\n"
            "print(subprocess.run(['sh', '-c', 'echo $((6 * 7)) | cat'], capture_output=True, text=True).stdout,\n"
            "      subprocess.run([sys.executable, '-c', 'print(1)'], capture_output=True, text=True).stdout, sep='')"
        ),
        "42\n1",
    ),
}


def test_the_libraries_of_every_day_work_in_one_kernel(server: Server) -> None:
    server.start()
    for name, (code, answer) in CELLS.items():
        assert server.text(code) == answer, name
    assert "ipykernel " in server.text("!pip list 2>&1", timeout=120)


def heard(server: Server, code: str, **more: Any) -> list[list[Any]]:
    """All that a cell says."""
    content = {"code": code, "silent": False, "store_history": True, "user_expressions": {}, "allow_stdin": False}
    answer = server.ask("send", name="kernel", type="execute_request", content=content, **more)
    assert "error" not in answer, answer
    return answer["heard"]  # type: ignore[no-any-return]


def test_a_plot_is_shown_in_the_notebook(server: Server) -> None:
    server.start()
    said = heard(server, "import matplotlib.pyplot as plt\nplt.plot([1, 3, 2])\nplt.title('title')\nplt.show()")
    shown = [content["data"] for kind, content, _ in said if kind == "display_data"]
    assert [sorted(data) for data in shown] == [["image/png", "text/plain"]], said
    assert shown[0]["image/png"].startswith("iVBORw0KGgo")  # the signature of PNG


def test_a_widget_and_its_front_end_follow_each_other(server: Server) -> None:
    """The kernel opens a comm; a client moves the slider; the kernel's callback runs, and its answer comes back."""
    server.start()
    said = heard(
        server,
        "import ipywidgets\n"
        "slider, label = ipywidgets.IntSlider(value=3), ipywidgets.Label('')\n"
        "slider.observe(lambda change: setattr(label, 'value', f\"now {change['new']}\"), 'value')\n"
        "display(slider)",
    )
    opened = {c["data"]["state"].get("_model_name"): c["comm_id"] for kind, c, _ in said if kind == "comm_open"}
    shown = next(content["data"] for kind, content, _ in said if kind == "display_data")
    assert shown["application/vnd.jupyter.widget-view+json"]["model_id"] == opened["IntSliderModel"]
    moved = {
        "comm_id": opened["IntSliderModel"],
        "data": {"method": "update", "state": {"value": 9}, "buffer_paths": []},
    }
    said = server.ask("send", name="kernel", type="comm_msg", content=moved)["heard"]
    told = [c["data"]["state"] for kind, c, _ in said if kind == "comm_msg" and c["comm_id"] == opened["LabelModel"]]
    assert {"value": "now 9"} in told, said
    assert server.text("print(slider.value)") == "9"


def test_200_megabytes_in_one_cell_arrive_whole(server: Server) -> None:
    """As text, and as two binary buffers of one message; another kernel of the server answers right after."""
    server.start()
    server.start("other")
    said = heard(server, "print('0123456789abcde\\n' * 12_500_000, end='')", timeout=100)
    sizes = [content["text"] for kind, content, _ in said if kind == "stream"]
    assert sizes == [[200_000_000, hashlib.sha256(b"0123456789abcde\n" * 12_500_000).hexdigest()]]
    code = (
        "import comm\ncomm.create_comm(target_name='x', buffers=[b'01234567' * 12_500_000, b'abcdefgh' * 12_500_000])"
    )
    said = heard(server, code, timeout=100)
    buffers = [digests for kind, _, digests in said if kind == "comm_open"]
    wanted = [[100_000_000, hashlib.sha256(one * 12_500_000).hexdigest()] for one in (b"01234567", b"abcdefgh")]
    assert buffers == [wanted]
    assert server.text("print('well')") == "well"
    assert server.text("print('well')", "other") == "well"
