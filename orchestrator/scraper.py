"""A scraper in a process of its own, as Prometheus is one: it fetches a page again and again.

When its standard input ends it prints what that came to, as JSON.

Started as `python -m orchestrator.scraper URL EVERY_S`.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import statistics
import sys
import time
import urllib.request

TIMEOUT_S = 5.0


def scrape(url: str, every_s: float) -> dict[str, float]:
    """Fetch `url` every so many seconds; how often it came and failed, its median ms, its most bytes."""
    taken_ms, most_bytes, failed = [], 0, 0
    # No proxy of the environment: the page is this machine's own.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    due_s = time.monotonic()
    while not select.select([sys.stdin], [], [], max(due_s - time.monotonic(), 0))[0]:
        began_s = time.monotonic()
        try:
            with opener.open(url, timeout=TIMEOUT_S) as page:
                most_bytes = max(most_bytes, len(page.read()))
        except OSError:
            failed += 1
        else:
            taken_ms.append((time.monotonic() - began_s) * 1e3)
        due_s = max(due_s + every_s, time.monotonic())  # none is made up for
    median_ms = round(statistics.median(taken_ms), 2) if taken_ms else 0.0
    came = {"scrapes": len(taken_ms), "failed_scrapes": failed}
    return {**came, "scrape_ms": median_ms, "scrape_bytes": most_bytes}


if __name__ == "__main__":
    told = json.dumps(scrape(sys.argv[1], float(sys.argv[2])))
    with contextlib.suppress(BrokenPipeError):  # who started this was interrupted
        os.write(1, told.encode() + b"\n")
