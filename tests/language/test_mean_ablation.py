"Mean ablation: the means, every way of measuring with them, and saved models in every architecture that can keep them."
import json

import numpy as np, pandas as pd, pytest, torch
from transformers import AutoModelForCausalLM

from fairness_repair.core import InputError, paths
from fairness_repair.language.ablation import ByLayer
from fairness_repair.language.attention import attention_output_projections
from fairness_repair.language.batched import Batched
from fairness_repair.language.cluster import Distributed
from fairness_repair.language.evaluator import Evaluator
from fairness_repair.language.head_effects import measure_head_effects
from fairness_repair.language.head_gradients import heads_gated
from fairness_repair.language.heads import heads_dropped, prune, save_pruned
from fairness_repair.language.mean_ablation import (HeadMeans, compare_ablations, lowest_perplexity,
                                                    mean_head_outputs, output_bias_setting, output_biases,
                                                    with_mean_ablation)
from fairness_repair.language.model_metrics import NextTokenToxicity, TextPerplexity
from fairness_repair.language.models import LM, load, read_model
from fairness_repair.language.prompts import load_prompts, sample_prompts
from fairness_repair.language.texts import load_text
from fairness_repair.states import SearchSpace, random_states
from fairness_repair.toy_models.grammar import INSULTS

from families import build, fingerprint, logits, small_config, tokenizer

table = pd.read_csv(paths.data/"architectures.csv", keep_default_na=False)
with_heads = list(table["family"][table["outcome"] == "heads"])
refused = """codegen cwm emu3 exaone4 exaone_moe glm glm4 glm4_moe got_ocr2 gpt_neox_japanese gptj helium inkling2_text
    inkling_text internlm3 jamba kolibri1 lfm2 lfm2_moe mimo_v2_flash minimax minimax_m2 minimax_m3_vl_text
    ministral ministral3
    mistral mixtral mllama mpt nemotron_h phi3 phi4_multimodal qwen2 qwen2_moe solar_open stablelm""".split()


quick = """bamba bloom deepseek_v3 ernie4_5_moe falcon gemma4 gpt2 gpt_neox gptj internlm3 llama mistral opt phi qwen2
    qwen3
    seed_oss""".split()

def with_random_means(model, name="mine"):
    rng = np.random.default_rng(0)
    values = [rng.normal(size=(p.n_heads, p.head_dim)).astype(np.float32) for p in attention_output_projections(model)]
    return LM(name, model, tokenizer()).with_means(HeadMeans(tuple(values), dict(tokens=7)))

def differ(a, b):
    "Whether float32 logits differ by more than the order of a sum of a thousand products explains."
    return (a - b).abs().max() > 1000*torch.finfo(torch.float32).eps*max(1, a.abs().max())

def settings(lm): return lm.model.config.to_dict() | dict(architectures=None) # which saving writes

def some_of(families):
    "All families, most of them only in the slow tests."
    return [pytest.param(f, marks=[] if f in quick else pytest.mark.slow) for f in families]

@pytest.mark.parametrize("family", some_of(sorted(set(with_heads) - set(refused))))
def test_saved_model(family, tmp_path):
    "Plain transformers computes what the masked model computes; the model in memory is as before."
    zero = build(small_config(family))
    lm = with_random_means(zero)
    mask, before, config = np.arange(lm.n_heads_total) % 3 == 1, fingerprint(lm.model), settings(lm)
    with heads_dropped(lm.model, mask): masked = logits(lm.model)
    with heads_dropped(zero, mask): assert differ(masked, logits(zero))
    with output_biases(lm): save_pruned(lm, mask, tmp_path)
    assert fingerprint(lm.model) == before and settings(lm) == config
    attention = lm.model.config._attn_implementation
    plain, info = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32, attn_implementation=attention,
                                                       output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    assert not differ(logits(plain.eval())[..., 1:], masked[..., 1:]) # loading may zero the row of padding

@pytest.mark.parametrize("family", some_of(refused))
def test_refused(family):
    with pytest.raises(InputError, match="cannot keep the means of dropped heads"):
        output_bias_setting(small_config(family))


@pytest.fixture(scope="module")
def lm(): return load("tiny", device="cpu")

