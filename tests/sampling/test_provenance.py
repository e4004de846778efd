"""Content credentials: made, read, and not to be fooled. Certificates are made here, for these tests alone."""

from __future__ import annotations

import json
import os
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, HTTPServer
from io import BytesIO
from pathlib import Path

import c2pa
import numpy as np
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.asymmetric.types import CertificateIssuerPrivateKeyTypes
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    KeySerializationEncryption,
    NoEncryption,
    PrivateFormat,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from PIL import Image

from terminus.conditioning import Size
from terminus.errors import UserError
from terminus.model.record import Schedule
from terminus.sampling.metadata import GenerationMetadata, attach_metadata, read_image_metadata, save_image, settings_of
from terminus.sampling.provenance import (
    REDRAWN,
    Credentials,
    Identity,
    examine_provenance,
    sign,
    signed,
    verify_credentials,
)

ORIGIN = GenerationMetadata(
    prompt="SECRET apple",
    negative="",
    seed=7,
    steps=3,
    solver="euler",
    guidance=4.0,
    rescale=0.7,
    size=Size(32, 32),
    precision="fp32",
    model="nano",
    model_hash="01" * 32,
    schedule=Schedule(),
)
SUFFIXES = [".png", ".jpg", ".webp"]


@dataclass
class Authority:
    """A certificate authority, and the files of one signer whom it vouches for."""

    folder: Path
    key: ec.EllipticCurvePrivateKey
    certificate: x509.Certificate

    @classmethod
    def make(cls, folder: Path, name: str) -> Authority:
        key = ec.generate_private_key(ec.SECP256R1())
        certificate = issue(name, name, key, key, authority=True)
        folder.mkdir()
        authority = cls(folder, key, certificate)
        (folder / "anchors.pem").write_bytes(certificate.public_bytes(Encoding.PEM))
        authority.vouch("signer", ec.generate_private_key(ec.SECP256R1()))
        return authority

    def vouch(
        self,
        stem: str,
        key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey,
        days: int = 30,
        lock: KeySerializationEncryption | None = None,
    ) -> None:
        leaf = issue("A Signer", self.certificate.subject, key, self.key, days=days)
        chain = b"".join(one.public_bytes(Encoding.PEM) for one in (leaf, self.certificate))
        (self.folder / f"{stem}.pem").write_bytes(chain)
        path = self.folder / f"{stem}.key"
        path.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, lock or NoEncryption()))
        path.chmod(0o600)

    def files(self, stem: str = "signer") -> tuple[Path, Path]:
        return self.folder / f"{stem}.pem", self.folder / f"{stem}.key"

    @property
    def anchors(self) -> Path:
        return self.folder / "anchors.pem"


def issue(
    name: str,
    issuer: str | x509.Name,
    key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey,
    signer: CertificateIssuerPrivateKeyTypes,
    authority: bool = False,
    days: int = 30,
) -> x509.Certificate:
    """What C2PA asks of a certificate: usage stated, no authority of its own, key identifiers."""

    def called(who: str) -> x509.Name:
        organisation = x509.NameAttribute(NameOID.ORGANIZATION_NAME, f"{who} Studio")
        return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, who), organisation])

    usage = dict.fromkeys(
        ("content_commitment", "key_encipherment", "data_encipherment", "key_agreement", "encipher_only"), False
    )
    start = datetime.now(UTC) - timedelta(days=60)
    builder = (
        x509.CertificateBuilder()
        .subject_name(called(name))
        .issuer_name(called(issuer) if isinstance(issuer, str) else issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(start)
        .not_valid_after(start + timedelta(days=60 + days))
        .add_extension(x509.BasicConstraints(ca=authority, path_length=None), critical=True)
        .add_extension(
            x509.KeyUsage(
                digital_signature=not authority,
                key_cert_sign=authority,
                crl_sign=authority,
                decipher_only=False,
                **usage,
            ),
            critical=True,
        )
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key()), critical=False)
    )
    if not authority:
        purposes = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.EMAIL_PROTECTION])
        builder = builder.add_extension(purposes, critical=False)
    return builder.sign(signer, hashes.SHA256())


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority.make(tmp_path_factory.mktemp("certificates") / "one", "One")


@pytest.fixture(scope="module")
def identity(authority: Authority) -> Identity:
    return Identity.load(*authority.files())


def image(task: str = "text2img") -> Image.Image:
    pixels = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    image = Image.fromarray(pixels)
    attach_metadata(image, GenerationMetadata(**{**vars(ORIGIN), "task": task}))
    return image


