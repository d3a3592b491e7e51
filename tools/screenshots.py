"""Take the dashboard screenshots in docs/images while the example runs on real servers.

    .venv/bin/python -m tools.screenshots [--minutes 5]

Needs the programs that `make test` installs: a Redis or Valkey, SeaweedFS, Chromium.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

from playwright.sync_api import Browser, sync_playwright

from tests.support.processes import end_process, wait_until
from tests.support.s3_server import BUCKET, KEY, SECRET, s3_server
from tests.support.servers import redis_server

ROOT = Path(__file__).resolve().parent.parent
IMAGES = ROOT / "docs" / "images"
WIDE = {"width": 1280, "height": 800}
PHONE = {"width": 390, "height": 780}
PICTURES = {
    "overview": ("", WIDE, "light"),
    "task": ("task?name=worker_example.tasks.features", WIDE, "light"),
    "values": ("values", WIDE, "dark"),
    "workers": ("workers", WIDE, "light"),
    "phone": ("", PHONE, "dark"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=5, help="how long the example works")
    minutes = parser.parse_args().minutes
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        redis = stack.enter_context(redis_server())
        s3 = stack.enter_context(s3_server())
        base = redis.url.rpartition("/")[0]
        environment = {
            **os.environ,
            "REDIS_URL": base,
            "OFFLOAD_STORE": f"{base}/2 s3://{BUCKET}/flights?endpoint_url={s3.endpoint}"
            "&region=us-east-1",
            "AWS_ACCESS_KEY_ID": KEY,
            "AWS_SECRET_ACCESS_KEY": SECRET,
            "C_FORCE_ROOT": "1",
            "PYTHONPATH": str(ROOT),
            "PYTHONUNBUFFERED": "1",
        }

        def start(name: str, *words: str) -> Path:
            log = folder / f"{name}.log"
            with log.open("w") as output:
                process = subprocess.Popen(
                    [sys.executable, "-m", *words],
                    cwd=ROOT,
                    env=environment,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                )
            stack.callback(end_process, process, signal.SIGTERM)
            return log

        celery = ("celery", "-A", "worker_example.app")
        start("worker", *celery, "worker", "--concurrency", "2")
        producer = start("producer", "worker_example.producer", "--rows", "60000", "--every", "5")
        said = start("dashboard", *celery, "offload", "dashboard", "--port", "0")
        wait_until(lambda: " is open" in said.read_text(), "the dashboard is open", 60)
        wait_until(lambda: "chord:" in producer.read_text(), "the example works", 120)
        time.sleep(60 * minutes)
        url = said.read_text().split(" is open")[0].split()[-1]
        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(
                executable_path=shutil.which("chromium"), args=["--no-sandbox"]
            )
            for name in PICTURES:
                take(browser, url, name)


def take(browser: Browser, url: str, name: str) -> None:
    path, size, scheme = PICTURES[name]
    page = browser.new_page(viewport=size, color_scheme=scheme)
    page.goto(url + path)
    page.wait_for_load_state("networkidle")
    page.wait_for_timeout(12_000)  # workers have been asked, and the page was updated
    page.screenshot(path=IMAGES / f"{name}.png")
    page.close()


if __name__ == "__main__":
    main()
