"""Run a command on a terminal of its own and read its screen."""

from __future__ import annotations

import fcntl
import os
import pty
import signal
import struct
import subprocess
import termios
import threading

import pyte

from tests.support.processes import end_process, wait_until

_WITHOUT = {"NO_COLOR", "FORCE_COLOR", "COLUMNS", "LINES", "TTY_COMPATIBLE", "TTY_INTERACTIVE"}


def environment(env, **more):
    """Return *env* without variables that describe a terminal, except those in *more*."""
    kept = {name: value for name, value in env.items() if name not in _WITHOUT}
    return {**kept, "TERM": "xterm-256color", **more}


class Terminal:
    """A command, *argv*, on a screen of *columns* by *lines*."""

    def __init__(self, argv, *, cwd, env, columns=100, lines=40):
        self._screen = pyte.Screen(columns, lines)
        self._stream = pyte.ByteStream(self._screen)
        self._lock = threading.Lock()
        self.raw = b""
        self._master, slave = pty.openpty()
        fcntl.ioctl(self._master, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))
        self.process = subprocess.Popen(
            argv,
            cwd=cwd,
            env=env,
            stdin=slave,
            stdout=slave,
            stderr=slave,
            start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
        )
        self._slave = slave  # kept open, so that the last output isn't lost
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        end_process(self.process, signal.SIGKILL)
        os.close(self._slave)
        self._reader.join(10)
        os.close(self._master)

    def _read(self):
        while True:
            try:
                some = os.read(self._master, 65536)
            except OSError:  # the other end is closed
                return
            with self._lock:
                self.raw += some
                self._stream.feed(some)

    @property
    def lines(self):
        """The screen, line by line."""
        with self._lock:
            return [line.rstrip() for line in self._screen.display]

    @property
    def text(self):
        return "\n".join(self.lines)

    def wait(self, code=0):
        """Wait for the command to exit with *code* and for its output; return its screen."""
        assert self.process.wait(60) == code, self.text
        os.write(self._slave, b"\x1b]0;end\x07")  # a title, which isn't displayed
        wait_until(lambda: b"]0;end" in self.raw, "the output was read")
        return self.text