@pytest.fixture(scope="module")
def mean_lm(lm): return with_mean_ablation(lm, load_text("tiny", "search"), tokens=300)

@pytest.fixture(scope="module")
def text(lm): return TextPerplexity(lm, load_text("tiny", "selection"), tokens=300)

@pytest.fixture(scope="module")
def toxicity(lm): return NextTokenToxicity(lm, sample_prompts(load_prompts("tiny", "gender")["search"], 3), INSULTS)

several = np.vstack([np.eye(16, dtype=bool)[[0, 9, 8]], random_states(SearchSpace(16, 2, 8), 3, rng=1)])


@pytest.mark.parametrize("tokens", [1, 50, 4096], ids=lambda n: f"{n} tokens per batch")
def test_means_are_those_of_all_positions(lm, text, tokens):
    found, rows = mean_head_outputs(lm, text, tokens=tokens), [[] for _ in lm.projections]
    handles = [p.module.register_forward_pre_hook(lambda module, args, row=row: row.append(args[0][0].double()))
               for p, row in zip(lm.projections, rows)]
    with torch.inference_mode():
        for window in text.windows: lm.model(torch.tensor([window.ids]))
    for handle in handles: handle.remove()
    for values, row in zip(found.values, rows):
        np.testing.assert_allclose(values.ravel(), torch.cat(row).mean(0), atol=1e-6)

def test_bfloat16_is_summed_exactly(text):
    "The mean of bfloat16 outputs, and not a bfloat16 mean: of 300 tokens, that would be off by a hundredth."
    model = load("tiny", device="cpu", dtype="bfloat16")
    one_by_one, together = (mean_head_outputs(model, text, tokens=n) for n in (1, 4096))
    assert one_by_one.values[0].dtype == np.float32
    np.testing.assert_allclose(one_by_one.values[0], together.values[0], atol=1e-3)

def test_overflow_is_refused(text):
    model = load("tiny", device="cpu")
    with torch.no_grad(): model.projections[0].module.weight[0, 0] = np.inf
    with pytest.raises(InputError, match="not finite"): mean_head_outputs(model, text)


class HereTeam:
    "A team of one worker in this process."
    def __init__(self, lm): self.lm, self.weights_hash, self.workers = lm, lm.weights_hash(), [self]
    def stream(self, jobs, backend):
        for name, metric, some in jobs: yield from backend.measure(self.lm, {name: (metric, some)})

backends = {"serial": lambda lm: None, "batched": lambda lm: Batched(4),
            "by layer": lambda lm: ByLayer(rows=5, tokens=70),
            "workers": lambda lm: Distributed(HereTeam(lm))}

@pytest.mark.parametrize("backend", backends)
def test_every_backend_writes_the_means(mean_lm, text, toxicity, backend):
    evaluator = Evaluator(mean_lm, toxicity, text, backend=backends[backend](mean_lm))
    evaluator(several)
    for state in several:
        with heads_dropped(mean_lm.model, state): plain = toxicity(mean_lm), text(mean_lm)
        np.testing.assert_allclose(evaluator.scores(state), plain[0], atol=1e-6)
        np.testing.assert_allclose(evaluator.numbers(text, state), plain[1], rtol=1e-5)

def test_one_store_holds_both(lm, mean_lm, text, toxicity):
    zero = Evaluator(lm, toxicity, text)
    mean = Evaluator(mean_lm, toxicity, text, store=zero.store)
    rows = zero(several), mean(several)
    assert mean.counts.reused == 0 and (rows[0]["bias"] != rows[1]["bias"]).all()
    without = {k: v for k, v in mean.to_record()["model"].items() if k not in ("ablation", "means")}
    assert zero.to_record()["model"] == without
    other = Evaluator(with_mean_ablation(lm, load_text("tiny", "report"), tokens=300), toxicity, text, store=zero.store)
    assert len(other.missing(several)) == 2 # means over another text are another measurement
    effects = [measure_head_effects(x, toxicity, n_blocks=3, store=zero.store).direct for x in (lm, mean_lm)]
    assert (effects[0] != effects[1]).any()

