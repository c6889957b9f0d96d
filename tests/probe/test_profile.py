"""Profile files: equal profiles are equal bytes, and whatever is no whole profile is a ProfileError."""

import contextlib
import dataclasses
import json
import math
import pickle
import struct

import pytest
import safetensors.torch
import sympy
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from loka_compile.probe.low_rank import LowRank
from loka_compile.probe.pairs import Estimated, Interval
from loka_compile.probe.profile import FORMAT, Profile, ProfileError, load_profile, parse_profile
from loka_compile.probe.score import ErrorScore
from loka_compile.probe.segments import SegmentScore, Source
from loka_compile.probe.site_profile import SiteProfile
from loka_compile.probe.statistics import OperandStats
from loka_compile.spec.site import Site

DRAWN = Estimated(25, Interval(0.1, 0.2), Interval(1e-3, math.inf), Interval(0.05, 0.1))


def make_profile(seed=0):
    generator = torch.Generator().manual_seed(seed)
    batch = sympy.Symbol("s77", integer=True, positive=True)

    def operand(features):
        normal = lambda *shape: torch.randn(*shape, generator=generator)  # noqa: E731
        gaussian = LowRank(normal(features), normal(4, features).bfloat16(), normal(features).square())
        return OperandStats(
            rows=9,
            values=9 * features,
            mean=0.1,
            std=1 / 3,
            kurtosis=math.nan,
            amax=math.inf,
            quantiles=(0.1, 0.2, 0.3, math.inf),
            zero_rows=2,
            non_finite=1,
            fp16_overflows=3,
            fp8_underflow=0.25,
            dynamic_range=7.5,
            distribution=gaussian,
        )

    site = Site(
        "mlp.0#0:output",
        "addmm",
        "output",
        sympy.Integer(1),
        16 * batch,
        sympy.Integer(5),
        sympy.Integer(3),
        torch.bfloat16,
        "mlp.0",
        "model.py:7",
        True,
        "",
    )
    scores = {"fp8_rowwise": ErrorScore(0.1, 28.0, 0.03), "fp16": ErrorScore(math.inf, -math.inf, 0.0)}
    rare = {"country=NZ": SegmentScore(11, scores)}
    one = SiteProfile(site, 4, operand(3), operand(3), scores, {"fp16": DRAWN}, (1, 32, 5, 3), rare)
    gradient = dataclasses.replace(site, key="mlp.0#0:grad_weight", role="grad_weight", gradient="lhs")
    other = SiteProfile(gradient, 1, OperandStats(), operand(2))
    source = Source(900, {"country": {"NZ": 0.01, "US": 0.99}}, {"country": {"NZ": 0.02, "US": 0.98}})
    sites = {site.key: one, f"{gradient.key}@x.py:3": other}
    return Profile(sites, {"loka": "0", "torch": "2"}, seed=3, source=source)


PROFILE = make_profile()
BYTES = PROFILE.to_bytes()


def test_round_trip(tmp_path):
    path = tmp_path / "made" / "on the way" / "a.profile"
    PROFILE.save(path)
    loaded = load_profile(str(path))
    assert loaded == PROFILE
    assert (hash(loaded), repr(loaded), loaded.summary()) == (hash(PROFILE), repr(PROFILE), PROFILE.summary())
    for key, known in PROFILE.sites.items():
        found = loaded.sites[key]
        for name in ("calls", "scores", "drawn", "observed", "segments"):
            assert getattr(found, name) == getattr(known, name)
        assert {k: str(v) for k, v in vars(found.site).items()} == {k: str(v) for k, v in vars(known.site).items()}
    assert loaded.source == PROFILE.source
    assert "country=NZ, 11 rows" in loaded.summary() and "900 rows seen  country: NZ 1.0%" in loaded.summary()
    assert loaded.sites["mlp.0#0:output"].site.M.free_symbols
    mean = PROFILE.sites["mlp.0#0:output"].lhs.distribution.mean
    assert torch.equal(loaded.sites["mlp.0#0:output"].lhs.distribution.mean, mean)
    assert [p.name for p in path.parent.iterdir()] == ["a.profile"]


def test_equal_profiles_are_equal_bytes(tmp_path):
    assert make_profile().to_bytes() == BYTES
    assert make_profile().fingerprint == PROFILE.fingerprint
    assert make_profile(seed=1) != PROFILE
    assert parse_profile(BYTES).to_bytes() == BYTES


def test_a_header_whose_length_looks_like_a_pickle_is_read():
    """The file begins with the header's length: one in 32 has the byte a pickle begins with."""
    found = set()
    for length in range(0, 400, 8):
        profile = dataclasses.replace(PROFILE, created_with={"padding": "x" * length})
        data = profile.to_bytes()
        found.add(data[0])
        assert parse_profile(data) == profile
    assert 0x80 in found


def test_an_empty_profile_round_trips():
    assert parse_profile(Profile({}).to_bytes()) == Profile({})


def test_a_failed_save_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "a.profile"
    PROFILE.save(path)

    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr("os.replace", fail)
    with pytest.raises(OSError, match="disk full"):
        make_profile(seed=1).save(path)
    assert load_profile(path) == PROFILE
    assert len(list(tmp_path.iterdir())) == 1


