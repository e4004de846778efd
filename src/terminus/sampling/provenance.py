"""Content credentials (C2PA): a signed statement inside the image of who drew it, with what, and out of what.

Needs the extra `c2pa`. Everything happens offline: no time-stamp authority is asked, no manifest or revocation list is
fetched, whatever an image refers to. The signature says that the bytes are those that were signed and by whose key;
whether that somebody is to be believed is for the reader's list of trusted certificates.
"""

from __future__ import annotations

import json
import stat
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import metadata
from io import BytesIO
from pathlib import Path
from typing import Any, Literal, cast

from PIL import Image

from terminus.errors import UserError
from terminus.sampling.files import read_file, write_new

State = Literal["none", "unchecked", "Valid", "Trusted", "Invalid"]
SOURCE_TYPES = "http://cv.iptc.org/newscodes/digitalsourcetype/"
DRAWN, REDRAWN = "trainedAlgorithmicMedia", "compositeWithTrainedAlgorithmicMedia"
"""IPTC's words: wholly by a model, or by a model out of another image."""
_MARK = b"jumdc2pa\x00\x11\x00\x10"
"""The description of a manifest store, in every container: its type is a UUID that spells c2pa."""
_INSTALL = "Install it with: pip install 'terminus-xl[c2pa]'"
_STARTS = {b"\x89PNG\r\n\x1a\n": "image/png", b"\xff\xd8\xff": "image/jpeg", b"RIFF": "image/webp"}
_PEM_BYTES = 1 << 16
_SETTINGS = {
    "builder": {"thumbnail": {"enabled": False}},  # a hundred times the work, and a second copy of the image
    "verify": {"remote_manifest_fetch": False, "ocsp_fetch": False},
}


@dataclass(frozen=True)
class Credentials:
    """The result of checking an image's content credentials."""

    state: State
    """ "none" there are none; "unchecked" there are, and the extra is missing; "Valid" unaltered since they were
    signed; "Trusted" also by somebody on the given list; "Invalid" altered, or never right."""
    reason: str = ""
    signer: str = ""
    """As the certificate says; worth what `state` says."""
    generator: str = ""
    actions: tuple[str, ...] = ()
    """Such as "c2pa.created", oldest first."""
    source_type: str | None = None
    parents: int = 0
    """Images that this one was made from."""

    def __str__(self) -> str:
        signer = f"signed by {self.signer}" if self.signer else ""
        return ", ".join(part for part in (self.state, signer, self.reason) if part)


NO_CREDENTIALS = Credentials("none")


@dataclass(frozen=True)
class Identity:
    """Who signs: a chain of certificates, the signer's first, and the signer's key (P-256), both PEM."""

    certificates: bytes
    key: bytes = field(repr=False)

    @classmethod
    def load(cls, certificates: Path, key: Path) -> Identity:
        """From files, tried on an image of one pixel: better an error now than after minutes of drawing."""
        _library()
        identity = cls(_pem(certificates, b"CERTIFICATE"), _pem(key, b"PRIVATE KEY"))
        if _mode(key) & 0o007:
            raise UserError(
                "Everybody on this machine may use this private key",
                where=str(key),
                rule="Whoever has it signs in your name",
                fix=f"chmod 600 {key}",
            )
        pixel = BytesIO()
        Image.new("RGB", (1, 1)).save(pixel, "PNG")
        try:
            signed(pixel.getvalue(), identity)
        except UserError as error:
            raise UserError(
                f"This certificate and key cannot sign ({error.what})",
                where=f"{certificates}, {key}",
                rule="Needed: a chain of certificates in PEM, the signer's first, made for signing and valid today, "
                "and the signer's unencrypted P-256 key (PKCS 8)",
            ) from error
        return identity


def signed(data: bytes, identity: Identity, source_type: str = DRAWN, parent: bytes | None = None) -> bytes:
    """The same image with content credentials, checked; `parent` is the image that it was drawn from.

    UserError for what cannot be signed, also an image that has credentials already: give that one as `parent`.
    """
    c2pa = _library()
    if _MARK in data:
        raise UserError(
            "This image is signed already",
            rule="Signing again would lose what is there",
            fix="Sign the new image, with this one as its parent",
        )
    out = BytesIO()
    info = (c2pa.C2paSigningAlg.ES256, identity.certificates, identity.key, None)
    try:
        with (
            c2pa.Signer.from_info(c2pa.C2paSignerInfo(*info)) as signer,
            c2pa.Context.from_dict(_SETTINGS) as context,
            c2pa.Builder(_manifest(source_type, edited=parent is not None), context) as builder,
        ):
            if parent is not None:
                builder.set_intent(c2pa.C2paBuilderIntent.EDIT)  # adds "c2pa.opened", which names the parent
                ingredient = {"title": "initial image", "relationship": "parentOf"}
                builder.add_ingredient(ingredient, _media_type(parent), BytesIO(parent))
            builder.sign(signer, _media_type(data), BytesIO(data), out)
    except c2pa.C2paError as error:
        raise UserError(f"This image cannot be signed: {_short(error)}") from error
    # Checked as a reader would, before anybody gets it.
    result = examine_provenance(out.getvalue())
    if result.state not in ("Valid", "Trusted"):
        raise UserError(f"This signature would not be valid: {result.reason}")
    return out.getvalue()


