"""Manifests: no change passes, no move between formats alarms, and changes are found where they are."""

from __future__ import annotations

import base64
import dataclasses
import datetime
import shutil
import subprocess
import tempfile
import zlib
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from MITSGANLib.attack.attacker import simulate_attack
from MITSGANLib.errors import InputError, OutputError
from MITSGANLib.files.storage import save_volume
from MITSGANLib.keys.signing_keys import (
    load_public_key,
    load_signing_key,
    new_signing_key,
    public_key_path,
    save_signing_key,
)
from MITSGANLib.scan.alignment import aligned
from MITSGANLib.scan.volume import CTVolume
from MITSGANLib.signature import contents
from MITSGANLib.signature.contents import ImageFile, ScanContents, read_contents_to_verify
from MITSGANLib.signature.digests import IMAGE_KEYWORDS, SERIES_KEYWORDS, STUDY, TILE
from MITSGANLib.signature.envelope import (
    PAYLOAD_TYPE,
    ManifestError,
    canonical_json,
    decode_bytes,
    parse_canonical_json,
    pre_authentication_encoding,
    seal_payload,
)
from MITSGANLib.signature.manifest import (
    SignedManifest,
    manifest_path,
    merge,
    read_document,
    read_manifest_file,
    sign_volume,
)
from MITSGANLib.signature.merkle import merkle_paths, merkle_root, root_from_path
from MITSGANLib.signature.signing import Signers, sign_scan
from MITSGANLib.signature.verification import CHANGED_TILE, MISSING_SLICE, WRONG_SLICE, Verification, verify_scan
from scipy.spatial.transform import Rotation

KEY = new_signing_key()
SALT = bytes(range(32))
TIME = datetime.datetime(2026, 1, 2, 3, 4, 5, tzinfo=datetime.UTC)


def changed_slices(verification) -> tuple[int, ...]:
    return tuple(np.flatnonzero(verification.tiles.any(axis=(1, 2))).tolist())


def volume_of(shape: tuple[int, int, int] = (5, 40, 70), seed: int = 0, **geometry: object) -> CTVolume:
    hu = np.random.default_rng(seed).normal(-200, 300, shape)
    return CTVolume(np.clip(hu, -1024, 3000).astype(np.int16), **geometry)


def sign(volume: CTVolume, headers: list[dict[str, str]] | None = None) -> SignedManifest:
    return sign_volume(volume, KEY, SALT, TIME, headers)


def check(volume: CTVolume, signed: SignedManifest, images: tuple[ImageFile, ...] = ()) -> Verification:
    return verify_scan(ScanContents(Path("scan.nrrd"), "dicom" if images else "nrrd", volume, images), signed)


def kinds(verification: Verification) -> list[str]:
    return [one.kind for one in verification.discrepancies]


def headers_of(slices: int) -> list[dict[str, str]]:
    shared = {keyword: f"{keyword} of the patient" for keyword in (STUDY, *SERIES_KEYWORDS)}
    return [shared | {keyword: f"{keyword} {k}" for keyword in IMAGE_KEYWORDS} for k in range(slices)]


def images_of(headers: list[dict[str, str]]) -> tuple[ImageFile, ...]:
    return tuple(ImageFile(Path(f"{k}.dcm"), one, None) for k, one in enumerate(headers))


WHOLE = volume_of(spacing=(0.7, 0.8, 2.5), origin=(-100.0, -120.0, 30.0))
SIGNED = sign(WHOLE)


