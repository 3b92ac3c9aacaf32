"""Drives a headless Chromium by its debugging pipe: real keys and clicks, and what a page shows."""

import base64
import contextlib
import itertools
import json
import os
import select
import shutil
import subprocess
import time

BROWSER = next(
    (
        there
        for name in ("chromium", "chromium-browser", "google-chrome")
        if (there := shutil.which(name))
    ),
    None,
)
CODES = {"ArrowLeft": 37, "ArrowUp": 38, "ArrowRight": 39, "ArrowDown": 40, "Tab": 9}


class Browser:
    """One page of a fresh profile."""

    def __init__(self, profile, width=1280, height=800):
        out, self._send = os.pipe()
        self._read, back = os.pipe()
        flags = [
            *("--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-sync"),
            *("--disable-background-networking", "--disable-component-update", "--disable-quic"),
            *("--remote-debugging-pipe", "--hide-scrollbars", f"--user-data-dir={profile}"),
            f"--window-size={width},{height}",
        ]

        def pipes():
            # Through numbers that are neither: dup2 to itself would leave it closed on exec.
            a, b = os.dup(out), os.dup(back)
            os.dup2(a, 3)
            os.dup2(b, 4)

        self._process = subprocess.Popen(
            [BROWSER, *flags, "about:blank"],
            pass_fds=(3, 4, out, back), preexec_fn=pipes,
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        os.close(out)
        os.close(back)
        self._numbers, self._rest, self.events = itertools.count(1), b"", []
        targets = self._call("Target.getTargets")["targetInfos"]
        page = next(one["targetId"] for one in targets if one["type"] == "page")
        attached = self._call("Target.attachToTarget", targetId=page, flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self._call(f"{domain}.enable")
        self.size(width, height)

    _session = None

    def _call(self, method, **parameters):
        number = next(self._numbers)
        message = {"id": number, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._send, json.dumps(message).encode() + b"\0")
        until = time.monotonic() + 60
        while True:
            answer = self._next(until)
            if answer.get("id") == number:
                assert "error" not in answer, answer
                return answer["result"]
            self.events.append(answer)

    def _next(self, until):
        while b"\0" not in self._rest:
            ready, _, _ = select.select([self._read], [], [], max(0, until - time.monotonic()))
            assert ready, "the browser does not answer"
            data = os.read(self._read, 1 << 20)
            assert data, "the browser ended"
            self._rest += data
        message, self._rest = self._rest.split(b"\0", 1)
        return json.loads(message)

    def size(self, width, height):
        self._call(
            "Emulation.setDeviceMetricsOverride",
            width=width, height=height, deviceScaleFactor=1, mobile=width < 600,
        )  # fmt: skip

    def open(self, address):
        """Leave what is there, forget what it did, and load an address."""
        self._call("Page.navigate", url="about:blank")
        self.events.clear()
        self._call("Page.navigate", url=address)
        self.wait("document.readyState === 'complete'")

    def run(self, script):
        """The value of an expression in the page."""
        result = self._call(
            "Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True
        )
        assert "exceptionDetails" not in result, result
        return result["result"].get("value")

    def wait(self, script, seconds=90):
        """Until an expression is true in the page."""
        until = time.monotonic() + seconds
        while not self.run(script):
            assert time.monotonic() < until, f"never true: {script}"
            time.sleep(0.01)

    def press(self, key):
        facts = {"key": key, "windowsVirtualKeyCode": CODES.get(key, ord(key[0].upper()))}
        text = {"text": key} if len(key) == 1 else {}
        self._call("Input.dispatchKeyEvent", type="keyDown", **facts, **text)
        self._call("Input.dispatchKeyEvent", type="keyUp", **facts)

    def complaints(self):
        """What the browser's console shows: errors of scripts, files, of the policy."""
        kinds = {"Log.entryAdded", "Runtime.consoleAPICalled", "Runtime.exceptionThrown"}
        return [one["params"] for one in self.events if one.get("method") in kinds]

    def addresses(self):
        """All that the page asked for."""
        asked = [one for one in self.events if one.get("method") == "Network.requestWillBeSent"]
        return [one["params"]["request"]["url"] for one in asked]

    def shot(self, path):
        path.write_bytes(base64.b64decode(self._call("Page.captureScreenshot")["data"]))

    def close(self):
        with contextlib.suppress(OSError, AssertionError):
            self._session = None
            self._call("Browser.close")
        for one in (self._send, self._read):
            os.close(one)
        self._process.kill()
        self._process.wait()
