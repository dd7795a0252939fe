"""Files of the user's code that look like keys: a tree is published, so none goes into one."""

from __future__ import annotations

from fnmatch import fnmatchcase
from pathlib import Path

from orchestrator.submission.copying import CHUNK_BYTES, open_plain

# Names that ssh-keygen, OpenSSL and the clouds' tools give to keys.
KEY_NAMES = frozenset(
    ("id_rsa*", "id_dsa*", "id_ecdsa*", "id_ed25519*", "*.pem", "*.key", "*.p12", "*.pfx", "credentials*")
)
KEY_WORDS = b"PRIVATE KEY"  # in the first line of a key of PEM (RFC 7468), OpenSSH or PGP


def looks_like_key(path: Path) -> str | None:
    """Why a plain file looks like a key, None if it does not."""
    if any(fnmatchcase(path.name.lower(), pattern) for pattern in KEY_NAMES):
        return "has a key's name"
    with open_plain(path) as file:
        before = b""
        while chunk := file.read(CHUNK_BYTES):
            if KEY_WORDS in before + chunk:
                return f'has the words "{KEY_WORDS.decode()}" in it'
            before = chunk[1 - len(KEY_WORDS) :]
    return None
