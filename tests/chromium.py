"""A headless Chromium, driven over its DevTools pipe with the standard library alone."""

import base64
import json
import os
import select
import shutil
import signal
import time
from pathlib import Path

NAMES = ("chromium", "chromium-browser", "google-chrome")
# A first start on a loaded machine takes seconds; nothing here takes longer than this.
PATIENCE = 60.0
FLAGS = """
--headless --disable-gpu --disable-quic --no-first-run --disable-background-networking --disable-component-update
--disable-sync --disable-default-apps --disable-dev-shm-usage --hide-scrollbars --remote-debugging-pipe
""".split()


def find():
    """Return the browser's path, or None where there is none."""
    return next((found for found in map(shutil.which, NAMES) if found), None)


class Browser:
    """A browser process with an empty profile; `open` gives pages. Close it, or use it in a with statement."""

    def __init__(self, profile):
        to_browser, commands = os.pipe()
        answers, from_browser = os.pipe()
        self.commands, self.answers = commands, answers
        sandbox = ["--no-sandbox"] if os.geteuid() == 0 else []
        arguments = [find(), *FLAGS, *sandbox, f"--user-data-dir={profile}", "about:blank"]
        # Moved out of the way first: the pipe's ends may themselves be numbers 3 or 4.
        held = [os.dup2(end, 200 + place, inheritable=False) for place, end in enumerate((to_browser, from_browser))]
        null = os.open(os.devnull, os.O_RDWR)
        actions = [(os.POSIX_SPAWN_DUP2, null, number) for number in (0, 1, 2)]
        actions += [(os.POSIX_SPAWN_DUP2, held[0], 3), (os.POSIX_SPAWN_DUP2, held[1], 4)]
        self.pid = os.posix_spawn(arguments[0], arguments, os.environ, file_actions=actions, setpgroup=0)
        for end in (to_browser, from_browser, null, *held):
            os.close(end)
        self.number, self.read, self.events = 0, b"", []

    def __enter__(self):
        return self

    def __exit__(self, *_):
        os.close(self.commands)
        os.close(self.answers)
        # The group is the browser and what it started.
        os.killpg(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)

    def call(self, method, session=None, **given):
        """Return the result of a DevTools method; its events are kept in `events`."""
        self.number += 1
        message = {"id": self.number, "method": method, "params": given}
        if session is not None:
            message["sessionId"] = session
        os.write(self.commands, json.dumps(message).encode() + b"\0")
        answer = self.wait(lambda one: one.get("id") == message["id"], method)
        assert "error" not in answer, f"{method}: {answer['error']}"
        return answer["result"]

    def wait(self, is_wanted, what):
        """Return the first message, read from now on, that is wanted."""
        deadline = time.monotonic() + PATIENCE
        while True:
            while b"\0" in self.read:
                line, self.read = self.read.split(b"\0", 1)
                message = json.loads(line)
                if "method" in message:
                    self.events.append(message)
                if is_wanted(message):
                    return message
            ready, _, _ = select.select([self.answers], [], [], max(0.0, deadline - time.monotonic()))
            assert ready, f"the browser did not answer {what} within {PATIENCE:.0f} s"
            piece = os.read(self.answers, 1 << 20)
            assert piece, f"the browser ended before it answered {what}"
            self.read += piece

    def open(self, file, *, width=1440, height=1000, scheme="light", media="screen", scripts=True):
        """Return a Page that has loaded a local file."""
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        page = Page(self, session, target)
        for domain in ("Page", "Runtime", "Log", "Network"):
            page.call(f"{domain}.enable")
        page.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 800
        )
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        page.call("Emulation.setEmulatedMedia", media=media, features=features)
        page.call("Emulation.setScriptExecutionDisabled", value=not scripts)
        self.events.clear()
        page.call("Page.navigate", url=Path(file).resolve().as_uri())
        if not any(one["method"] == "Page.loadEventFired" for one in self.events):
            self.wait(lambda one: one.get("method") == "Page.loadEventFired", "the page's load")
        return page


class Page:
    """A loaded page."""

    def __init__(self, browser, session, target):
        self.browser, self.session, self.target = browser, session, target

    def call(self, method, **given):
        return self.browser.call(method, self.session, **given)

    def value(self, expression):
        """Return what a JavaScript expression gives."""
        answer = self.call("Runtime.evaluate", expression=expression, returnByValue=True)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def requests(self):
        """Return the addresses that the page asked for."""
        events = self.events("Network.requestWillBeSent")
        return [one["request"]["url"] for one in events]

    def complaints(self):
        """Return what the console or an error of the page said."""
        kinds = ("Runtime.consoleAPICalled", "Runtime.exceptionThrown", "Log.entryAdded")
        return [one for kind in kinds for one in self.events(kind)]

    def events(self, method):
        mine = (one for one in self.browser.events if one.get("sessionId") == self.session)
        return [one["params"] for one in mine if one["method"] == method]

    def pdf(self):
        return base64.b64decode(self.call("Page.printToPDF", printBackground=True)["data"])

    def screenshot(self, file):
        """Write the whole page as a PNG."""
        size = self.call("Page.getLayoutMetrics")["cssContentSize"]
        clip = {"x": 0, "y": 0, "width": size["width"], "height": size["height"], "scale": 1}
        image = self.call("Page.captureScreenshot", captureBeyondViewport=True, clip=clip)["data"]
        Path(file).write_bytes(base64.b64decode(image))

    def close(self):
        self.browser.call("Target.closeTarget", targetId=self.target)
