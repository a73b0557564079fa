"""Certificates: what they say, that edits show, and that they travel with the table."""

import json
import math

import polars as pl
import pytest

from chapbook.core.errors import Error
from chapbook.label_dp.certificate import METADATA_KEY, Certificate, Spend, total_epsilon


def certificate(**changes) -> Certificate:
    fields = {
        "mechanism": "rr-with-prior",
        "num_classes": 10,
        "epsilon": 1.0,
        "spends": (
            Spend("all", "histogram prior", 0.05, 100),
            Spend("all", "rr-with-prior", 0.95, 100),
        ),
        "seeded": False,
        "schema": {"x": "Float64", "y": "Int64"},
        "verification": {"holds": True},
        "warnings": ("a warning",),
        "details": {"rows": 100},
    }
    return Certificate(**(fields | changes))


def test_a_certificate_survives_its_file(tmp_path):
    made = certificate()
    made.save(tmp_path / "cert.json")
    read = Certificate.load(tmp_path / "cert.json")
    assert read == made
    assert read.hash == made.hash


def test_an_infinite_epsilon_is_valid_json_and_comes_back():
    made = certificate(epsilon=math.inf, spends=(Spend("all", "rr", math.inf, 3),))
    json.loads(made.to_json(), parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    assert Certificate.from_json(made.to_json()) == made


@pytest.mark.parametrize(
    ("old", "new"),
    [('"epsilon": 1.0', '"epsilon": 0.1'), ('"seeded": false', '"seeded": true')],
)
def test_an_edit_shows(tmp_path, old, new):
    text = certificate().to_json()
    assert old in text
    (tmp_path / "cert.json").write_text(text.replace(old, new, 1))
    with pytest.raises(Error, match=r"cert\.json: the certificate was edited"):
        Certificate.load(tmp_path / "cert.json")


@pytest.mark.parametrize("text", ["", "{}", "[1]", "not json", '{"hash": "x", "format": "other"}'])
def test_what_is_no_certificate_is_refused(tmp_path, text):
    (tmp_path / "cert.json").write_text(text)
    with pytest.raises(Error, match="not a label-dp certificate"):
        Certificate.load(tmp_path / "cert.json")


def test_a_certificate_is_read_from_parquet_metadata(tmp_path):
    path = tmp_path / "private.parquet"
    made = certificate()
    pl.DataFrame({"x": [1]}).write_parquet(path, metadata={METADATA_KEY: made.to_json()})
    assert Certificate.load(path) == made
    pl.DataFrame({"x": [1]}).write_parquet(path)
    with pytest.raises(Error, match="holds no label-dp certificate"):
        Certificate.load(path)
    path.write_bytes(b"no parquet")
    with pytest.raises(Error, match="not a readable Parquet file"):
        Certificate.load(path)


def test_seeded_noise_is_stamped_not_private():
    content = certificate(seeded=True).to_dict()
    assert content["guarantee"] == "seeded: not private"
    assert content["entropy"] == "seeded generator"
    assert not certificate(seeded=True).private
    assert certificate().to_dict()["guarantee"] == "pure 1-LabelDP"


def test_adjacency_names_the_group_that_shares_a_budget():
    assert certificate().to_dict()["adjacency"] == "one label replaced"
    grouped = certificate(group={"column": "user", "largest": 4, "epsilon per record": 0.25})
    assert grouped.to_dict()["adjacency"] == "all labels of one user replaced"


def test_epsilon_adds_up_on_the_same_records_and_is_the_largest_over_disjoint_ones():
    spends = [
        Spend("all", "histogram", 0.05, 10),
        Spend("part 1", "rr", 1.0, 5),
        Spend("part 2", "rr", 2.0, 5),
        Spend("part 1", "rr", 0.5, 5),
    ]
    assert total_epsilon(spends) == pytest.approx(0.05 + max(1.0 + 0.5, 2.0), abs=1e-15)
    assert total_epsilon([]) == 0
    assert total_epsilon([Spend("all", "a", 0.05, 1), Spend("all", "b", 0.95, 1)]) == 1.0
