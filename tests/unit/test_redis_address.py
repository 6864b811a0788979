"""Redis URLs: what they may hold, and that their credentials are never told."""

from __future__ import annotations

import pytest
from wasmkilnd.redis_address import BadRedisUrl, RedisAddress, RedisKind

MAIN, HUNTER = "redis+sentinel://a/main", ("u", "hunter@2")
ASKED = RedisKind.SENTINEL, (("a", 26379),)
TLS, OPTIONS = (
    "ssl_ca_certs=/ca.pem&ssl_cert_reqs=none",
    {"ssl_ca_certs": "/ca.pem", "ssl_cert_reqs": "none"},
)


@pytest.mark.parametrize(
    ("url", "kind", "hosts", "rest"),
    [
        ("redis://h", RedisKind.SERVER, (("h", 6379),), {}),
        ("redis://:p%2Fw@h:1/3", RedisKind.SERVER, (("h", 1),), {"db": 3, "password": "p/w"}),
        ("redis://[::1]:1", RedisKind.SERVER, (("::1", 1),), {}),
        ("redis://u:p@ss@h", RedisKind.SERVER, (("h", 6379),), {"user": "u", "password": "p@ss"}),
        ("unix://:pw@/run/r.sock?db=2", RedisKind.SOCKET, (), {"path": "/run/r.sock", "db": 2}),
        (
            "redis+sentinel://u:p@a,b:1,[::1]/main/2",
            RedisKind.SENTINEL,
            (("a", 26379), ("b", 1), ("::1", 26379)),
            {"service": "main", "db": 2, "user": "u"},
        ),
        ("rediss+cluster://a:1,b", RedisKind.CLUSTER, (("a", 1), ("b", 6379)), {"tls": True}),
        ("https://:tok@x.example/base/", RedisKind.REST, (("x.example", 443),), {"path": "/base"}),
        ("http://:tok@127.0.0.1:8080", RedisKind.REST, (("127.0.0.1", 8080),), {"password": "tok"}),
        (f"{MAIN}?sentinel_user=u&sentinel_password=hunter%402", *ASKED, {"sentinel": HUNTER}),
        (f"{MAIN}?sentinel_password=ab+c/d==", *ASKED, {"sentinel": ("", "ab+c/d==")}),
        (f"rediss://h?{TLS}", RedisKind.SERVER, (("h", 6379),), {"tls_options": OPTIONS}),
        ("http://localhost", RedisKind.REST, (("localhost", 80),), {"tls": False}),
    ],
)
def test_what_a_url_says(
    url: str, kind: RedisKind, hosts: tuple[tuple[str, int], ...], rest: dict[str, object]
) -> None:
    address = RedisAddress.parse(url)
    assert (address.kind, address.hosts) == (kind, hosts)
    assert {name: getattr(address, name) for name in rest} == rest
    assert "hunter" not in f"{address}{address!r}"


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("hunter2", "no known scheme"),
        ("redis:hunter2", "no known scheme"),
        ("ftp://:hunter2@h", "no known scheme"),
        ("redis://:hunter/2@h", "percent-encode"),
        ("redis://:hunter?2@h", "percent-encode"),
        ("redis://:hunter#2@h", "percent-encode"),
        ("redis://:hunter2@h:port", "ports from 1"),
        ("redis://:hunter2@h:0", "ports from 1"),
        ("redis://:hunter2@h:99999", "ports from 1"),
        ("redis://:hunter2@[h", "not a valid URL"),
        ("redis://:hunter2@h o", "not a valid URL"),
        ("redis://:hunter2@h\u2100", "not a valid URL"),
        ("redis://:hunter2@", "write redis://"),
        ("redis://:hunter2@a,b", r"write redis://\[user:password@]host\[:port]\[/db],"),
        ("redis://:hunter2@h/zero", r"host\[:port]\[/db]"),
        ("redis://:hunter2@h?decode_responses=true", "option"),
        ("redis://:hunter2@h?db=hunter2", "a db that is no number"),
        ("redis://h?password=hunter2", "option"),
        ("redis://h?ssl_cert_reqs=none", "option"),
        ("rediss://h?ssl_cert_reqs=hunter2", "ssl_cert_reqs"),
        ("unix://:hunter2@/s?ssl_cert_reqs=none", "option"),
        ("unix://hunter2", "/path/to/redis.sock"),
        ("unix://hunter2/s", "/path/to/redis.sock"),
        ("redis+sentinel://:hunter2@h", r"host\[:port]/service\[/db]"),
        ("redis+sentinel://:hunter2@h/main/hunter2", r"/service\[/db]"),
        ("redis+sentinel://:hunter2@a,,b/main", r"write redis\+sentinel://"),
        ("redis+cluster://:hunter2@h/1", r"host\[:port],host\[:port],"),
        ("redis+cluster://:hunter2@h?db=1", "option"),
        ("https://hunter2@h", "token"),
        ("http://:hunter2@h", "unencrypted"),
        ("http://:hunter2@127.0.0.1.example", "unencrypted"),
    ],
)
def test_others_are_refused_without_their_secret(url: str, why: str) -> None:
    with pytest.raises(BadRedisUrl, match=why) as raised:
        RedisAddress.parse(url)
    assert "hunter" not in str(raised.value)
    assert raised.value.__suppress_context__ or raised.value.__context__ is None


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("redis://user:hunter2@h:7000/3", "redis://h:7000/3"),
        ("rediss://:hunter2@h?ssl_keyfile=/hunter2", "rediss://h:6379"),
        ("unix://:hunter2@/run/r.sock?db=2", "unix:///run/r.sock?db=2"),
        ("redis+sentinel://:hunter2@a,[::1]:1/main/2", "redis+sentinel://a:26379,[::1]:1/main/2"),
        ("https://:hunter2@h/base", "https://h:443/base"),
    ],
)
def test_its_text_holds_no_secret(url: str, shown: str) -> None:
    address = RedisAddress.parse(url)
    assert str(address) == shown
    assert repr(address) == f"RedisAddress({shown})"