class TestKnownAnswers:
    """Values from the documents, so that others can check our manifests without our code."""

    RECORDS = tuple(
        bytes.fromhex(text)
        for text in (
            *("", "00", "10", "2021", "3031", "40414243", "5051525354555657"),
            "606162636465666768696a6b6c6d6e6f",
        )
    )

    @pytest.mark.parametrize(
        ("count", "root"),
        [
            (1, "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d"),
            (2, "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125"),
            (3, "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77"),
            (5, "4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4"),
            (7, "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c"),
            (8, "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328"),
        ],
    )
    def test_trees_of_certificate_transparency(self, count, root):
        assert merkle_root(self.RECORDS[:count]).hex() == root

    @given(count=st.integers(1, 40), index=st.integers(0, 39), wrong=st.integers(0, 39))
    def test_a_path_proves_its_own_record_and_place_only(self, count, index, wrong):
        index, wrong = index % count, wrong % count
        records = [bytes([k]) for k in range(count)]
        root, path = merkle_root(records), merkle_paths(records)[index]
        assert root_from_path(records[index], index, count, path) == root
        if wrong != index:
            assert root_from_path(records[wrong], index, count, path) != root
            assert root_from_path(records[index], wrong, count, path) != root
        assert root_from_path(records[index], index, count, (*path, bytes(32))) is None
        assert not path or root_from_path(records[index], index, count, path[:-1]) is None

    def test_what_dsse_signs(self):
        text = pre_authentication_encoding("http://example.com/HelloWorld", b"hello world")
        assert text == b"DSSEv1 29 http://example.com/HelloWorld 11 hello world"

    @pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl is not installed")
    def test_openssl_agrees_about_the_signature(self, tmp_path):
        public = save_signing_key(KEY, tmp_path / "clinic.pem")
        payload = decode_bytes(SIGNED.envelope["payload"])
        (tmp_path / "message").write_bytes(pre_authentication_encoding(PAYLOAD_TYPE, payload))
        (tmp_path / "signature").write_bytes(decode_bytes(SIGNED.envelope["signatures"][0]["sig"]))
        command = ["openssl", "pkeyutl", "-verify", "-rawin", "-pubin", "-inkey", public]
        files = ["-in", tmp_path / "message", "-sigfile", tmp_path / "signature"]
        assert subprocess.run([*command, *files], capture_output=True, check=False).returncode == 0
        (tmp_path / "message").write_bytes(b"another")
        assert subprocess.run([*command, *files], capture_output=True, check=False).returncode != 0

    def test_a_manifest_of_version_1_is_read(self):
        """Signed with the first version, by the first key of RFC 8032 (7.1); later versions must read and agree."""
        secret = bytes.fromhex("9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60")
        signed = read_document(zlib.decompress(base64.b64decode(WRITTEN)))
        public = "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a"
        assert signed.manifest.public_key.hex() == public
        payload = decode_bytes(signed.envelope["payload"])
        assert seal_payload(payload, Ed25519PrivateKey.from_private_bytes(secret)) == signed.envelope
        hu = np.arange(-1000, -200, 100, np.int16).reshape(2, 2, 2)
        volume = CTVolume(hu, (0.7, 0.8, 2.5), (-100.0, -120.0, 30.0))
        assert check(volume, signed, images_of(headers_of(2))).is_intact
        hu[1, 1, 1] -= 1
        assert kinds(check(volume.with_hu(hu), signed, images_of(headers_of(2)))) == ["voxels"]


