"""The evidence bundle: a folder with every decision and its proof, chained by hashes, that can be
checked without a server.

    manifest.jsonl   one line a file: name, size, SHA-256, and the chain: the SHA-256 of the
                     line before and of this line's facts
    head.txt         the last link of the chain. The ledger has it, too, where an editor of
                     the folder does not reach
    *.json           the documents, in canonical JSON
    report.html      the same for a person
    head.sig         where a key signs: the Ed25519 signature of the head, base64

`check` finds every changed byte, every added, removed, or renamed file, every moved line, and a
ledger with a broken chain. Somebody who writes a whole new bundle can make all of that anew. So a
check proves something only against a head kept elsewhere (the ledger, the run's artifact), or
against a public key. Without either, `check` says so and fails.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import load_pem_private_key, load_pem_public_key

from exodus.closing.report import render
from exodus.control import ledger
from exodus.errors import OperatorError
from exodus.private_files import private_folder, write_private

_MANIFEST, _HEAD, _SIGNATURE = "manifest.jsonl", "head.txt", "head.sig"
_NEEDED = ("ledger.json", "plan.json", "report.html")
_FIRST = "0" * 64
_CANONICAL = orjson.OPT_SORT_KEYS | orjson.OPT_INDENT_2
Json = dict[str, Any]


def _link(before: str, facts: Json) -> str:
    return hashlib.sha256(
        before.encode() + orjson.dumps(facts, option=orjson.OPT_SORT_KEYS)
    ).hexdigest()


def _facts(name: str, raw: bytes) -> Json:
    return {"file": name, "bytes": len(raw), "sha256": hashlib.sha256(raw).hexdigest()}


def make(
    documents: Mapping[str, object], *, private_key: Path | None = None
) -> tuple[dict[str, bytes], str]:
    """Return a bundle's files by name, signed where a key is given, and its head.

    Raises:
        OperatorError: the key is none.
    """
    signer = None if private_key is None else _private(private_key)
    files = {
        f"{name}.json": orjson.dumps(document, option=_CANONICAL, default=str)
        for name, document in sorted(documents.items())
    }
    files["report.html"] = render(documents).encode()
    chain, lines = _FIRST, []
    for name, raw in files.items():
        facts = _facts(name, raw)
        chain = _link(chain, facts)
        lines.append(orjson.dumps({**facts, "chain": chain}, option=orjson.OPT_SORT_KEYS))
    files[_MANIFEST] = b"\n".join(lines) + b"\n"
    files[_HEAD] = f"{chain}\n".encode()
    if signer is not None:
        files[_SIGNATURE] = base64.b64encode(signer.sign(chain.encode())) + b"\n"
    return files, chain


def put(folder: Path, files: Mapping[str, bytes]) -> None:
    """Write a bundle's files into a new folder.

    Raises:
        OperatorError: the folder holds something already, or a name is no file's.
    """
    if folder.exists() and any(folder.iterdir()):
        raise OperatorError(
            f"{folder} is not empty",
            why="a bundle is written once and never changed",
            next_step="name a new folder",
        )
    if bad := [name for name in files if Path(name).name != name]:
        raise OperatorError(
            f"{bad[0]!r} is not the name of a bundle's file",
            why="whoever may write to the control store can put any name there",
            next_step="find out who wrote to the control store",
        )
    private_folder(folder)
    for name, raw in files.items():
        write_private(folder / name, raw)


def write(folder: Path, documents: Mapping[str, object], *, private_key: Path | None = None) -> str:
    """Write a bundle into a new folder, signed where a key is given; returns its head.

    Raises:
        OperatorError: the folder holds something already, or the key is none.
    """
    files, head = make(documents, private_key=private_key)
    put(folder, files)
    return head


def _private(path: Path) -> Ed25519PrivateKey:
    try:
        key = load_pem_private_key(path.read_bytes(), password=None)
    except (OSError, ValueError, TypeError) as exc:
        raise _no_key(path, exc) from exc
    if not isinstance(key, Ed25519PrivateKey):
        raise _no_key(path, "it is of another kind")
    return key


def _public(path: Path) -> Ed25519PublicKey:
    try:
        key = load_pem_public_key(path.read_bytes())
    except (OSError, ValueError) as exc:
        raise _no_key(path, exc) from exc
    if not isinstance(key, Ed25519PublicKey):
        raise _no_key(path, "it is of another kind")
    return key


def _no_key(path: Path, why: object) -> OperatorError:
    return OperatorError(
        f"{path} is no Ed25519 key in PEM",
        why=str(why),
        next_step="openssl genpkey -algorithm ed25519 -out key.pem; openssl pkey -in key.pem "
        "-pubout -out public.pem",
    )


@dataclass
class CheckedBundle:
    """What a check found."""

    files: int = 0
    head: str = ""
    proved_by: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


def check(
    folder: Path, *, head: str | None = None, public_key: Path | None = None
) -> CheckedBundle:
    """Hold every file of a bundle against its chain, and the chain against a head or a key; nothing
    is asked of any server.

    Raises:
        OperatorError: there is no bundle, or the key is none.
    """
    verifier = None if public_key is None else _public(public_key)
    manifest = folder / _MANIFEST
    if not manifest.is_file():
        raise OperatorError(
            f"{folder} holds no evidence bundle",
            why=f"there is no {_MANIFEST}",
            next_step="name the folder of a bundle",
        )
    found = CheckedBundle(head=_FIRST)
    named: set[str] = set()
    raw_lines = manifest.read_bytes().split(b"\n")
    if raw_lines.pop() != b"":
        found.problems.append(f"{_MANIFEST}: its end was changed")
    for number, raw in enumerate(raw_lines, 1):
        name = _check_line(folder, number, raw, found)
        if name is not None:
            named.add(name)
    said = (folder / _HEAD).read_bytes() if (folder / _HEAD).is_file() else b""
    if said != found.head.encode() + b"\n":
        found.problems.append(f"{_HEAD}: it is not the chain's last link")
    found.problems += [
        f"{name}: a bundle has one, and this has none" for name in _NEEDED if name not in named
    ]
    found.problems += _of_the_ledger(folder) if "ledger.json" in named else []
    if head is not None and head != found.head:
        found.problems.append(f"the head is {found.head}, not {head}: this is another bundle")
    elif head is not None:
        found.proved_by.append("the head")
    if verifier is not None:
        why = _why_not_signed(folder, verifier, found.head)
        (found.proved_by if why is None else found.problems).append(why or "the signature")
    if not found.proved_by and not found.problems:
        found.problems.append(
            "nothing shows that this is the bundle that was written: give its head (--head, from "
            "the ledger or the run's artifact) or --public-key"
        )
    here = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if not path.is_dir()}
    found.problems += [
        f"{name}: not part of the bundle"
        for name in sorted(here - named - {_MANIFEST, _HEAD, _SIGNATURE})
    ]
    return found


def _of_the_ledger(folder: Path) -> list[str]:
    try:
        entries = orjson.loads((folder / "ledger.json").read_bytes())["entries"]
        return ledger.broken(entries)
    except (OSError, orjson.JSONDecodeError, KeyError, TypeError, AttributeError):
        return ["ledger.json: it cannot be read"]


def _why_not_signed(folder: Path, key: Ed25519PublicKey, head: str) -> str | None:
    try:
        key.verify(
            base64.b64decode((folder / _SIGNATURE).read_bytes().strip(), validate=True),
            head.encode(),
        )
    except OSError:
        return f"{_SIGNATURE}: missing, nobody signed this bundle"
    except (InvalidSignature, binascii.Error):
        return f"{_SIGNATURE}: it is not a signature of this head by that key"
    return None


def _check_line(folder: Path, number: int, raw: bytes, found: CheckedBundle) -> str | None:
    try:
        line = orjson.loads(raw)
        name, chain = str(line["file"]), str(line.pop("chain"))
    except (orjson.JSONDecodeError, KeyError, TypeError, AttributeError):
        found.problems.append(f"{_MANIFEST}: line {number} cannot be read")
        return None
    path = folder / name
    # A name that no file can have is an OSError in some places, and in others none.
    if name not in {each.name for each in folder.iterdir()} or not path.is_file():
        found.problems.append(f"{name}: missing")
        return name
    found.files += 1
    facts = _facts(name, path.read_bytes())
    found.head = _link(found.head, facts)
    if line != facts:
        found.problems.append(f"{name}: changed")
    elif (
        raw != orjson.dumps({**facts, "chain": chain}, option=orjson.OPT_SORT_KEYS)
        or chain != found.head
    ):
        found.problems.append(f"{_MANIFEST}: line {number}, or one before it, was changed")
    return name