def test_errors_of_a_site():
    site = PROFILE.sites["mlp.0#0:output"]
    assert site.error("fp8_rowwise") == ErrorScore(0.1, 28.0, 0.03)
    assert site.error("fp16") == ErrorScore(math.inf, -math.inf, 0.1)
    assert site.error("bf16") is None
    assert (site.observed_M, site.observed_batch) == (32, 1)


def test_find_prefers_the_key_with_the_source():
    site = PROFILE.sites["mlp.0#0:output"].site
    assert PROFILE.find(site) is PROFILE.sites[site.key]
    assert PROFILE.find(dataclasses.replace(site, M=sympy.Integer(9))) is PROFILE.sites[site.key]
    assert PROFILE.find(dataclasses.replace(site, K=sympy.Integer(9))) is None  # the model has changed
    gradient = dataclasses.replace(site, key="mlp.0#0:grad_weight", role="grad_weight", source="x.py:3")
    assert PROFILE.find(gradient) is PROFILE.sites["mlp.0#0:grad_weight@x.py:3"]
    assert PROFILE.find(dataclasses.replace(site, key="other#0:output")) is None


def with_header(**changes):
    """A well-formed file of ours with other values in the metadata."""
    length = struct.unpack("<Q", BYTES[:8])[0]
    header = json.loads(json.loads(BYTES[8 : 8 + length])["__metadata__"][FORMAT])
    tensors = safetensors.torch.load(BYTES)
    return safetensors.torch.save(tensors, {FORMAT: json.dumps({**header, **changes})})


FOREIGN = {
    "empty": (b"", "is empty"),
    "short": (b"\x10\0", "no safetensors file"),
    "text": (b"hello, this is not a profile", "no safetensors file"),
    "random": (bytes(range(7, 200)), "no safetensors file"),
    "pickle": (pickle.dumps({"a": 1}), "never reads"),
    "zip": (b"PK\x03\x04rest of a torch.save file", "never reads"),
    "safetensors": (safetensors.torch.save({"x": torch.ones(3)}), "not written by loka"),
    "other metadata": (safetensors.torch.save({"x": torch.ones(3)}, {"format": "pt"}), "not written by loka"),
    "metadata of another kind": (safetensors.torch.save({}, {FORMAT: "[1]"}), "not written by loka"),
    "metadata not JSON": (safetensors.torch.save({}, {FORMAT: "{"}), "damaged header"),
    "half": (BYTES[: len(BYTES) // 8], "truncated"),
    "one byte short": (BYTES[:-1], "damaged or truncated"),
    "one byte more": (BYTES + b"\0", "damaged or truncated"),
    "newer": (with_header(version=4), "upgrade loka"),
    "older": (with_header(version=1), "has profile version 1, this loka reads 3; make the profile anew"),
    "no version": (with_header(version=None), "no profile version"),
    "checksum": (with_header(checksum="0"), "does not match its checksum"),
    "content": (with_header(content="{}"), "does not match its checksum"),
    "deep": (struct.pack("<Q", 200_000) + b'{"a":' * 40_000, "damaged header"),
}


@pytest.mark.parametrize("name", FOREIGN)
def test_what_is_no_profile_is_an_error_that_says_so(name, tmp_path):
    data, message = FOREIGN[name]
    path = tmp_path / "file"
    path.write_bytes(data)
    with pytest.raises(ProfileError, match=message) as caught:
        load_profile(path)
    assert str(path) in str(caught.value)


def test_missing_and_directory(tmp_path):
    for path in (tmp_path, tmp_path / "missing"):
        with pytest.raises(ProfileError, match="cannot read"):
            load_profile(path)


def test_valid_checksum_of_nonsense():
    from loka_compile.probe.profile import _checksum

    for content in ("{}", "[]", '{"sites": {"a": {}}, "created_with": {}, "seed": 0}', "{"):
        with pytest.raises(ProfileError, match="malformed"):
            parse_profile(with_header(content=content, checksum=_checksum(content, safetensors.torch.load(BYTES))))


def parse_or_refuse(data):
    with contextlib.suppress(ProfileError):
        assert parse_profile(data) == PROFILE


@given(st.integers(0, len(BYTES) - 1), st.integers(1, 255))
@settings(max_examples=300, deadline=None)
def test_a_flipped_byte_never_passes_for_other_content(place, flip):
    data = bytearray(BYTES)
    data[place] ^= flip
    parse_or_refuse(bytes(data))


@given(st.integers(0, len(BYTES) - 1))
@settings(max_examples=100, deadline=None)
def test_a_truncated_file_is_refused(length):
    with pytest.raises(ProfileError):
        parse_profile(BYTES[:length])


@given(st.binary(max_size=300))
def test_random_bytes_are_refused(data):
    with pytest.raises(ProfileError):
        parse_profile(data)


@given(st.integers(0, len(BYTES)), st.binary(min_size=1, max_size=40), st.integers(0, 40))
@settings(max_examples=150, deadline=None)
def test_spliced_bytes_never_pass_for_other_content(place, data, removed):
    parse_or_refuse(BYTES[:place] + data + BYTES[place + removed :])