WRITTEN = """
eNptVduSozgS/Re/1sS0AOOyO6IfChvZUAYXAkmgjXng5uIiMGUwGDrm31fYPTu7E/ugIITQ4eTJPJk/F2ndp/zSpIvvPxdNOPJLmCy+L9LRLO
KKZMmelEZxya3ibbRzMFiuWNwZrOky2Dux3HawxNPaGq1RoUbcKZI976PcWNFJv1nbYTgWb621XQ7H3du8v/9j/zx3l4PvDnm4JxnbkzEejZXg
MDHfbJhv5ae6zR1qF8y3p5Bubl5NuqAi44MblvxEwVK8v0+UmvmJZNpR4R5WPvuw1nsbwy7dk8lSYEWJ2Zx0TmNJROaB/Lg1tUCBUujbzYN3iU
TMOD/lBnDx/UZkFsZeNmCfVayAFqrAPdlLhaeb+ruSfUVVgzHhF1pxlPqwRAdYfLhCi9Ls2YE7gW8C5GdZRPmNUUfgmm3kQ0CJtkUeOzo0U8O9
Lbu+mVlFxhIAbyGwD6jWRkKaPqS65GAy2QTBJy4bAypxT2Yuo4wLvW+BTIiLH9gZUdgUTLYWc6OnHrpaJQoEGnC5rRAfKoyQHuPu3SKa6mJyjy
Y+eQr5xZlPsUJ4XG4qvIcgpOSW6FyfNQ7r5guVjeV6yd4jzQlJ/BT49olI6OrqthEU5uhUjRTrWUvkxAgkdsMHorLpobEV+EhwhW3oI3XGQ/tl
f4JIsqXmHcOsiMcNoLgzPQ4hrjOXlXaAa8IC2nwkHrFjiRB6SBxr98CzIxll0Z6D1DVWRgGl08H0opI34cT0SEnMVL9L3hTLIW8gwd3OUdidyW
BikzN5QD1QmE0OxxsjH/K/YzWbuEYXJPbsiVtFldQ7FeEB5l7AURlWELh7s7dAY0WgK3HV4UhHng3hnZQww9RUyfT2D9ynhgkQGScJsd3NhA+c
u7iVXc/eUqxL4WR/pFgtPcx9VqpWQLPO8hN22m9691mnopZQw6gKvAp2D34V6IUnamtialBnQUilOq4z2fKgEwOiYrqRrQl+BHjDT9iEom7lxN
cGUq3/lx/U+ljmYPbVzDPdd/v3yZGZp6nvQKVWzcpU1JM1diXSu+aoONew4rtYfJ/ISRhW5o5x2/qVm//wxDJZzniBvJSDyvyKAasjxbhGCpKP
EywD2hWukhAkka8ErO8Yr+9kx0HsE0DwRaHPuL1nD7DNqLZBQNVC1LCJtiL+OlDdwpBEHQWYdp3IxwET+B5PiLpSU9qeeRDeo45nUq/IZLu0ZE
fRqlDXn/ErSBIe1efanHlGoJUQMZdJyVrE2dHeQSsUOAiYNamNMeKOFGB1d9ppJpmYhsGn7BV8+StuLzmQMsXPXB9Bc8EgU1zgAFZojUMyKeC8
tnTRqbgWEC/Z4hL2hARDUNgHTJPu5HZfgfDLWfTB+MGtnD19jGjmnYg9esIHyS67erJqWb52SKl5RJ75xby30VJ0NS3gJYS8fJ80EB2Q/eGaG8
Grjyteh3SZn3jbWd7bo98ePX189mBL7LVEfDck1GxDap9DmTw8KuroTjFkrpLt4opRPK4VcuA+xtkHm5JLoDCRa63x6H1MAM8CohUuJG709PwY
yRvwqCf/cyA7VqECEVTd7bnXHSWGSUUkVm1WZAe9kJh+StE2pUvFLaUg3MPh9NR1Cuj9geNgCB0AFYzZlsm26Uiw93SkWfpGT3XoIprZBDOXku
zgVF2GlExhenb5C2fGnH1DJ6O18mH0HzprWSCL3jzO799u9jjPo09xvpTmczET2vmOJe4YNeojeZhzYrsEeQjAkzHPMDG7jBr8WPz21wD1xnme
LsKm4Xkcdvml/tbXye9V3rWfYf17Fdb5OW2733vppWgvtbjY5p912N2uabv4/q+fizId83kMy9I5VaTkHErqMpRX0kpeRee1ugTL1TmR5Vcpeo
3SZBmtwihdqmGortevr+l5+XrevMpStHkiCyBJGy7LLHhp7ma7vkTH+z55Iy+ZcZJ3r8ZE11v90L6bF7yPVhst0+66/g1enZR8DZ399SEFW/98
b24bIGv7aim5qVMZ2Zvz48fizz/+FP8QYf5inlfh5xz79fz+VXm4fi2czPMshDbfUn0NruGKM7etejC2d1+P7Z6Ws3B5naT3xXcwS9hlAumP3x
ZdzmfQRUR7/TMPXmhYFiH8fMk2L68oWb8pui7Hd1U51pl51ayq3gWCz29/czishmto3F6Cw7eNcW/BLUu9ww1wcv5s9evo3L7S67WTlfev4b84
SP+Pw/Yc9/Hr+PYejUP2eV3D7vV2zV9gsD+IkWAZS719yder4/nDeWjyb4LwISI=
"""


