"""Access to the proxy: the Host, the Origin of a web page, what a page may send, and the API key.

One decision over a request's head, before anything else happens to it. Sources: RFC 9110 7.4 (421),
RFC 6454 (Origin), RFC 6750 (Bearer), the Fetch standard (CORS; what a page may send without a preflight),
Fetch Metadata (Sec-Fetch-Site).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from memoria.config.model import Config
from memoria.proxy import errors
from memoria.proxy.access.keys import KeyRing, Keys
from memoria.proxy.errors import Answer
from memoria.proxy.http.messages import Header
from memoria.proxy.routing.routes import ROUTES

# For load balancers and scripts, which have no key: readiness of the engines, nothing more.
KEYLESS_PATHS = frozenset((b"/health", b"/livez", b"/readyz"))

# Admin routes check their keys themselves (memoria/admin/api/authorizer.py); the page holds no secret.
_OWN_PREFIXES = (b"/admin/", b"/page/")

_FORM_PATHS = frozenset(route.path.encode() for route in ROUTES if route.model_in == "multipart")
_DECIDING = frozenset((b"host", b"origin", b"sec-fetch-site", b"authorization", b"x-api-key"))
_ADDRESS = re.compile(rb"[0-9]{1,3}(?:\.[0-9]{1,3}){3}|\[[0-9a-f:.]+\]")
_FIELD_NAMES = re.compile(rb"[A-Za-z0-9!#$%&'*+.^_`|~, -]{1,1000}")
_CORS_PREFLIGHT_AGE = 600  # seconds for which a browser may keep the answer
_EXPOSED = (b"access-control-expose-headers", b"x-request-id, retry-after")


@dataclass(frozen=True, slots=True)
class AccessRules:
    """Hosts without ports and origins as browsers write them, in lower case. `addresses`: any IP address is
    accepted as a Host, since DNS rebinding needs a name. `tls`: memoria's own pages come by https alone, else
    also through a proxy that has it. `keys` None: no key is needed. An admin key is valid
    for the engines, too."""

    hosts: frozenset[bytes]
    any_host: bool = False
    addresses: bool = False
    origins: frozenset[bytes] = field(default=frozenset())
    any_origin: bool = False
    keys: KeyRing | None = None
    admin_keys: KeyRing | None = None
    tls: bool = False


@dataclass(frozen=True, slots=True)
class Grant:
    """Permission to send a request. `key` is the name of the API key, None where none is needed. `headers` go
    with any answer to the request."""

    key: str | None = None
    headers: tuple[Header, ...] = ()


ANYBODY = Grant()


def access_rules(config: Config, keys: Keys, *, hostname: str) -> AccessRules:
    """The rules of a configuration. On a loopback address only its own names are hosts; otherwise also this
    machine's `hostname` and any address. `allowed_hosts` adds to them."""
    address, access = config.listen, config.access
    bound = f"[{address.host}]" if ":" in address.host else address.host
    hosts = {"localhost", "127.0.0.1", "[::1]", bound, *access.allowed_hosts}
    if not address.is_loopback:
        hosts.add(hostname)
    return AccessRules(
        hosts=frozenset(host.lower().encode() for host in hosts),
        any_host="*" in access.allowed_hosts,
        addresses=not address.is_loopback,
        origins=frozenset(origin.encode() for origin in access.origins),
        any_origin="*" in access.origins,
        keys=keys.clients,
        admin_keys=keys.admins,
        tls=config.tls_files is not None,
    )


def decide(method: str, path: bytes, headers: Sequence[Header], rules: AccessRules) -> Grant | Answer:
    """The decision over a request: a refusal (400, 401, 403, 415, 421) or the answer to a browser's CORS
    preflight, where it goes no further. `headers` as they came, names in lower case."""
    head: dict[bytes, bytes] = {}
    for name, value in headers:
        if name in _DECIDING:
            if name in head:
                return errors.bad_framing(f"The request has several {name.decode()} headers")
            head[name] = value
    host = head.get(b"host")
    is_page = b"origin" in head or b"sec-fetch-site" in head
    # HTTP/1.0 may come without one; browsers never do. A page that has rebound its name (DNS rebinding) has
    # no key, and a program that has one may use any name.
    is_ours = host is None or rules.any_host or _is_ours(host, rules)
    if not is_ours and (is_page or _find_any_key(head, rules) is None):
        return errors.host_not_allowed(host or b"")
    cors: tuple[Header, ...] = ()
    if is_page:
        page = _decide_page(method, path, dict(headers), rules)
        if isinstance(page, Answer):
            return page
        cors = page
    if rules.keys is None or path in KEYLESS_PATHS or path == b"/" or path.startswith(_OWN_PREFIXES):
        return Grant(None, cors) if cors else ANYBODY
    key = _find_any_key(head, rules)
    return errors.invalid_api_key(given=sends_key(head), cors=cors) if key is None else Grant(key, cors)


