"""The container: opens with its key and not otherwise; one byte changed anywhere and it does not open."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from MITSGANLib.errors import InputError
from MITSGANLib.keys.key_files import Key, ScryptCost, generate_key, passphrase_key
from MITSGANLib.seal import container
from MITSGANLib.seal.container import HEADER_LIMIT, MARK, close_container, open_container, os, read_identity

CHEAP = ScryptCost(2, 1, 1)
KEYS = {"file": Key(bytes(range(32))), "passphrase": passphrase_key("correct horse")}
PAYLOAD, IDENTITY = b"what was changed" * 3, {"kind": "volume", "shape": [1, 2, 3], "hu_sha256": "ab" * 32}


def closed(kind: str = "file") -> bytes:
    return close_container(PAYLOAD, IDENTITY, KEYS[kind], cost=CHEAP)


@pytest.mark.parametrize("kind", KEYS)
class TestBothKinds:
    def test_round_trip(self, kind):
        data = closed(kind)
        assert open_container(data, KEYS[kind]) == (IDENTITY, PAYLOAD)
        assert read_identity(data) == IDENTITY
        assert PAYLOAD[:16] not in data

    def test_every_byte_counts(self, kind):
        """Each byte with one bit flipped, and with all; nothing else than a clear refusal comes out."""
        data = closed(kind)
        for place in range(len(data)):
            for flip in (0x01, 0x80, 0xFF):
                changed = bytearray(data)
                changed[place] ^= flip
                with pytest.raises(InputError):
                    open_container(bytes(changed), KEYS[kind])

    def test_every_cut_is_refused(self, kind):
        data = closed(kind)
        for length in range(len(data)):
            with pytest.raises(InputError):
                open_container(data[:length], KEYS[kind])
        with pytest.raises(InputError):
            open_container(data + b"\x00", KEYS[kind])

    def test_two_seals_of_the_same_share_nothing(self, kind):
        one, other = closed(kind), closed(kind)
        assert one[-len(PAYLOAD) :] != other[-len(PAYLOAD) :]
        heads = [json.loads(data[len(MARK) + 4 :].split(b'"identity"')[0] + b'"x":0}') for data in (one, other)]
        assert heads[0]["nonce"] != heads[1]["nonce"]
        assert heads[0]["salt"] != heads[1]["salt"]

    def test_the_secret_is_not_in_it(self, kind):
        assert KEYS[kind].secret not in closed(kind)
        assert KEYS[kind].secret.hex().encode() not in closed(kind)


def test_wrong_keys():
    with pytest.raises(InputError, match="not the one"):
        open_container(closed("file"), generate_key())
    with pytest.raises(InputError, match="passphrase is not the one"):
        open_container(closed("passphrase"), passphrase_key("correct horsf"))
    with pytest.raises(InputError, match="sealed with a key file"):
        open_container(closed("file"), KEYS["passphrase"])
    with pytest.raises(InputError, match="sealed with a passphrase"):
        open_container(closed("passphrase"), KEYS["file"])


@pytest.mark.slow
@given(st.binary(max_size=100))
def test_any_bytes_are_refused(data):
    for candidate in (data, MARK + data, MARK + len(data).to_bytes(4, "big") + data + bytes(16)):
        with pytest.raises(InputError):
            open_container(candidate, KEYS["file"])


HEADER = {
    "derivation": {"scrypt": {"n": 2, "r": 1, "p": 1}},
    "salt": "00" * 16,
    "nonce": "00" * 12,
    "identity": IDENTITY,
}


@pytest.mark.parametrize(
    "header",
    [
        [],
        {**HEADER, "identity": 1},
        {**HEADER, "salt": "00"},
        {**HEADER, "salt": 7},
        {**HEADER, "nonce": "zz" * 12},
        {**HEADER, "derivation": []},
        {**HEADER, "derivation": {}},
        {**HEADER, "derivation": {"md5": {}}},
        {**HEADER, "derivation": {"hkdf-sha256": 3}},
        {**HEADER, "derivation": {"scrypt": {"n": 1 << 40, "r": 8, "p": 1}}},
        {**HEADER, "derivation": {"scrypt": {"n": 1 << 17, "r": 8, "p": 10**9}}},
        {**HEADER, "derivation": {"scrypt": {"m": 1}}},
        {**HEADER, "derivation": {"scrypt": None}},
    ],
)
def test_hostile_headers(header, monkeypatch):
    def never(*_: object) -> bytes:
        raise AssertionError("a key was derived for a header that should have been refused")

    monkeypatch.setattr(container, "seal_key", never)
    text = json.dumps(header).encode()
    for key in KEYS.values():
        with pytest.raises(InputError):
            open_container(MARK + len(text).to_bytes(4, "big") + text + bytes(40), key)


@pytest.mark.parametrize(
    "text", [b"[" * HEADER_LIMIT, b"1" * HEADER_LIMIT, b" " * (HEADER_LIMIT + 1), b'{"a":NaN}', b"\xff\xfe"]
)
def test_headers_that_are_no_json(text):
    with pytest.raises(InputError):
        read_identity(MARK + len(text).to_bytes(4, "big") + text + bytes(40))


def test_a_seal_of_version_1_opens():
    """Written down with the first version of the format; whatever changes later, this must open."""
    assert open_container(bytes.fromhex(WRITTEN), KEYS["passphrase"]) == ({"kind": "test"}, b"known answer")


WRITTEN = (
    "4d49545347414e207365616c20310a000000957b2264657269766174696f6e223a7b22736372797074223a7b226e223a322c"
    "2272223a312c2270223a317d7d2c2273616c74223a2264613737366562623564306165343762633138353961666464336639"
    "38326365222c226e6f6e6365223a22303563303235626334353738343461343762666438613237222c226964656e74697479"
    "223a7b226b696e64223a2274657374227d7deec970d790b27400ce17ab0286ca38425eb38e86243f2805ee812007"
)


def test_aes_gcm_of_nist(monkeypatch):
    """Test case 14 of the GCM specification (AES-256, zero key, zero nonce, one block of zeros), as a container's end.

    Its associated data are empty and ours are not, so only the ciphertext is that of the specification, not the tag.
    """
    monkeypatch.setattr(container, "seal_key", lambda *_: bytes(32))
    monkeypatch.setattr(os, "urandom", bytes)
    data = close_container(bytes(16), IDENTITY, KEYS["file"])
    assert data[-32:-16].hex() == "cea7403d4d606b6e074ec5d3baf39d18"
