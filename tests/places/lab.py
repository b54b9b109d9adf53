"""A person at JupyterLab, in Debian's Chromium. No packet of the browser's leaves the machine."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from playwright.sync_api import Browser, Locator, Page, expect, sync_playwright

from tests.places.server import TOKEN, Server

CHROMIUM = "/usr/bin/chromium"
FLAGS = [
    "--no-sandbox",  # Chromium's own refuses to start as root
    "--disable-dev-shm-usage",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-quic",
    "--no-first-run",
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
]
PATIENCE = 45_000  # milliseconds: cores are shared, and a page is large
# The indicator alone says ready too early, and JupyterLab drops what is run before its kernel is connected.
READY = """() => {
    const widget = window.jupyterapp && window.jupyterapp.shell.currentWidget;
    const session = widget && widget.sessionContext;
    const kernel = session && session.session && session.session.kernel;
    return kernel && session.isReady && kernel.connectionStatus === "connected" && kernel.status === "idle";
}"""


@contextmanager
def chromium() -> Iterator[Browser]:
    expect.set_options(timeout=PATIENCE)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        try:
            yield browser
        finally:
            browser.close()


# No news from elsewhere, no cell leaves the page because it has scrolled out of sight, and completion is waited for.
SETTINGS = {
    "completer-extension/manager": {"providerTimeout": PATIENCE},
    "apputils-extension/notification": {"fetchNews": "false", "checkForUpdates": False},
    "notebook-extension/tracker": {"windowingMode": "none"},
}


def settle(home: Path) -> None:
    """The settings of whoever lives there."""
    for name, values in SETTINGS.items():
        path = home / ".jupyter/lab/user-settings/@jupyterlab" / f"{name}.jupyterlab-settings"
        path.parent.mkdir(parents=True)
        path.write_text(json.dumps(values))


class Lab:
    """One browser tab."""

    def __init__(self, browser: Browser, server: Server, pictures: Path) -> None:
        self.server, self.pictures = server, pictures
        self.context = browser.new_context(viewport={"width": 1100, "height": 760})
        self.page: Page
        self.open("lab?reset&")

    def open(self, path: str) -> None:
        """A new tab."""
        self.page = self.context.new_page()
        self.page.set_default_timeout(PATIENCE)
        self.page.goto(self.server.url(f"{path}token={TOKEN}"))
        self.page.wait_for_function("() => window.jupyterapp && window.jupyterapp.shell.layoutModified !== undefined")

    def card(self, name: str) -> Locator:
        """A card of the launcher's notebooks."""
        return self.page.locator(f".jp-LauncherCard[data-category=Notebook][title^='{name}']")

    def notebook(self, name: str = "Isolated Python") -> None:
        """A new notebook, by a click on its card."""
        self.card(name).click()
        self.ready()

    def ready(self) -> None:
        self.page.wait_for_function(READY)

    def cells(self) -> Locator:
        return self.page.locator(".jp-NotebookPanel:not(.lm-mod-hidden) .jp-Notebook .jp-Cell")

    def write(self, code: str) -> Locator:
        """Write into the last cell, in place of what it says."""
        cell = self.cells().nth(self.cells().count() - 1)
        cell.locator(".cm-content").click()
        self.page.keyboard.press("Control+a")
        self.page.keyboard.insert_text(code)
        return cell

    def begin(self, code: str) -> Locator:
        """Run a cell, and do not wait for its end."""
        cell = self.write(code)
        self.page.keyboard.press("Shift+Enter")
        return cell

    def run(self, code: str) -> Locator:
        """Run a cell to its end."""
        cell = self.begin(code)
        self.ended(cell)
        return cell

    def ended(self, cell: Locator) -> None:
        expect(cell.locator(".jp-InputPrompt")).to_have_text(re.compile(r"\[\d+\]:"))

    def command(self, name: str) -> None:
        """What a menu or a shortcut would do."""
        self.page.evaluate("name => { window.jupyterapp.commands.execute(name); }", name)

    def accept(self, label: str) -> None:
        """The button of a dialog."""
        self.page.locator(".jp-Dialog button", has_text=re.compile(f"^{label}$")).click()

    def picture(self, name: str) -> Path:
        path = self.pictures / f"{name}.png"
        self.page.screenshot(path=path)
        return path

    def close(self) -> None:
        self.context.close()