def _is_ours(host: bytes, rules: AccessRules) -> bool:
    name = host.lower()
    bare, colon, port = name.rpartition(b":")
    if colon and port.isdigit():
        name = bare
    return name in rules.hosts or (rules.addresses and _ADDRESS.fullmatch(name) is not None)


def _find_any_key(head: Mapping[bytes, bytes], rules: AccessRules) -> str | None:
    rings = (rules.keys, rules.admin_keys)
    return next((name for ring in rings if ring is not None and (name := find_key(head, ring))), None)


def find_key(head: Mapping[bytes, bytes], keys: KeyRing) -> str | None:
    """The name of the key sent with a request, None if it is not in `keys`."""
    authorization = head.get(b"authorization")
    if authorization is not None:
        scheme, _, token = authorization.partition(b" ")
        if scheme.lower() == b"bearer" and (name := keys.find(token.strip())) is not None:
            return name
    key = head.get(b"x-api-key")
    return None if key is None else keys.find(key)


def sends_key(head: Mapping[bytes, bytes]) -> bool:
    return b"authorization" in head or b"x-api-key" in head


def _decide_page(
    method: str, path: bytes, head: dict[bytes, bytes], rules: AccessRules
) -> tuple[Header, ...] | Answer:
    """The CORS headers for the answer to a browser's request, or an answer where it goes no further."""
    origin = head.get(b"origin")
    cors: tuple[Header, ...] = ()
    if origin is not None and not _is_own_page(origin, head.get(b"host"), tls=rules.tls):
        if path.startswith(_OWN_PREFIXES):
            return errors.foreign_origin(origin)
        if rules.any_origin:
            cors = ((b"access-control-allow-origin", b"*"), _EXPOSED)
        elif origin.lower() in rules.origins:
            cors = ((b"access-control-allow-origin", origin), (b"vary", b"origin"), _EXPOSED)
        else:
            return errors.origin_not_allowed(origin)
    elif origin is None and not _comes_from_here(method, path, head, rules):
        return errors.site_not_allowed()
    if method == "OPTIONS" and cors and b"access-control-request-method" in head:
        return _cors_preflight(cors, head)
    if method == "POST" and not _is_plain(head, path):
        return errors.page_must_send_json(cors, form=path in _FORM_PATHS)
    return cors


def _comes_from_here(method: str, path: bytes, head: dict[bytes, bytes], rules: AccessRules) -> bool:
    """Whether a browser's request without Origin (an image, a script, a link) is from an allowed site, by
    Fetch Metadata (W3C). From another site's page only a followed link is allowed."""
    if head[b"sec-fetch-site"] in {b"same-origin", b"none"}:
        return True
    if path.startswith(b"/admin/"):
        return False
    followed = (head.get(b"sec-fetch-mode"), head.get(b"sec-fetch-dest")) == (b"navigate", b"document")
    return rules.any_origin or (method == "GET" and followed)


def _is_own_page(origin: bytes, host: bytes | None, *, tls: bool) -> bool:
    scheme, _, place = origin.lower().partition(b"://")
    ours = scheme == b"https" or (scheme == b"http" and not tls)
    return host is not None and ours and place == host.lower()


def _is_plain(head: dict[bytes, bytes], path: bytes) -> bool:
    """Whether a body is JSON, or a form where the route takes one: a page of another site can send other
    types without a CORS preflight."""
    kind = head.get(b"content-type")
    if kind is None:
        return head.get(b"content-length", b"0") == b"0" and b"transfer-encoding" not in head
    kind = kind.partition(b";")[0].strip().lower()
    if kind == b"multipart/form-data":
        return path in _FORM_PATHS
    return kind == b"application/json" or (kind.startswith(b"application/") and kind.endswith(b"+json"))


def _cors_preflight(cors: tuple[Header, ...], head: dict[bytes, bytes]) -> Answer:
    allowed = [(b"access-control-allow-methods", b"GET, POST")]
    requested = head.get(b"access-control-request-headers", b"")
    if _FIELD_NAMES.fullmatch(requested):
        allowed.append((b"access-control-allow-headers", requested))
    age = (b"access-control-max-age", b"%d" % _CORS_PREFLIGHT_AGE)
    return errors.cors_preflight((*cors, *allowed, age))