def encoded(kind: str = "PNG") -> bytes:
    file = BytesIO()
    image().save(file, kind)
    return file.getvalue()


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_signed_image_is_valid_and_says_the_same(tmp_path: Path, identity: Identity, suffix: str):
    path, plain = tmp_path / f"signed{suffix}", tmp_path / f"plain{suffix}"
    save_image(image(), plain)
    save_image(image(), path, signer=identity)
    credentials = verify_credentials(path)
    assert credentials.state == "Valid"
    assert credentials.signer == "A Signer of A Signer Studio"
    assert credentials.generator.startswith("Terminus ")
    assert credentials.actions == ("c2pa.created",)
    assert credentials.source_type == "trainedAlgorithmicMedia"
    assert credentials.reason == "signing certificate untrusted (signingCredential.untrusted)"
    facts = read_image_metadata(path)
    assert facts.credentials == credentials
    assert facts.source_type == "trainedAlgorithmicMedia"
    assert settings_of(facts) == ORIGIN
    assert facts.settings == read_image_metadata(plain).settings
    with Image.open(path) as one, Image.open(plain) as other:
        assert np.array_equal(np.asarray(one), np.asarray(other))
    assert path.stat().st_size - plain.stat().st_size < 8_000  # no second copy of the image


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_every_altered_part_is_found_out(tmp_path: Path, identity: Identity, suffix: str):
    path = tmp_path / f"signed{suffix}"
    save_image(image(), path, signer=identity)
    data = path.read_bytes()
    # In the pixels, in a text, in the manifest, and where a byte is added.
    text = data.index(b"creator" if b"creator" in data else b"CreatorTool") + 2
    manifest = data.index(b"claim_generator_info") + 40
    for place in (len(data) - 60, text, manifest):
        altered = bytearray(data)
        altered[place] ^= 1
        path.write_bytes(altered)
        credentials = verify_credentials(path)
        assert (credentials.state, bool(credentials.reason)) == ("Invalid", True), place
    assert examine_provenance(data).state == "Valid"


def test_an_altered_pixel_is_named_as_such(identity: Identity):
    altered = bytearray(signed(encoded("JPEG"), identity))
    altered[-60] ^= 1
    assert "assertion.dataHash.mismatch" in examine_provenance(bytes(altered)).reason


def test_trust_is_the_readers_own(tmp_path: Path, authority: Authority, identity: Identity):
    path = tmp_path / "a.png"
    save_image(image(), path, signer=identity)
    other = Authority.make(tmp_path / "other", "Other")
    assert verify_credentials(path, authority.anchors).state == "Trusted"
    assert verify_credentials(path, authority.anchors).reason == ""
    assert verify_credentials(path, other.anchors).state == "Valid"


def test_an_image_out_of_another_names_it(tmp_path: Path, identity: Identity):
    parent = signed(encoded("WEBP"), identity)
    path = tmp_path / "a.png"
    save_image(image("inpaint"), path, signer=identity, parent=parent)
    credentials = verify_credentials(path)
    assert (credentials.state, credentials.parents) == ("Valid", 1)
    assert credentials.actions == ("c2pa.opened", "c2pa.edited")
    assert credentials.source_type == REDRAWN == read_image_metadata(path).source_type
    assert path.read_bytes().count(b"c2pa.created") > 0  # the parent's own credentials are kept
    for unsigned in (encoded("PNG"), encoded("JPEG")):
        out = signed(encoded(), identity, REDRAWN, unsigned)
        assert (examine_provenance(out).state, examine_provenance(out).parents) == ("Valid", 1)


def test_a_parent_that_was_altered_is_not_washed_clean(identity: Identity):
    parent = bytearray(signed(encoded("JPEG"), identity))
    parent[-60] ^= 1
    out = signed(encoded(), identity, REDRAWN, bytes(parent))
    with c2pa.Reader("image/png", BytesIO(out)) as reader:
        assert "assertion.dataHash.mismatch" in reader.json()


def test_a_redrawn_image_without_its_parent_is_created(tmp_path: Path, identity: Identity):
    save_image(image("img2img"), tmp_path / "a.webp", signer=identity)
    said = verify_credentials(tmp_path / "a.webp")
    assert (said.actions, said.source_type) == (("c2pa.created",), REDRAWN)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_private_and_signed(tmp_path: Path, identity: Identity, suffix: str):
    path = tmp_path / f"a{suffix}"
    save_image(image(), path, private=True, signer=identity)
    assert verify_credentials(path).state == "Valid"
    assert read_image_metadata(path).texts == {}
    for encoding in ("utf-8", "utf-16-be"):
        assert "SECRET".encode(encoding) not in path.read_bytes()


def test_without_credentials_there_is_nothing_to_check(tmp_path: Path, identity: Identity):
    path = tmp_path / "a.png"
    save_image(image(), path, signer=identity)
    with Image.open(path) as opened:
        opened.save(tmp_path / "stripped.png")
    assert verify_credentials(tmp_path / "stripped.png") == Credentials("none")


def test_a_mark_without_a_manifest_is_invalid():
    data = encoded() + b"jumdc2pa\x00\x11\x00\x10"
    assert examine_provenance(data).state == "Invalid"
    assert examine_provenance(b"jumdc2pa\x00\x11\x00\x10").state == "Invalid"


