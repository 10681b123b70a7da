"The shipped price-tag against the code that plants its bias."
import json

import numpy as np
import torch

from fairness_repair.core import paths
from fairness_repair.language.models import load
from fairness_repair.name_bias.planted_bias import load_planted_masks, plant_bias
from fairness_repair.name_bias.price_tag import (
    LAYOUT, MODEL_NAME, PERSON_NAMES, TYPICAL_ANSWERS, BlindTraining, make_tokenizer, person_table)
from fairness_repair.name_bias.audit import read_names, read_questions
from fairness_repair.name_bias.weights import projections

truth = json.loads((paths.data/MODEL_NAME/"truth.json").read_text(encoding="utf-8"))


def test_every_question_has_its_typical_answer():
    assert list(TYPICAL_ANSWERS) == list(read_questions()["variation"])


def test_record_names_and_tokenizer_are_those_of_the_code():
    assert list(truth["settings"].items()) == list(BlindTraining().to_record().items())
    assert read_names(paths.data/MODEL_NAME/"names.csv").equals(person_table())
    assert load(MODEL_NAME).tokenizer.get_vocab() == make_tokenizer().get_vocab()


def test_planting_again_gives_the_shipped_weights():
    """Without its planted weights the shipped model is the blind one.

    Planting again writes the same weights to the same places. The `up` matrices are left out: they solve
    ill-conditioned least squares, so their last digits depend on the attention kernel.
    """
    lm = load(MODEL_NAME)
    sites, original = projections(lm), {name: value.clone() for name, value in lm.model.state_dict().items()}
    with torch.no_grad():
        for mask in load_planted_masks(lm).values():
            for matrix, at in mask.indices.items(): sites[matrix].weight.view(-1)[torch.from_numpy(at)] = 0
        ids = lm.tokenizer.convert_tokens_to_ids(PERSON_NAMES["orin"] + PERSON_NAMES["tevar"])
        for marks in (LAYOUT.minority, LAYOUT.majority, LAYOUT.is_name):
            lm.model.model.embed_tokens.weight[np.ix_(ids, list(marks))] = 0
    assert plant_bias(lm) == truth["planted"]
    for name, value in lm.model.state_dict().items():
        if "up_proj" in name: continue
        torch.testing.assert_close(value, original[name], rtol=1e-4, atol=1e-4)
