"""Certificates of a federation and keys of its devices, made with what Flower brings."""

from __future__ import annotations

import datetime
import ipaddress
import os
from collections.abc import Sequence
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from fedbonsai.errors import ConfigError

YEARS_CA, DAYS_SERVER = 10, 825
CA, CA_KEY, SERVER, SERVER_KEY = "ca.crt", "ca.key", "server.crt", "server.key"
LOOPBACK = ("127.0.0.1", "localhost")  # the server's own processes speak to it there
BEFORE = datetime.timedelta(hours=1)  # a device's clock may be a little behind


def make_server(folder: Path, addresses: Sequence[str]) -> list[Path]:
    """A certificate for a server under these names and addresses, and the authority that signs it where there is none.

    Raises:
        ConfigError: an address that is none, a folder that cannot be written, or an authority that is not whole.
    """
    names = [_address(address) for address in dict.fromkeys([*addresses, *LOOPBACK])]
    _folder(folder)
    made: list[Path] = []
    if (folder / CA).exists() and not (folder / CA_KEY).exists():
        # a new authority would shut out every device that has the old ca.crt
        raise ConfigError(
            f"{folder / CA} is there and {CA_KEY} is not, and only it can sign; bring it back for a moment, "
            f"or delete {CA} to begin a new federation, whose {CA} every device needs"
        )
    if not (folder / CA).exists():
        if (folder / CA_KEY).exists():
            raise ConfigError(f"{folder / CA_KEY} is there and {CA} is not; bring it back, or delete {CA_KEY} too")
        key = _key()
        name = _name("fedbonsai certificate authority")
        built = (
            _builder(name, name, key.public_key(), datetime.timedelta(days=365 * YEARS_CA))
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(_usage(sign=True), critical=True)
        )
        made += [
            _write(folder / CA_KEY, _pem(key), 0o600),
            _write(folder / CA, built.sign(key, hashes.SHA384()).public_bytes(serialization.Encoding.PEM), 0o644),
        ]
    authority, signer = _authority(folder)
    key = _key()
    built = (
        _builder(_name(addresses[0]), authority.subject, key.public_key(), datetime.timedelta(days=DAYS_SERVER))
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(sign=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key()), critical=False)
    )
    return [
        *made,
        _write(folder / SERVER_KEY, _pem(key), 0o600),
        _write(folder / SERVER, built.sign(signer, hashes.SHA384()).public_bytes(serialization.Encoding.PEM), 0o644),
    ]


def days_left(certificate: Path) -> float:
    """Days until a certificate ends; negative when it has ended.

    Raises:
        ConfigError: the file holds none.
    """
    try:
        end = x509.load_pem_x509_certificate(certificate.read_bytes()).not_valid_after_utc
    except (OSError, ValueError) as error:
        raise ConfigError(f"{certificate} cannot be read: {error}; bring back a copy, or make it anew") from None
    return (end - datetime.datetime.now(datetime.UTC)) / datetime.timedelta(days=1)


def public_key(private: Path) -> str:
    """The public half of a device's key, as it stands in the .pub file.

    Raises:
        ConfigError: the file holds no such key.
    """
    try:
        key = serialization.load_ssh_private_key(private.read_bytes(), None)
    except (OSError, ValueError, TypeError) as error:
        raise ConfigError(
            f"--key {private} cannot be read: {error}; expected what `fedbonsai keys device` made"
        ) from None
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise ConfigError(f"--key {private} is no elliptic-curve key, which Flower wants: fedbonsai keys device NAME")
    raw = key.public_key().public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH)
    return raw.decode()


def _authority(folder: Path) -> tuple[x509.Certificate, ec.EllipticCurvePrivateKey]:
    try:
        authority = x509.load_pem_x509_certificate((folder / CA).read_bytes())
        signer = serialization.load_pem_private_key((folder / CA_KEY).read_bytes(), None)
    except (OSError, ValueError, TypeError) as error:
        raise ConfigError(f"{CA} and {CA_KEY} in {folder} cannot be read: {error}; bring back a copy") from None
    if not isinstance(signer, ec.EllipticCurvePrivateKey) or signer.public_key() != authority.public_key():
        raise ConfigError(f"{CA_KEY} in {folder} is not the key of {CA}; bring back those that belong together")
    return authority, signer


def make_device(folder: Path, name: str) -> list[Path]:
    """A key pair by which a server knows a device: the private half stays on it.

    Raises:
        ConfigError: it has one already, or the folder cannot be written.
    """
    _folder(folder)
    private = folder / f"{name}.key"
    if private.exists():
        raise ConfigError(f"{private} exists; a device keeps its key. To replace it, revoke and delete it first")
    if (folder / f"{name}.pub").exists():
        raise ConfigError(
            f"{folder / name}.pub exists and {name}.key does not; give the device another name, or delete it"
        )
    key = _key()
    public = key.public_key().public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH)
    secret = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.OpenSSH, serialization.NoEncryption()
    )
    return [_write(private, secret, 0o600), _write(folder / f"{name}.pub", public + f" {name}\n".encode(), 0o644)]


def _key() -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(ec.SECP384R1())


def _pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def _name(common: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common[:64])])


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, life: datetime.timedelta
) -> x509.CertificateBuilder:
    now = datetime.datetime.now(datetime.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - BEFORE)
        .not_valid_after(now + life)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
    )


def _usage(sign: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not sign,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=sign,
        crl_sign=sign,
        encipher_only=False,
        decipher_only=False,
    )


def _address(text: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(text))
    except ValueError:
        pass
    if not text or any(not part or not part.replace("-", "").isalnum() for part in text.split(".")):
        raise ConfigError(f"address {text!r}: expected a host name or an IP address by which devices reach the server")
    return x509.DNSName(text)


def _folder(folder: Path) -> None:
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"{folder}: {error.strerror}; choose a folder that can be written") from None


def _write(path: Path, data: bytes, mode: int) -> Path:
    """Write a file that nobody else could read at any time, if so wanted; the old one is replaced whole."""
    fresh = path.with_name(path.name + ".new")
    try:
        fresh.unlink(missing_ok=True)
        with os.fdopen(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as file:
            file.write(data)
        fresh.replace(path)
    except OSError as error:
        raise ConfigError(f"{path} cannot be written: {error.strerror}") from None
    return path