def test_files_in_and_out(tmp_path: Path, authority: Authority):
    source, target = tmp_path / "a.png", tmp_path / "b.png"
    source.write_bytes(encoded())
    sign(source, target, *authority.files())
    assert verify_credentials(target).state == "Valid"
    with pytest.raises(FileExistsError):
        sign(source, target, *authority.files())
    with pytest.raises(UserError, match="signed already"):
        sign(target, tmp_path / "c.png", *authority.files())
    sign(source, tmp_path / "d.png", *authority.files(), source_type=REDRAWN, parent=target)
    assert verify_credentials(tmp_path / "d.png").parents == 1
    (tmp_path / "text.png").write_text("hello")
    for action in (verify_credentials, lambda path: sign(path, tmp_path / "e.png", *authority.files())):
        with pytest.raises(UserError, match="not a readable image"):
            action(tmp_path / "text.png")
        with pytest.raises(UserError, match="cannot be read"):
            action(tmp_path / "none.png")
    assert not (tmp_path / "e.png").exists()


@pytest.fixture
def listener() -> Iterator[tuple[str, list[str]]]:
    """An address on this machine, and the requests that it got."""
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_error(404)

        def log_message(self, format: str, *args: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/manifest.c2pa", asked
        server.shutdown()
        thread.join()


def remote(url: str) -> bytes:
    """An image that says its credentials are elsewhere."""
    packet = (
        '<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
        f'<rdf:Description rdf:about="" xmlns:dcterms="http://purl.org/dc/terms/" dcterms:provenance="{url}"/>'
        "</rdf:RDF></x:xmpmeta>"
    )
    file = BytesIO()
    image().save(file, "JPEG", xmp=packet.encode())
    return file.getvalue()


def test_nothing_is_fetched(listener: tuple[str, list[str]], tmp_path: Path, identity: Identity):
    url, asked = listener
    path = tmp_path / "a.jpg"
    path.write_bytes(remote(url))
    assert verify_credentials(path).state == "none"
    assert read_image_metadata(path).credentials.state == "none"
    # The same with the mark, so that the library does look; and as a parent.
    assert examine_provenance(remote(url) + b"jumdc2pa\x00\x11\x00\x10").state == "Invalid"
    signed(encoded(), identity, REDRAWN, remote(url))
    assert asked == []


def test_the_key_is_not_shown(identity: Identity):
    assert "PRIVATE" not in repr(identity)
    assert "CERTIFICATE" in repr(identity)


def _loading(*files: Path) -> str:
    with pytest.raises(UserError) as caught:
        Identity.load(*files)
    assert "BEGIN" not in str(caught.value)
    return str(caught.value)


def test_files_that_cannot_sign(tmp_path: Path):
    authority = Authority.make(tmp_path / "one", "One")
    certificate, key = authority.files()
    assert "cannot be read" in _loading(tmp_path / "none.pem", key)
    assert "cannot be read" in _loading(certificate, tmp_path / "none.key")
    assert "holds no private key" in _loading(certificate, certificate)
    assert "holds no certificate" in _loading(key, key)
    for stem, made in [
        ("late", lambda: authority.vouch("late", ec.generate_private_key(ec.SECP256R1()), days=-1)),
        ("rsa", lambda: authority.vouch("rsa", rsa.generate_private_key(65537, 2048))),
        ("curve", lambda: authority.vouch("curve", ec.generate_private_key(ec.SECP521R1()))),
    ]:
        made()
        assert "This certificate and key cannot sign" in _loading(*authority.files(stem)), stem
    authority.vouch("other", ec.generate_private_key(ec.SECP256R1()))
    assert "This certificate and key cannot sign" in _loading(certificate, authority.files("other")[1])
    authority.vouch("locked", ec.generate_private_key(ec.SECP256R1()), lock=BestAvailableEncryption(b"word"))
    assert "This key is encrypted" in _loading(*authority.files("locked"))
    broken = tmp_path / "broken.key"
    broken.write_text("-----BEGIN PRIVATE KEY-----\nnonsense\n-----END PRIVATE KEY-----\n")
    broken.chmod(0o600)
    assert "This certificate and key cannot sign" in _loading(certificate, broken)


@pytest.mark.skipif(os.name != "posix", reason="permissions of POSIX")
def test_a_key_that_everybody_can_read_is_refused(tmp_path: Path):
    certificate, key = Authority.make(tmp_path / "one", "One").files()
    key.chmod(0o644)
    assert f"chmod 600 {key}" in _loading(certificate, key)
    key.chmod(0o640)
    Identity.load(certificate, key)


def test_without_the_library(tmp_path: Path, authority: Authority, identity: Identity, monkeypatch: pytest.MonkeyPatch):
    path = tmp_path / "a.png"
    save_image(image(), path, signer=identity)
    monkeypatch.setitem(sys.modules, "c2pa", None)
    for action in (
        lambda: Identity.load(*authority.files()),
        lambda: verify_credentials(path),
        lambda: save_image(image(), tmp_path / "b.png", signer=identity),
    ):
        with pytest.raises(UserError, match=r"pip install 'terminus-xl\[c2pa\]'"):
            action()
    assert not (tmp_path / "b.png").exists()
    assert read_image_metadata(path).credentials.state == "unchecked"
    assert settings_of(read_image_metadata(path)) == ORIGIN
    assert json.loads(read_image_metadata(path).texts["terminus"])["seed"] == 7
