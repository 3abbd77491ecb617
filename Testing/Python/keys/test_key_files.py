"""Keys: files that only their owner reads, passphrases, and the published vectors of what they rest on."""

from __future__ import annotations

import base64
import logging
import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st
from MITSGANLib.errors import InputError, OutputError
from MITSGANLib.keys import key_files
from MITSGANLib.keys.key_files import (
    Key,
    ScryptCost,
    generate_key,
    is_private,
    passphrase_key,
    read_key_file,
    seal_key,
    write_key_file,
)

SALT = bytes(range(16))


class TestFiles:
    def test_round_trip(self, tmp_path):
        key = generate_key()
        write_key_file(key, tmp_path / "key")
        assert read_key_file(tmp_path / "key") == key
        assert is_private(tmp_path / "key")
        assert (tmp_path / "key").stat().st_mode & 0o777 == 0o600

    def test_an_existing_file_stays(self, tmp_path):
        (tmp_path / "key").write_text("mine")
        with pytest.raises(OutputError, match="exists"):
            write_key_file(generate_key(), tmp_path / "key")
        assert [file.read_text() for file in tmp_path.iterdir()] == ["mine"]

    def test_others_may_read(self, tmp_path):
        write_key_file(generate_key(), tmp_path / "key")
        (tmp_path / "key").chmod(0o644)
        assert not is_private(tmp_path / "key")

    @pytest.mark.parametrize(
        "content",
        [
            b"",
            b"MITSGAN-KEY-1",
            b"MITSGAN-KEY-1 " + base64.b64encode(bytes(31)),
            b"MITSGAN-KEY-2 " + base64.b64encode(bytes(32)),
            b"MITSGAN-KEY-1 " + base64.b64encode(bytes(32))[:-2],
            b"MITSGAN-KEY-1 " + b"!" * 44,
            b"-----BEGIN PRIVATE KEY-----",
            bytes(range(256)) * 100,
        ],
    )
    def test_no_key_file(self, tmp_path, content):
        (tmp_path / "key").write_bytes(content)
        with pytest.raises(InputError, match="no key file") as caught:
            read_key_file(tmp_path / "key")
        assert len(content) < 20 or content[-20:].decode("latin-1") not in str(caught.value)

    def test_missing_file(self, tmp_path):
        with pytest.raises(InputError, match="cannot be read"):
            read_key_file(tmp_path / "key")


class TestSecrecy:
    @pytest.mark.slow
    @given(st.binary(min_size=32, max_size=32))
    def test_no_text_of_a_key_shows_it(self, secret):
        key = Key(secret)
        for shown in (repr(key), str(key), f"{key}", key.id):
            assert secret.hex() not in shown
            assert repr(secret)[2:-1] not in shown
        assert pickle.loads(pickle.dumps(key)) == key

    def test_a_key_is_not_logged(self, caplog):
        key = passphrase_key("correct horse battery staple")
        with caplog.at_level(logging.DEBUG):
            logging.getLogger("x").debug("%s %r", key, {"key": key})
            seal_key(key, SALT, ScryptCost(2, 1, 1))
        assert "horse" not in caplog.text

    def test_keys_have_identities_and_passphrases_none(self):
        one, other = Key(bytes(32)), Key(bytes(31) + b"\x01")
        assert one.id != other.id
        assert len(one.id) == 16
        assert passphrase_key("a passphrase").id is None


class TestPassphrases:
    def test_composed_and_decomposed_accents_are_one(self):
        assert passphrase_key("caf\u00e9 noir") == passphrase_key("cafe\u0301 noir")

    def test_short_ones_open_but_do_not_seal(self):
        assert passphrase_key("short").is_passphrase
        with pytest.raises(InputError, match="at least 8"):
            passphrase_key("short", is_new=True)

    def test_empty(self):
        with pytest.raises(InputError, match="empty"):
            passphrase_key("")

    @pytest.mark.parametrize(
        "cost",
        [
            {"n": 1 << 40},
            {"n": 3},
            {"n": 1},
            {"n": 0},
            {"n": -2},
            {"n": 1 << 20, "r": 16},
            {"r": 1 << 30},
            {"p": 17},
            {"p": 0},
            {"n": 2.0},
            {"n": "1024"},
            {"n": True},
            {"p": None},
        ],
    )
    def test_no_file_can_ask_for_terabytes(self, cost):
        with pytest.raises(InputError):
            ScryptCost(**cost)


class TestKnownAnswers:
    """Published vectors, through the functions that seals use."""

    def test_scrypt_of_rfc_7914(self):
        key = passphrase_key("pleaseletmein")
        expected = "7023bdcb3afd7348461c06cd81fd38ebfda8fbba904f8e3ea9b543f6545da1f2"
        assert seal_key(key, b"SodiumChloride", ScryptCost(16384, 8, 1)).hex() == expected

    def test_hkdf_of_rfc_5869(self):
        """Test case 1, of which a seal uses the first 32 of 42 bytes."""
        secret, context = bytes.fromhex("0b" * 22), bytes.fromhex("f0f1f2f3f4f5f6f7f8f9")
        expected = "3cb25f25faacd57a90434f64d0362f2a2d2d0a90cf1a5a4c5db02d56ecc4c5bf"
        assert key_files.derive(secret, bytes.fromhex("000102030405060708090a0b0c"), context).hex() == expected

    def test_derivation_stays_as_it_is(self):
        """Seals must open in later versions: these values were written down with version 1 of the format."""
        assert seal_key(Key(bytes(range(32))), SALT, None).hex() == PINNED_KEY
        assert Key(bytes(range(32))).id == PINNED_ID


PINNED_KEY = "06e9aa44f36feca1dfc5034389d8aada8bd5fff21b47f0a03e78c4776a560990"
PINNED_ID = "615e2c069b7c4677"
