"""Run a prefork worker: python -m benchmarks.worker CONCURRENCY HOSTNAME.

Celery's command line would first import all commands that other packages add.
"""

import sys

from benchmarks.app import app

if __name__ == "__main__":
    concurrency, hostname = sys.argv[1:]
    worker = app.Worker(
        pool="prefork",
        concurrency=int(concurrency),
        hostname=hostname,
        loglevel="WARNING",
        without_gossip=True,
        without_mingle=True,
    )
    worker.start()
    sys.exit(worker.exitcode)
