"""The files that the power client leaves: found, compared with our own logs, and kept in the test's folder.

OUT/<session>/{power/..., ranging/..., run_1/...}    (ptd_client_server/README.md of mlcommons/power-dev)
"""

from __future__ import annotations

import filecmp
import json
from pathlib import Path

from orchestrator.paths import DETAIL, SUMMARY, write_atomically
from orchestrator.plain_files import open_plain
from orchestrator.submission.layout import POWER_FILES, RUN, SPL

POWER, RANGING = "power", "ranging"
CLIENT_JSON, SERVER_JSON = "client.json", "server.json"
CLIENT_SAID = "power_client.txt"  # what the client printed
CLIENT_OUT = "power_client"  # what it left, where that is no whole measurement
PTD_OUT = "ptd_out.txt"  # PTDaemon's own mean and its uncertainty; clients of old have none
JSON_BYTES = 16 << 20  # a real one has 10 kB
WORDS_BYTES, WORDS_LINES, WORDS_LETTERS = 4096, 3, 300


class FilesError(Exception):
    """The client's files are not those of a whole measurement; the text says which and why."""


def take_over(out: Path, folder: Path) -> None:
    """Copy the client's files from `out` to `folder`, whose runs' logs must be the ones that it measured."""
    session = _session(out)
    for theirs, ours in ((session / RANGING, folder / RANGING), (session / RUN, folder)):
        for name in (SUMMARY, DETAIL):
            if not _same(theirs / name, ours / name):
                raise FilesError(
                    f"{name} of {theirs.name} is not the one that the run wrote ({theirs / name})"
                )
    wanted = {session / POWER / name: folder / POWER / name for name in POWER_FILES}
    wanted |= {session / RANGING / SPL: folder / RANGING / SPL, session / RUN / SPL: folder / SPL}
    if missing := [str(path.relative_to(out)) for path in wanted if not _is_file(path)]:
        raise FilesError(f"the power client left no {', '.join(missing)}")
    if _is_file(session / RUN / PTD_OUT):
        wanted[session / RUN / PTD_OUT] = folder / PTD_OUT
    (folder / POWER).mkdir(exist_ok=True)
    for theirs, ours in wanted.items():
        write_atomically(ours, theirs.read_bytes())


def _session(out: Path) -> Path:
    """The one folder of a session; a client without time stamps in its paths puts all into `out` itself."""
    found = [path for path in (out, *sorted(out.iterdir())) if (path / POWER).is_dir()]
    if len(found) != 1:
        raise FilesError(f"the power client left {len(found) or 'no'} sessions' files")
    return found[0]


def _is_file(path: Path) -> bool:
    return path.is_file() and not path.is_symlink()


def _same(theirs: Path, ours: Path) -> bool:
    return _is_file(theirs) and _is_file(ours) and filecmp.cmp(theirs, ours, shallow=False)


def read_json(path: Path) -> dict[str, object] | None:
    """A JSON object of the client's or the server's; None for anything else. OSError if it cannot be read."""
    with open_plain(path) as file:
        raw = file.read(JSON_BYTES + 1)
    if len(raw) > JSON_BYTES:
        return None
    try:
        body = json.loads(raw)
    except (ValueError, RecursionError):
        return None
    return body if isinstance(body, dict) else None


def meter_of(power: Path) -> str | None:
    """The meter and PTDaemon's version, from the reply to Identify in the server's json; None: not said.

    The reply: `YokogawaWT330E,1000,...,version=1.9.2-e8c7a49a-20201208,OS=...` (published results of v1.0).
    """
    try:
        body = read_json(power / SERVER_JSON) or {}
    except OSError:
        return None
    messages = body.get("ptd_messages")
    for message in messages if isinstance(messages, list) else []:
        if isinstance(message, dict) and message.get("cmd") == "Identify":
            model, *rest = _printable(str(message.get("reply"))).split(",")
            versions = [text.removeprefix("version=") for text in rest if text.startswith("version=")]
            return ", version ".join([model, *versions[:1]])
    return None


def last_words(folder: Path) -> str:
    """The last lines that the client printed, as one line."""
    with open(folder / CLIENT_SAID, "rb") as file:
        file.seek(0, 2)
        file.seek(max(file.tell() - WORDS_BYTES, 0))
        lines = [_printable(line) for line in file.read().decode(errors="replace").splitlines()]
    return " | ".join([line for line in lines if line][-WORDS_LINES:]) or "it said nothing"


def _printable(text: str) -> str:
    return "".join(letter if letter.isprintable() else " " for letter in text[:WORDS_LETTERS]).strip()
