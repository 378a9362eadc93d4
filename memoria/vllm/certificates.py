"""A company's own certificates, by whichever variable a person has set them.

curl and requests read CURL_CA_BUNDLE and REQUESTS_CA_BUNDLE, OpenSSL (HTTPX, urllib, uv) SSL_CERT_FILE, and
pip as requests does, or PIP_CERT.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

_BUNDLES = ("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "PIP_CERT")


def with_certificates(environ: Mapping[str, str]) -> dict[str, str]:
    """The environment of a program that fetches: each of the variables is set if one of them is."""
    given = next((environ[name] for name in _BUNDLES if environ.get(name)), None)
    if given is None:
        return dict(environ)
    if Path(given).is_dir():
        return {"SSL_CERT_DIR": given, "REQUESTS_CA_BUNDLE": given, **environ}
    return {**dict.fromkeys(_BUNDLES, given), **{name: value for name, value in environ.items() if value}}