def sign(
    source: Path,
    target: Path,
    certificates: Path,
    key: Path,
    *,
    source_type: str = DRAWN,
    parent: Path | None = None,
) -> None:
    """Writes the image at `source` with content credentials to `target`; FileExistsError rather than overwrite."""
    identity = Identity.load(certificates, key)
    before = None if parent is None else read_file(parent)
    data = signed(read_file(source), identity, source_type, before)
    write_new(target, data)


def verify_credentials(path: Path, anchors: Path | None = None) -> Credentials:
    """The checked credentials of the image at `path`; `anchors` holds the certificates you trust, in PEM.

    UserError if the extra is missing: a check that cannot be made must not look like one that passed.
    """
    _library()
    trusted = None if anchors is None else _pem(anchors, b"CERTIFICATE")
    data = read_file(path)
    _media_type(data, str(path))
    return examine_provenance(data, trusted)


def examine_provenance(data: bytes, anchors: bytes | None = None) -> Credentials:
    """The same for an image in memory; "unchecked" if the extra is missing."""
    if _MARK not in data:
        return NO_CREDENTIALS
    try:
        c2pa = _library()
    except UserError as error:
        return Credentials("unchecked", f"{error.what}. {_INSTALL}")
    settings: dict[str, Any] = dict(_SETTINGS)
    if anchors is not None:
        settings["trust"] = {"user_anchors": anchors.decode("ascii", "replace")}
    try:
        with (
            c2pa.Context.from_dict(settings) as context,
            c2pa.Reader(_media_type(data), BytesIO(data), context=context) as reader,
        ):
            return _credentials(json.loads(reader.json()))
    except (c2pa.C2paError, UserError) as error:
        return Credentials("Invalid", _short(error))


def _credentials(store: Mapping[str, Any]) -> Credentials:
    # The active manifest speaks of this image, the others of those it was made from.
    manifest = store.get("manifests", {}).get(store.get("active_manifest"), {})
    signature, generators = manifest.get("signature_info", {}), manifest.get("claim_generator_info", [])
    actions = _actions(manifest)
    sources = [str(action["digitalSourceType"]) for action in actions if action.get("digitalSourceType")]
    names = [str(signature[name]) for name in ("common_name", "issuer") if signature.get(name)]
    state = str(store.get("validation_state"))
    return Credentials(
        state=cast(State, state) if state in ("Valid", "Trusted") else "Invalid",
        reason=_reason(store),
        signer=" of ".join(names),
        generator=" ".join(str(generators[0].get(name, "")) for name in ("name", "version")) if generators else "",
        actions=tuple(str(action.get("action")) for action in actions),
        source_type=sources[-1].removeprefix(SOURCE_TYPES) if sources else None,
        parents=sum(one.get("relationship") == "parentOf" for one in manifest.get("ingredients", [])),
    )


def _actions(manifest: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Everything that was done with the image, in the manifest's order."""
    actions: list[Mapping[str, Any]] = []
    for assertion in manifest.get("assertions", []):
        if str(assertion.get("label", "")).startswith("c2pa.actions"):
            actions += assertion.get("data", {}).get("actions", [])
    return actions


def _reason(store: Mapping[str, Any]) -> str:
    """The failures, the gravest first; an unknown signer is one that leaves the signature valid."""
    failures = [status for status in store.get("validation_status", []) if status.get("code")]
    failures.sort(key=lambda status: status["code"] == "signingCredential.untrusted")
    reasons = [f"{status.get('explanation', '')} ({status['code']})".strip() for status in failures[:3]]
    return "; ".join(dict.fromkeys(reasons))


def _manifest(source_type: str, edited: bool) -> dict[str, Any]:
    action = "c2pa.edited" if edited else "c2pa.created"
    actions = [{"action": action, "digitalSourceType": SOURCE_TYPES + source_type}]
    return {
        "claim_generator_info": [{"name": "Terminus", "version": metadata.version("terminus-xl")}],
        "assertions": [{"label": "c2pa.actions.v2", "data": {"actions": actions}}],
    }


def _library() -> Any:
    try:
        import c2pa
    except (ImportError, OSError) as error:
        raise UserError("Content credentials need the library c2pa-python", fix=_INSTALL) from error
    return c2pa


def _media_type(data: bytes, where: str = "") -> str:
    """By how the bytes begin, not by a name; whether they go on so is for the library to find out."""
    for start, media_type in _STARTS.items():
        if data.startswith(start) and (start != b"RIFF" or data[8:12] == b"WEBP"):
            return media_type
    raise UserError("This is not a readable image", where=where, rule="PNG, JPEG or WebP")


def _mode(path: Path) -> int:
    try:
        return stat.S_IMODE(path.expanduser().stat().st_mode)
    except OSError as error:
        raise UserError(f"This file cannot be read ({error.strerror})", where=str(path)) from error


def _pem(path: Path, what: bytes) -> bytes:
    data = read_file(path, _PEM_BYTES)
    if b"-----BEGIN" not in data or what + b"-----" not in data:
        raise UserError(f"This file holds no {what.decode().lower()}", where=str(path), rule="It is text in PEM form")
    if b"ENCRYPTED" in data:
        raise UserError(
            "This key is encrypted",
            where=str(path),
            rule="It is used without anybody there to type a password",
            fix=f"openssl pkcs8 -topk8 -nocrypt -in {path} -out KEY",
        )
    return data


def _short(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