class TestKeys:
    def test_a_key_comes_back_and_is_private(self, tmp_path):
        public = save_signing_key(KEY, tmp_path / "clinic.pem", b"secret")
        assert public == public_key_path(tmp_path / "clinic.pem")
        assert (tmp_path / "clinic.pem").stat().st_mode & 0o077 == 0
        loaded = load_signing_key(tmp_path / "clinic.pem", b"secret")
        assert loaded.public_key() == KEY.public_key() == load_public_key(public)

    def test_a_key_is_never_overwritten(self, tmp_path):
        save_signing_key(KEY, tmp_path / "clinic.pem")
        before = (tmp_path / "clinic.pem").read_bytes()
        with pytest.raises(OutputError, match="exists"):
            save_signing_key(new_signing_key(), tmp_path / "clinic.pem")
        assert (tmp_path / "clinic.pem").read_bytes() == before

    @pytest.mark.parametrize("passphrase", [None, b"wrong"])
    def test_a_locked_key_needs_its_passphrase(self, tmp_path, passphrase):
        save_signing_key(KEY, tmp_path / "clinic.pem", b"secret")
        with pytest.raises(InputError, match="passphrase"):
            load_signing_key(tmp_path / "clinic.pem", passphrase)

    def test_what_is_no_key_is_refused(self, tmp_path):
        public = save_signing_key(KEY, tmp_path / "clinic.pem")
        (tmp_path / "noise.pem").write_bytes(b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n")
        for load, path in (
            (load_signing_key, public),
            (load_signing_key, tmp_path / "noise.pem"),
            (load_signing_key, tmp_path / "missing.pem"),
            (load_public_key, tmp_path / "clinic.pem"),
            (load_public_key, tmp_path / "noise.pem"),
        ):
            with pytest.raises(InputError):
                load(path)

    @pytest.mark.skipif(not Path("/dev/zero").exists(), reason="there is no endless file here")
    def test_a_file_without_end_is_no_key(self):
        with pytest.raises(InputError, match="too large"):
            load_public_key(Path("/dev/zero"))


class TestDocument:
    def test_comes_back(self):
        again = read_document(SIGNED.document())
        assert again.manifest == SIGNED.manifest
        assert again.document() == SIGNED.document()
        assert check(WHOLE, again).is_intact

    @pytest.mark.slow
    def test_every_byte_counts(self):
        document = sign(volume_of((3, 33, 20)), headers_of(3)).document()
        for place in range(len(document)):
            for mask in (0x01, 0x20, 0x80):
                forged = bytearray(document)
                forged[place] ^= mask
                with pytest.raises(ManifestError):
                    read_document(bytes(forged))

    @given(st.integers(0, 10_000), st.binary(max_size=6))
    def test_cut_or_spliced_never_passes(self, place, inserted):
        document = SIGNED.document()
        place %= len(document)
        for forged in (document[:place], document[place + 1 :], document[:place] + inserted + document[place:]):
            if forged != document:
                with pytest.raises(ManifestError):
                    read_document(forged)

    @pytest.mark.slow
    @settings(max_examples=30, deadline=None)
    @given(
        st.recursive(
            st.none() | st.integers() | st.text(max_size=4),
            lambda x: st.lists(x) | st.dictionaries(st.text(max_size=9), x),
        )
    )
    def test_any_json_is_refused_in_words(self, value):
        for document in (value, {"envelope": value, "slices": [value]}):
            with pytest.raises(ManifestError):
                read_document(canonical_json(document))

    def test_a_signed_scan_of_impossible_size_is_refused(self):
        """Anyone may sign, and the map of what was changed is as large as the scan is said to be."""
        payload = parse_canonical_json(decode_bytes(SIGNED.envelope["payload"]))
        (record, *_) = SIGNED.shares([[0], [1, 2, 3, 4]])
        share = parse_canonical_json(record)
        for shape in ([65536, 65536, 65536], [65536, 512, 512], [-1, 40, 70], [5, 40, 0], [5.0, 40, 70], [5, 40]):
            envelope = seal_payload(canonical_json({**payload, "shape": shape}), KEY)
            with pytest.raises(ManifestError, match="damaged"):
                read_document(canonical_json({**share, "envelope": envelope}))

    def test_deep_nesting_is_refused(self):
        with pytest.raises(ManifestError):
            read_document(b"[" * 100_000)

    def test_another_key_cannot_take_over(self):
        """Its own envelope, but our records, or our envelope with its key."""
        forger = sign_volume(volume_of(seed=1), new_signing_key(), SALT, TIME)
        with pytest.raises(ManifestError):
            read_document(dataclasses.replace(SIGNED, envelope=forger.envelope).document())
        mixed = {**SIGNED.envelope, "signatures": forger.envelope["signatures"]}
        with pytest.raises(ManifestError):
            read_document(dataclasses.replace(SIGNED, envelope=mixed).document())

    def test_shares_prove_their_slices_alone_and_make_the_whole(self):
        signed = sign(WHOLE, headers_of(5))
        shares = [read_document(share) for share in signed.shares([[k] for k in range(5)])]
        assert [list(share.records) for share in shares] == [[k] for k in range(5)]
        assert merge(shares[::-1]).document() == signed.document()

    def test_a_share_with_another_slices_record_is_refused(self):
        first, second = SIGNED.shares([[0], [1], [2, 3, 4]])[:2]
        forged = first.replace(b'"index":0', b'"index":1')
        assert forged != first
        with pytest.raises(ManifestError):
            read_document(forged)
        assert read_document(second).records.keys() == {1}

    def test_no_header_value_stands_in_it(self):
        text = SIGNED.document() + sign(WHOLE, headers_of(5)).document()
        assert b"of the patient" not in text
        assert b"of the patient" not in decode_bytes(sign(WHOLE, headers_of(5)).envelope["payload"])

    def test_the_same_patient_looks_unlike_in_two_manifests(self):
        one, other = (sign_volume(WHOLE, KEY, salt, TIME, headers_of(5)).manifest for salt in (SALT, bytes(32)))
        assert not set(one.headers.series.values()) & set(other.headers.series.values())


class TestVoxels:
    @settings(max_examples=60)
    @given(
        kji=st.tuples(st.integers(0, 4), st.integers(0, 39), st.integers(0, 69)),
        step=st.sampled_from([1, -1, 7, 1000]),
    )
    def test_one_voxel_is_found_in_its_tile(self, kji, step):
        hu = WHOLE.hu.copy()
        hu[kji] += step
        verification = check(WHOLE.with_hu(hu), SIGNED)
        assert kinds(verification) == ["voxels"]
        assert changed_slices(verification) == (kji[0],)
        k, j, i = kji
        assert np.argwhere(verification.tiles).tolist() == [[k, j // TILE, i // TILE]]
        labels = verification.map_volume()
        assert labels.hu[kji] == CHANGED_TILE
        assert labels.same_geometry(WHOLE)
        ((_, rows, columns),) = verification.changed_boxes()
        assert (labels.hu != 0).sum() == (rows.stop - rows.start) * (columns.stop - columns.start)

    def test_swapped_slices(self):
        verification = check(WHOLE.with_hu(WHOLE.hu[[0, 3, 2, 1, 4]]), SIGNED)
        assert kinds(verification) == ["slices-swapped"]
        assert verification.discrepancies[0].slices == (1, 3)
        assert set(verification.tiles[[1, 3]].ravel()) == {WRONG_SLICE}

    def test_a_slice_in_place_of_another(self):
        verification = check(WHOLE.with_hu(WHOLE.hu[[0, 1, 4, 3, 4]]), SIGNED)
        assert kinds(verification) == ["slice-misplaced"]
        assert "2 shows slice 4" in verification.discrepancies[0].text

    def test_an_attack_by_ct_gan_is_found_where_it_was(self, phantom, untrained_attackers):
        volume = phantom.volume
        target = (24, 64, 40)
        forged = simulate_attack(volume, target, "inject", attacker=untrained_attackers["inject"], device="cpu")
        verification = check(forged, sign(volume))
        assert kinds(verification) == ["voxels"]
        touched = verification.map_volume().hu == CHANGED_TILE
        assert touched[forged.hu != volume.hu].all()
        # Tiles of 32 x 32 around a cube of 32 mm, which is 12 x 12 pixels here: most of the scan stays unmarked.
        assert touched.mean() < 0.1

    def test_a_slice_of_another_scan(self):
        hu = WHOLE.hu.copy()
        hu[2] = volume_of(seed=9).hu[2]
        assert kinds(check(WHOLE.with_hu(hu), SIGNED)) == ["slice-replaced"]

    def test_another_scan_altogether(self):
        verification = check(WHOLE.with_hu(volume_of(seed=9).hu), SIGNED)
        assert changed_slices(verification) == (0, 1, 2, 3, 4)

    @pytest.mark.parametrize("gone", range(5))
    def test_a_missing_slice(self, gone):
        kept = [k for k in range(5) if k != gone]
        origin = WHOLE.voxel_to_lps((kept[0], 0, 0))
        cut = CTVolume(WHOLE.hu[kept], WHOLE.spacing, tuple(origin))
        verification = check(cut, SIGNED)
        assert kinds(verification) == ["slice-missing"]
        assert verification.discrepancies[0].slices == (gone,)
        assert set(verification.tiles[gone].ravel()) == {MISSING_SLICE}

    def test_a_slice_twice(self):
        longer = CTVolume(WHOLE.hu[[0, 1, 1, 2, 3, 4]], WHOLE.spacing, WHOLE.origin)
        assert kinds(check(longer, SIGNED)) == ["slice-duplicated"]

    def test_missing_and_changed(self):
        hu = WHOLE.hu[:4].copy()
        hu[1, 5, 5] += 1
        verification = check(CTVolume(hu, WHOLE.spacing, WHOLE.origin), SIGNED)
        assert kinds(verification) == ["slice-missing", "voxels"]
        assert changed_slices(verification) == (1, 4)

    def test_a_cropped_scan(self):
        assert kinds(check(CTVolume(WHOLE.hu[:, :-1], WHOLE.spacing, WHOLE.origin), SIGNED)) == ["size"]


class TestGeometry:
    @pytest.mark.parametrize(
        ("edit", "kind"),
        [
            ({"spacing": (0.701, 0.8, 2.5)}, "spacing"),
            ({"spacing": (0.7, 0.8, 2.6)}, "spacing"),
            ({"origin": (-100.0, -120.0, 30.1)}, "position"),
            ({"direction": Rotation.from_euler("z", 0.1, degrees=True).as_matrix()}, "orientation"),
        ],
    )
    def test_an_edit_is_named(self, edit, kind):
        assert kinds(check(dataclasses.replace(WHOLE, **edit), SIGNED)) == [kind]

    @pytest.mark.slow
    @given(
        axis=st.integers(0, 2),
        what=st.sampled_from(["spacing", "position", "orientation"]),
        shift_mm=st.floats(0.02, 300) | st.floats(0, 0.004),
        sign=st.sampled_from([-1, 1]),
    )
    def test_any_shift_that_matters_is_found_and_rounding_is_not(self, axis, what, shift_mm, sign):
        """Spacing and orientation are edited such that the far end of the scan moves by ``shift_mm``."""
        extent = np.multiply(WHOLE.spacing, WHOLE.shape[::-1])
        spacing, origin, direction = np.array(WHOLE.spacing), np.array(WHOLE.origin), np.eye(3)
        if what == "spacing":
            spacing[axis] *= 1 + shift_mm / extent[axis]
        elif what == "position":
            origin[axis] += sign * shift_mm
        else:
            angle = sign * min(shift_mm / np.delete(extent, axis).max(), 1.5)
            direction = Rotation.from_rotvec(angle * np.eye(3)[axis]).as_matrix()
        edited = CTVolume(WHOLE.hu, tuple(spacing), tuple(origin), direction)
        assert (what in kinds(check(edited, SIGNED))) == (shift_mm > 0.01)

    @pytest.mark.parametrize("flips", [(-1, 1, 1), (1, -1, 1), (1, 1, -1), (-1, -1, 1)])
    def test_a_mirrored_header_is_an_edit_of_orientation_not_of_voxels(self, flips):
        verification = check(dataclasses.replace(WHOLE, direction=np.diag(np.array(flips, float))), SIGNED)
        assert kinds(verification) == ["orientation"]
        assert not verification.tiles.any()

    @given(axes=st.permutations([0, 1, 2]), flips=st.tuples(*[st.booleans()] * 3))
    def test_the_same_grid_in_another_order_is_no_change(self, axes, flips):
        direction = np.eye(3)[:, axes] * np.where(flips, -1.0, 1.0)
        turned = aligned(WHOLE, direction)
        assert np.allclose(turned.direction, direction)
        assert check(turned, SIGNED).is_intact
        k, j, i = 3, 11, 60
        found = turned.nearest_voxel(WHOLE.voxel_to_lps((k, j, i)))
        assert turned.hu[found] == WHOLE.hu[k, j, i]

    @settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
    @given(
        suffix=st.sampled_from([".nrrd", ".nii", ".nii.gz", ".mha"]),
        shape=st.tuples(st.integers(2, 4), st.integers(8, 40), st.integers(8, 40)),
        spacing=st.tuples(*[st.floats(0.3, 5.0)] * 3),
        origin=st.tuples(*[st.floats(-1500, 1500)] * 3),
        angles=st.tuples(*[st.floats(-180, 180)] * 3),
        is_mirrored=st.booleans(),
    )
    def test_no_move_between_formats_alarms(self, suffix, shape, spacing, origin, angles, is_mirrored):
        direction = Rotation.from_euler("xyz", angles, degrees=True).as_matrix()
        direction[:, 2] *= -1 if is_mirrored else 1
        volume = volume_of(shape, spacing=spacing, origin=origin, direction=direction)
        signed = sign(volume)
        with tempfile.TemporaryDirectory() as folder:
            save_volume(volume, Path(folder) / f"scan{suffix}")
            verification = verify_scan(read_contents_to_verify(Path(folder) / f"scan{suffix}"), signed)
        assert verification.is_intact, verification.discrepancies


class TestHeaders:
    HEADERS = headers_of(5)
    SIGNED = sign(WHOLE, HEADERS)

    @pytest.mark.slow
    @settings(max_examples=25, deadline=None)
    @given(
        keyword=st.sampled_from([STUDY, *SERIES_KEYWORDS, *IMAGE_KEYWORDS]),
        value=st.text(max_size=20).map(lambda text: f"<{text}>"),
        k=st.integers(0, 4) | st.none(),
    )
    def test_any_changed_header_is_named(self, keyword, value, k):
        edited = [dict(one) for one in self.HEADERS]
        for one in edited if k is None else [edited[k]]:
            one[keyword] = value
        verification = check(WHOLE, self.SIGNED, images_of(edited))
        (one,) = verification.discrepancies
        assert one.kind == "header"
        if keyword in IMAGE_KEYWORDS:
            assert "ImageType" in one.text
        else:
            assert keyword in one.text.replace("Study Instance UID", STUDY)
        if k is not None:
            assert one.slices == (k,)
        assert value not in one.text

    def test_deidentified_on_purpose(self):
        edited = [one | {"PatientName": "Anonymous"} for one in self.HEADERS]
        scan = ScanContents(Path("scan"), "dicom", WHOLE, images_of(edited))
        verification = verify_scan(scan, self.SIGNED, headers=False)
        assert verification.is_intact
        assert any("as asked" in note for note in verification.notes)

    def test_a_format_without_headers_says_so(self):
        verification = check(WHOLE, self.SIGNED)
        assert verification.is_intact
        assert any("this format has none" in note for note in verification.notes)


class TestFiles:
    def test_beside_a_file(self, tmp_path):
        save_volume(WHOLE, tmp_path / "scan.nrrd")
        signed, where = sign_scan(tmp_path / "scan.nrrd", None, Signers(KEY))
        assert where == manifest_path(tmp_path / "scan.nrrd") == tmp_path / "scan.nrrd.manifest.json"
        assert read_manifest_file(where).manifest == signed.manifest
        with pytest.raises(OutputError, match="exists"):
            sign_scan(tmp_path / "scan.nrrd", None, Signers(KEY))

    def test_a_signed_copy_is_the_same_file(self, tmp_path):
        save_volume(WHOLE, tmp_path / "scan.nii.gz")
        _, where = sign_scan(tmp_path / "scan.nii.gz", tmp_path / "out" / "signed.nii.gz", Signers(KEY))
        assert (tmp_path / "out" / "signed.nii.gz").read_bytes() == (tmp_path / "scan.nii.gz").read_bytes()
        assert where.parent == tmp_path / "out"
        verification = verify_scan(
            read_contents_to_verify(tmp_path / "out" / "signed.nii.gz"), read_manifest_file(where)
        )
        assert verification.is_intact
        assert any("NIfTI" in note for note in verification.notes)

    @pytest.mark.parametrize("output", ["scan.nrrd", "signed.nii", "folder"])
    def test_outputs_that_cannot_be(self, tmp_path, output):
        save_volume(WHOLE, tmp_path / "scan.nrrd")
        before = sorted(path.name for path in tmp_path.iterdir())
        with pytest.raises(OutputError):
            sign_scan(tmp_path / "scan.nrrd", tmp_path / output, Signers(KEY), overwrite=True)
        assert sorted(path.name for path in tmp_path.iterdir()) == before

    def test_two_signings_share_no_digest(self, tmp_path):
        save_volume(WHOLE, tmp_path / "scan.nrrd")
        first, _ = sign_scan(tmp_path / "scan.nrrd", None, Signers(KEY))
        second, _ = sign_scan(tmp_path / "scan.nrrd", None, Signers(KEY), overwrite=True)
        assert first.manifest.salt != second.manifest.salt
        assert not (first.records[0].tiles == second.records[0].tiles).all(axis=2).any()


@pytest.mark.parametrize(("name", "is_dicom"), [("scan.mha", False), ("scan", True)])
def test_damage_is_named_as_what_it_is_of(tmp_path, monkeypatch, name, is_dicom):
    """Readers of foreign bytes raise whatever they like."""
    (tmp_path / name).write_bytes(b"")
    monkeypatch.setattr(contents, "load_volume", Mock(side_effect=KeyError("surprise")))
    with pytest.raises(InputError, match="damaged") as caught:
        read_contents_to_verify(tmp_path / name)
    assert ("DICOM" in str(caught.value)) == is_dicom