def test_team_with_other_means_is_refused(lm, mean_lm, text):
    distributed = Distributed(HereTeam(lm))
    with pytest.raises(InputError, match="or drops heads in another way"):
        next(distributed.measure(mean_lm, dict(a=(text, several))))


def test_gates_end_at_the_means(mean_lm, toxicity):
    state, batch = several[-1], toxicity.padded(mean_lm)
    gates = torch.tensor(1. - state, dtype=torch.float32)[None]
    with torch.inference_mode(), heads_gated(mean_lm.model, gates):
        gated = toxicity.word_probability(mean_lm, batch)
    with heads_dropped(mean_lm.model, state):
        np.testing.assert_allclose(gated, toxicity(mean_lm), atol=1e-6)

def test_gradient_equals_finite_differences(mean_lm, toxicity):
    "Central differences of float32 probabilities at a step of 0.1: errors of the order 1e-7/0.1 and of its square."
    batch, ones = toxicity.padded(mean_lm), torch.ones(1, 16)
    found = toxicity.gradients(mean_lm, np.ones(16)).direct.mean(0)
    def at(head, gate):
        gates = ones.clone()
        gates[0, head] = gate
        with torch.inference_mode(), heads_gated(mean_lm.model, gates):
            return toxicity.word_probability(mean_lm, batch).mean().item()
    differences = [(at(head, 1.1) - at(head, .9))/.2 for head in range(16)]
    np.testing.assert_allclose(found, differences, atol=.02*np.abs(differences).max())


def test_rows_have_masks_of_their_own(mean_lm):
    ids, masks = torch.tensor([[5, 6, 7, 8]]*4), several[:4]
    with heads_dropped(mean_lm.model, masks): together = logits(mean_lm.model, ids)
    for row, mask in enumerate(masks):
        with heads_dropped(mean_lm.model, mask):
            assert not differ(logits(mean_lm.model, ids)[row], together[row])

def test_pruning_without_a_bias_says_what_to_do():
    lm = with_random_means(build("llama"))
    before = fingerprint(lm.model)
    with pytest.raises(InputError, match=r"inside `with output_biases\(lm\):`, or use zero ablation"):
        prune(lm.model, np.eye(8, dtype=bool)[3])
    assert fingerprint(lm.model) == before

def test_biases_go_after_an_error():
    lm = with_random_means(build("llama"))
    before = fingerprint(lm.model), settings(lm)
    with pytest.raises(KeyboardInterrupt), output_biases(lm): raise KeyboardInterrupt
    assert (fingerprint(lm.model), settings(lm)) == before

def test_zero_ablation_adds_no_bias(tmp_path):
    lm = LM("mine", build("mistral"), tokenizer())
    with output_biases(lm): save_pruned(lm, np.eye(8, dtype=bool)[3], tmp_path)
    assert set(json.loads((tmp_path/"state.json").read_text())) == {"model", "n_layers", "n_heads", "dropped"}
    with heads_dropped(lm.model, np.eye(8, dtype=bool)[3]): expected = logits(lm.model)
    assert torch.equal(logits(read_model("mine", tmp_path)), expected)

def test_lowest_perplexity():
    table = pd.DataFrame(dict(ablation=["zero"]*3 + ["mean"]*2, bias_ratio=[.7, .5, .4, .9, .5],
                              perplexity_ratio=[1.3, 1.2, 1.4, 1.0, 1.1]))
    found = lowest_perplexity(table, (1, .5, .45))
    assert found["zero"].tolist() == [1.2, 1.2, 1.4] and found["mean"].tolist()[:2] == [1., 1.1]
    assert np.isnan(found.loc[.45, "mean"])

def test_comparison_is_relative_to_the_unmodified_model(lm, mean_lm, text):
    evaluators = {name: Evaluator(model, None, text) for name, model in dict(zero=lm, mean=mean_lm).items()}
    found = compare_ablations(evaluators, several[:2])
    assert found["ablation"].tolist() == ["zero", "zero", "mean", "mean"] and "bias_ratio" not in found
    original = evaluators["zero"].row(np.zeros(16, bool))["perplexity"]
    np.testing.assert_allclose(found["perplexity"], found["perplexity_ratio"]*original)
