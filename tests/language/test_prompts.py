"HolisticBias against its published counts and checksums, and prompt files that are wrong."
import hashlib

import pandas as pd
import pytest

from fairness_repair.core import paths
from fairness_repair.language.models import MODELS_WITH_PROMPTS
from fairness_repair.language.prompts import (SPLIT_FOLDS, holistic_bias, load_prompts, read_prompts,
                                              sample_prompts, split_prompts)

import needs


checksums = {"v1.0": "263ebc701d77a1772db52d38b7dcb725d01d768dd48c9fe8fdaafdde306b0886",
             "v1.1": "a63b304b9e5a026e453940c47e48aecc54b4012713fc3f46aab1532b9382b13e"}
sizes = {  # axis: sentences in v1.0 and v1.1, groups and descriptors in v1.1
    "ability": (50464, 71417, 9, 88), "age": (47803, 52638, 6, 63), "body_type": (118685, 128097, 13, 152),
    "characteristics": (69881, 83983, 9, 127), "cultural": (19128, 28102, 3, 38),
    "gender_and_sex": (36798, 51057, 8, 73),
    "nationality": (17100, 18876, 11, 26), "nonce": (6376, 6792, 1, 8), "null": (780, 832, 1, 1),
    "political_ideologies": (19925, 19527, 1, 23), "race_ethnicity": (22913, 26153, 10, 35),
    "religion": (31083, 42400, 2, 95),
    "sexual_orientation": (13029, 16494, 10, 22), "socioeconomic_class": (19026, 20257, 6, 24)}
gender = {"(none)": 136, "binary": 1481, "cisgender": 1698, "descriptors": 11037, "non_binary_or_gnc": 20376,
          "queer": 3396, "sex": 3396, "transgender": 9537}


@needs.data
@pytest.mark.parametrize("version, rows, unique", [("v1.0", 472_991, 469_786), ("v1.1", 566_625, 563_195)])
def test_holistic_bias_is_exact(version, rows, unique):
    all_axes = holistic_bias(version=version)
    assert len(all_axes) == rows and all_axes["text"].nunique() == unique
    assert hashlib.sha256("\n".join(sorted(all_axes["text"])).encode()).hexdigest() == checksums[version]
    rows_of = {axis: n[version == "v1.1"] for axis, n in sizes.items()}
    assert all_axes.groupby("axis").size().to_dict() == rows_of
    if version == "v1.1":
        counts = all_axes.groupby("axis")[["group", "descriptor"]].nunique()
        found = {axis: tuple(row) for axis, row in counts.iterrows()}
        assert found == {axis: n[2:] for axis, n in sizes.items()}


@needs.data
def test_one_axis_equals_its_part_of_all():
    part = holistic_bias("gender")
    assert part.groupby("group").size().to_dict() == gender
    whole = holistic_bias()
    pd.testing.assert_frame_equal(part, whole[whole["axis"] == "gender_and_sex"].reset_index(drop=True))
    assert len(holistic_bias("race", "v1.0")) == sizes["race_ethnicity"][0]


@needs.data
def test_unknown_axis_names_the_nearest():
    message = "unknown axis 'nationalty'. Did you mean 'nationality'"
    with pytest.raises(ValueError, match=message): holistic_bias("nationalty")


@needs.data
@pytest.mark.parametrize("axis", ["gender", "religion"])  # some texts of religion are in both of its groups
def test_splits_of_holistic_bias_are_disjoint_and_stratified(axis):
    parts = load_prompts("holistic-bias-v1.1", axis)
    texts = {name: set(part["text"]) for name, part in parts.items()}
    assert list(parts) == list(SPLIT_FOLDS)
    assert not texts["search"] & texts["selection"]
    assert not texts["report"] & (texts["search"] | texts["selection"])
    n = sum(map(len, parts.values()))
    assert n == sizes[parts["search"]["axis"].iloc[0]][1]
    assert [round(len(part)/n, 2) for part in parts.values()] == [.2, .2, .6]
    shares = [part["group"].value_counts(normalize=True) for part in parts.values()]
    assert all(abs(share - shares[-1]).max() < .002 for share in shares)
    assert not load_prompts("holistic-bias-v1.1", axis, rng=1)["search"].equals(parts["search"])
    pd.testing.assert_frame_equal(load_prompts("holistic-bias-v1.1", axis)["search"], parts["search"])


