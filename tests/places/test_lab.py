"""JupyterLab in a browser: what people do all day works in the sandbox, and what goes wrong is said where they look."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, expect

from tests.places.conftest import SMALL, locked
from tests.places.lab import Lab, chromium, settle
from tests.places.server import Server

REFUSED = {
    "argv": ["python", "-m", "isolated_python.launcher.argv", "-f", "{connection_file}"],
    "display_name": "Refused",
    "language": "python",
    "metadata": {"kernel_provisioner": {"provisioner_name": "isolated-python", "config": {"profile": "standart"}}},
}


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as found:
        yield found


@pytest.fixture(scope="module")
def server(start: Callable[..., Server], homes: Callable[[], Path]) -> Server:
    home = homes()
    settle(home)
    refused = home / ".local/share/jupyter/kernels/refused"
    refused.mkdir(parents=True)
    (refused / "kernel.json").write_text(json.dumps(REFUSED))
    return start({"IsolatedProvisioner": {"overrides": SMALL}}, "jupyterlab", home=home)


@pytest.fixture
def lab(request: pytest.FixtureRequest, browser: Browser, server: Server) -> Iterator[Lab]:
    """A tab, of which a picture stays in .cache/pictures: how it looked when the test was over."""
    pictures = request.config.rootpath / ".cache" / "pictures"
    pictures.mkdir(parents=True, exist_ok=True)
    lab = Lab(browser, server, pictures)
    yield lab
    lab.picture(request.node.name)
    lab.close()
    for session in server.ask("GET", "api/sessions")[1]:
        server.ask("DELETE", f"api/sessions/{session['id']}")


def test_a_card_with_our_logo_starts_a_notebook_in_the_sandbox(lab: Lab) -> None:
    logo = lab.card("Isolated Python").locator("img, svg").first
    expect(logo).to_be_visible()
    assert logo.evaluate("image => image.tagName !== 'IMG' || image.naturalWidth > 0")
    lab.notebook()
    expect(lab.page.locator(".jp-Toolbar-kernelName")).to_have_text("Isolated Python")

    cell = lab.run("import os; print(os.getcwd(), os.getuid() > 0, os.path.exists('/etc/shadow')); 6 * 7")

    expect(cell.locator(".jp-OutputArea-output").nth(0)).to_have_text(re.compile("workspace True False"))
    expect(cell.locator(".jp-OutputArea-executeResult .jp-OutputArea-output")).to_have_text("42")


def test_a_plot_is_drawn(lab: Lab) -> None:
    lab.notebook()

    cell = lab.run("import matplotlib.pyplot as plt; plt.plot([1, 3, 2]); plt.show()")

    image = cell.locator(".jp-RenderedImage img")
    expect(image).to_be_visible()
    assert image.evaluate("image => image.naturalWidth") > 100


def test_a_widget_talks_with_its_kernel_both_ways(lab: Lab) -> None:
    lab.notebook()
    cell = lab.run("import ipywidgets; slider = ipywidgets.IntSlider(3); slider")
    handle = cell.locator(".widget-slider .noUi-handle")
    expect(cell.locator(".widget-readout")).to_have_text("3")

    handle.focus()
    lab.page.keyboard.press("ArrowRight")
    expect(cell.locator(".widget-readout")).to_have_text("4")
    expect(lab.run("slider.value").locator(".jp-OutputArea-output")).to_have_text("4")

    lab.run("slider.value = 50")
    expect(cell.locator(".widget-readout")).to_have_text("50")


@pytest.mark.thorough
def test_tab_completes_and_shift_tab_explains(lab: Lab) -> None:
    lab.notebook()
    lab.run("def sandboxed_answer():\n    'The docstring of the answer.'\n")

    cell = lab.write("")
    lab.page.keyboard.type("sandboxed_an")
    lab.page.keyboard.press("Tab")
    lab.page.locator(".jp-Completer-item", has_text="sandboxed_answer").click()
    expect(cell.locator(".cm-content")).to_have_text("sandboxed_answer")

    lab.page.keyboard.press("Shift+Tab")
    expect(lab.page.locator(".jp-Tooltip")).to_contain_text("The docstring of the answer.")


@pytest.mark.thorough
def test_input_asks_and_is_answered(lab: Lab) -> None:
    lab.notebook()
    cell = lab.begin("print('hello', input('name? '))")

    cell.locator(".jp-Stdin-input").fill("world")
    lab.page.keyboard.press("Enter")

    lab.ended(cell)
    expect(cell.locator(".jp-OutputArea-output").last).to_have_text("hello world")


@pytest.mark.thorough
def test_an_interrupt_ends_the_cell_and_a_restart_forgets(lab: Lab) -> None:
    lab.notebook()
    lab.run("kept = 1")
    cell = lab.begin("print('begun', flush=True)\nwhile True: pass")
    expect(cell.locator(".jp-OutputArea-output").first).to_have_text("begun")

    lab.command("notebook:interrupt-kernel")
    expect(cell.locator(".jp-OutputArea-output").last).to_contain_text("KeyboardInterrupt")
    lab.ended(cell)
    expect(lab.run("kept").locator(".jp-OutputArea-output")).to_have_text("1")

    lab.command("notebook:restart-kernel")
    lab.accept("Restart")
    expect(lab.page.locator(".jp-Dialog")).to_have_count(0)
    lab.ready()
    expect(lab.run("kept").locator(".jp-OutputArea-output").last).to_contain_text("NameError")


@pytest.mark.thorough
def test_the_debugger_stops_at_a_breakpoint_and_goes_on(lab: Lab) -> None:
    lab.notebook()
    button = lab.page.locator(".jp-DebuggerBugButton")
    expect(button).to_have_attribute("title", "Enable Debugger")
    button.click()
    expect(button).to_have_attribute("aria-pressed", "true")
    cell = lab.write("def double(number):\n    result = 2 * number\n    return result\nprint(double(21))")
    # The gutter's first element only keeps its width; the third line is the fourth.
    cell.locator(".cm-breakpoint-gutter .cm-gutterElement").nth(3).click()
    expect(cell.locator(".cm-breakpoint-icon")).to_have_count(1)

    lab.begin("def double(number):\n    result = 2 * number\n    return result\nprint(double(21))")

    expect(lab.page.locator(".jp-DebuggerCallstack-body")).to_contain_text("double")
    expect(lab.page.locator(".jp-debuggerVariables-local")).to_contain_text("result")
    lab.picture("debugger")
    lab.command("debugger:continue")
    lab.ended(cell)
    expect(cell.locator(".jp-OutputArea-output").last).to_have_text("42")


@pytest.mark.thorough
def test_a_locked_lab_is_as_useful_and_offers_no_terminal(
    start: Callable[..., Server], homes: Callable[[], Path], etc: Path, browser: Browser, lab: Lab
) -> None:
    """Python 3 is in a sandbox too, and the looks that a person chooses are kept."""
    expect(lab.page.locator(".jp-LauncherCard[title*=terminal]")).to_have_count(1)  # the control, not locked
    home = homes()
    settle(home)
    file = etc / "jupyter_server_config.py"
    one = start({}, "jupyterlab", home=home, env=locked(home, etc), configuration=file)
    tab = Lab(browser, one, lab.pictures)
    expect(tab.card("Isolated Python")).to_be_visible()
    expect(tab.page.locator(".jp-LauncherCard[title*=terminal]")).to_have_count(0)
    tab.notebook("Python 3")
    cell = tab.run("import os; print(os.path.exists('/etc/shadow'))")
    expect(cell.locator(".jp-OutputArea-output")).to_have_text("False")
    chosen = home / ".jupyter/lab/user-settings/@jupyterlab/apputils-extension/themes.jupyterlab-settings"
    tab.page.evaluate("() => window.jupyterapp.commands.execute('apputils:change-theme', {theme: 'JupyterLab Dark'})")
    expect(tab.page.locator("body[data-jp-theme-light=false]")).to_have_count(1)
    tab.close()
    assert "JupyterLab Dark" in chosen.read_text()


@pytest.mark.thorough
def test_whoever_closes_the_tab_and_comes_back_finds_the_kernel(lab: Lab, server: Server) -> None:
    lab.notebook()
    lab.run("kept = 'still here'")
    lab.command("docmanager:save")
    path = lab.page.evaluate("() => window.jupyterapp.shell.currentWidget.context.path")
    before = server.ask("GET", "api/kernels")[1][0]["id"]
    lab.page.close()

    lab.open(f"lab/tree/{path}?")
    lab.ready()

    expect(lab.run("kept").locator(".jp-OutputArea-output")).to_have_text("'still here'")
    assert [kernel["id"] for kernel in server.ask("GET", "api/kernels")[1]] == [before]


def test_a_cell_that_takes_all_memory_is_told_so_and_the_notebook_keeps_it(lab: Lab, server: Server) -> None:
    lab.notebook()
    cell = lab.begin("hoard = []\nwhile True: hoard.append(b'x' * (8 << 20))")

    expect(cell.locator(".jp-OutputArea-output").last).to_contain_text("more than the 384 MiB of memory")
    expect(cell.locator(".jp-OutputArea-output").last).to_contain_text("resources.memory")
    lab.accept("Ok")  # the server has started another by then, and says so
    lab.ready()
    expect(lab.run("'works again'").locator(".jp-OutputArea-output")).to_have_text("'works again'")

    path = lab.page.evaluate(
        "async () => { const c = window.jupyterapp.shell.currentWidget.context; await c.save(); return c.path; }"
    )
    saved = json.loads((server.notebooks / path).read_text())
    told = [output for output in saved["cells"][0]["outputs"] if output["output_type"] == "error"]
    assert told[0]["ename"] == "KernelDied"
    assert "more than the 384 MiB of memory" in told[0]["evalue"]


def test_a_start_that_is_refused_says_why_in_the_dialog(lab: Lab) -> None:
    lab.card("Refused").click()

    dialog = lab.page.locator(".jp-Dialog-content")
    expect(dialog).to_contain_text("Error Starting Kernel")
    expect(dialog).to_contain_text(re.compile("there is no profile 'standart'.*did you mean standard"))