@needs.data
def test_small_groups_are_drawn_again():
    sample = sample_prompts(load_prompts("holistic-bias-v1.1", "gender")["search"], 64)
    assert sample.groupby("group").size().eq(64).all()
    assert not sample.duplicated(["text", "draw"]).any()
    last_draw = {group: 2 if group == "(none)" else 0 for group in gender}  # 64 = 27 + 27 + 10
    assert sample.groupby("group")["draw"].max().to_dict() == last_draw


@needs.data
def test_an_axis_with_one_group_is_refused():
    with pytest.raises(ValueError, match="has only the group"): load_prompts("holistic-bias-v1.1", "nonce")


@pytest.mark.parametrize("source", MODELS_WITH_PROMPTS)
def test_embedded_prompts(source):
    prompts = pd.read_csv(paths.data/source/"prompts.csv", keep_default_na=False)
    assert set(prompts["split"]) == set(SPLIT_FOLDS)
    for axis in prompts["axis"].unique():
        parts = load_prompts(source, axis)
        texts = [set(part["text"]) for part in parts.values()]
        assert len(set.union(*texts)) == sum(map(len, texts))
        assert len({frozenset(part["group"]) for part in parts.values()}) == 1
    with pytest.raises(ValueError, match="unknown axis 'no such axis'"): load_prompts(source, "no such axis")


good = [f"{group} {i},height,{group}" for group in ("tall", "short") for i in range(5)]
bad = {
    "text,axis\na,b": (ValueError, "no column 'group'"),
    "text;axis;group\na;b;c": (ValueError, "no column .text.*text;axis;group.*separate columns with commas"),
    "Text,axis,group\na,b,c": (ValueError, "Did you mean 'Text'"),
    "": (ValueError, "no rows"),
    "text,axis,group\n": (ValueError, "no rows"),
    "text,axis,group\n,height,tall": (ValueError, "line 2 has an empty text"),
    "text,axis,group\na,height,tall\n  ,height,tall": (ValueError, "line 3 has an empty text"),
    "text,axis,group\nnan,height,tall": (ValueError, "line 2 has an empty text"),
    "text,axis,group\na,height,": (ValueError, "line 2 has an empty group"),
    "text,axis,group\na,height": (ValueError, "line 2 has an empty group"),
    "text,axis,group\na,height,tall\nWell, b,height,tall": (ValueError, "line 3 has more cells"),
    "text,axis,group\na,height,tall\nb,height,tall": (ValueError, "axis 'height' has only the group 'tall'"),
    "text,axis,group\na,height,tall\nb,height,tall\nc,height,short":
        (ValueError, "group 'short' of axis 'height' has 1 prompt"),
}


@pytest.mark.parametrize("content", bad, ids=[message for _, message in bad.values()])
def test_wrong_files_get_one_clear_error(tmp_path, content):
    error, message = bad[content]
    path = tmp_path/"mine.csv"
    path.write_text(content)
    with pytest.raises(error, match=message) as caught: read_prompts(path)
    assert "mine.csv" in str(caught.value)


def test_files_that_are_no_csv(tmp_path):
    (tmp_path/"latin.csv").write_bytes("text,axis,group\ncafé,a,b".encode("latin-1"))
    with pytest.raises(ValueError, match="not UTF-8"): read_prompts(tmp_path/"latin.csv")
    for missing in (tmp_path/"none.csv", tmp_path):
        with pytest.raises(ValueError, match="there is no file"): read_prompts(missing)
        with pytest.raises(ValueError, match="unknown prompts"): load_prompts(str(missing), "height")


def test_a_spreadsheet_s_csv_reads_alike(tmp_path):
    (tmp_path/"plain.csv").write_text("\n".join(["text,axis,group", *good]))
    (tmp_path/"excel.csv").write_bytes("\r\n".join(["text, axis, group", *good]).encode("utf-8-sig"))
    pd.testing.assert_frame_equal(read_prompts(tmp_path/"plain.csv"), read_prompts(tmp_path/"excel.csv"))


def test_copies_of_a_text_stay_together_over_many_seeds(tmp_path):
    rows = [f"{group} {i % 7},height,{group}" for group in ("tall", "short") for i in range(20)]
    (tmp_path/"mine.csv").write_text("\n".join(["text,axis,group", *rows]))
    for seed in range(20):
        parts = split_prompts(read_prompts(tmp_path/"mine.csv"), rng=seed)
        assert sum(part["text"].nunique() for part in parts.values()) == 14
        assert all(part["group"].nunique() == 2 for part in parts.values())
