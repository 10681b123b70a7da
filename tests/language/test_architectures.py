"""Every architecture in transformers' causal-LM mapping: its heads are true heads, or it is refused with a reason.

`python tests/language/test_architectures.py` writes data/architectures.csv, the table that the documentation shows."""
import re, sys
from pathlib import Path

if __name__ == "__main__": sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np, pandas as pd, pytest, torch
from torch.overrides import TorchFunctionMode
from transformers import AutoModelForCausalLM
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from fairness_repair.core import InputError, paths
from fairness_repair.language.ablation import ablate_layer, can_skip_layers, record_layers
from fairness_repair.language.attention import attention_output_projections, find_attention, find_layers
from fairness_repair.language import head_gradients
from fairness_repair.language.control_variates import Continuations
from fairness_repair.language.generation import continue_batch, map_batches
from fairness_repair.language.head_gradients import can_share_prompts
from fairness_repair.language.heads import heads_dropped, prune
from fairness_repair.language.model_metrics import TextPerplexity
from fairness_repair.language.models import LM, check_config

from families import V, batch, build, logits, small_config, tokenizer

families = sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)
not_tried = { # why no small one can be made
    "blt": "its tables have 96 M parameters at any size",
    "dbrx": "transformers 5.23 cannot build it: its configuration lacks rope_theta",
    "dots3_note": "its settings per layer do not fit fewer layers",
    "dots3_note_text": "its settings per layer have 38 M parameters at any size",
    "gemma3n": "needs the package timm (its language part, gemma3n_text, has heads)",
    "gemma4_assistant": "continues the cache of another model",
    "gemma4_unified_assistant": "continues the cache of another model",
    "musicgen": "transformers 5.23 cannot build it: its configuration is that of three models",
    "musicgen_melody": "transformers 5.23 cannot build it: its configuration is that of three models",
    "qwen4_exp": "its configuration has no sizes for the indexer",
    "qwen4_exp_text": "its configuration has no sizes for the indexer",
}
norm_over_heads = {"bitnet"} # normalises all heads together, between the softmax and the output projection
mixers, feed_forward = "Mixer$|MambaLayer|DeltaNet|DeltaAttention|Lightning|ShortConv|RecurrentBlock", "MoE$|MLP$"


def outcome(family):
    "A row of the table in the documentation."
    row = dict(family=family, model_class=MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[family], outcome="not tried", layers="",
               layer_types="", other_layers="", why=not_tried.get(family, ""))
    if family in not_tried: return row
    config = small_config(family)
    try: check_config(family, config)
    except InputError as e:
        why = re.fullmatch(r"model '.*?' \(\w+\) (?:does not fit: \w+:? )?(.*)\. Use a .*", str(e))[1]
        return row | dict(outcome="refused", why=why)
    with torch.device("meta"): model = AutoModelForCausalLM.from_config(config)
    found, layers = {p.layer for p in attention_output_projections(model)}, find_layers(model)[1]
    others = [layer for i, layer in enumerate(layers) if i not in found]
    modules = [find_class(layer, mixers) or find_class(layer, feed_forward) for layer in others]
    types = getattr(config.get_text_config(), "layer_types", None) or []
    return row | dict(outcome="heads", layers="some" if others else "all",
                      layer_types=", ".join(dict.fromkeys(t for i, t in enumerate(types) if i in found and others)),
                      other_layers=", ".join(dict.fromkeys(modules)))

def find_class(layer, pattern):
    return next((name for m in layer.modules() if re.search(pattern, name := type(m).__name__)), None)

table = paths.data/"architectures.csv"
rows = pd.read_csv(table, keep_default_na=False).set_index("family", drop=False) if table.exists() else pd.DataFrame()
with_heads = list(rows.index[rows["outcome"] == "heads"]) if len(rows) else []


def test_table_lists_every_family(): assert list(rows.index) == families

@pytest.mark.parametrize("family", families)
def test_table_row(family): assert rows.loc[family].to_dict() == outcome(family)


class HeadZeroed(TorchFunctionMode):
    "Zero one head of each softmax inside attention modules, without knowing how a family lays out its weights."
    def __init__(self, modules, head, n_heads):
        super().__init__()
        self.head, self.n_heads, self.inside = head, n_heads, False
        self.handles = [h for m in modules for h in (m.register_forward_pre_hook(lambda *_: self.enter(True)),
                                                     m.register_forward_hook(lambda *_: self.enter(False)))]
    def enter(self, inside): self.inside = inside
    def remove(self):
        for handle in self.handles: handle.remove()
    def __torch_function__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        if not self.inside or function.__name__ not in ("softmax", "scaled_dot_product_attention"): return out
        heads = out if out.ndim == 4 else out.unflatten(0, (-1, self.n_heads)) # XGLM has (rows*heads, from, to)
        return heads.index_fill(1, torch.tensor(self.head), 0).view(out.shape)

@pytest.fixture(scope="module", params=with_heads)
def lm(request):
    model = build(small_config(request.param))
    assert sum(p.numel() for p in model.parameters()) < 3e6
    return LM(request.param, model, tokenizer())

def differ(a, b):
    "Whether float32 logits differ by more than the order of a sum of a thousand products explains."
    return (a - b).abs().max() > 1000*torch.finfo(torch.float32).eps*max(1, a.abs().max())

def test_slices_are_heads(lm):
    "In each layer: without one head, as the mask has it, is without that head's softmax, and without its weights."
    whole, layers = logits(lm.model), find_layers(lm.model)[1]
    for p in lm.projections:
        state = np.arange(lm.n_heads_total) == p.start + 1
        with heads_dropped(lm.model, state): masked = logits(lm.model)
        assert (masked != whole).any()
        before = p.module.weight.detach().clone()
        prune(lm.model, state)
        assert torch.equal(logits(lm.model), masked) # difference exactly 0
        with torch.no_grad(): p.module.weight.copy_(before)
        if lm.name in norm_over_heads: continue
        with HeadZeroed(find_attention(layers[p.layer]).values(), 1, p.n_heads) as zeroed: by_softmax = logits(lm.model)
        zeroed.remove()
        assert not differ(by_softmax, masked)

def test_layers_with_heads_are_those_of_the_configuration(lm):
    types = getattr(lm.config, "layer_types", None)
    if not types or len(types) != lm.n_layers: return
    without = ("linear_attention", "conv", "mamba", "recurrent", "moe", "mlp")
    assert [p.layer for p in lm.projections] == [i for i, t in enumerate(types) if t not in without]

def test_no_logit_depends_on_a_later_token(lm):
    later = batch.clone()
    later[:, 4:] = (later[:, 4:] + 5) % (V - 4) + 3
    assert not differ(logits(lm.model, later)[:, :4], logits(lm.model)[:, :4])

def test_generation_with_cache_and_padding(lm):
    "Logits of each new token under a mask, from a padded batch with a cache, against whole rows without either."
    prompts = [[5, 6, 7, 8, 9, 10, 11], [12, 13, 14], [20, 21, 22, 23, 24]]
    state = np.isin(np.arange(lm.n_heads_total), [1, lm.n_heads_total - 1])
    def sample(part):
        seen, rows = [], [prompts[i] for i in part]
        handle = lm.model.register_forward_hook(lambda module, args, out: seen.append(out.logits[:, -1]))
        new = continue_batch(lm, rows, torch.arange(len(rows)), 4, forbidden=[0])
        handle.remove()
        return new.tolist(), torch.stack(seen, 1)
    with heads_dropped(lm.model, state):
        for part, (new, found) in map_batches(sample, [len(row) + 4 for row in prompts], lm, batch_size=8):
            for i, more, steps in zip(part, new, found):
                with torch.no_grad(): plain = lm.model(torch.tensor([prompts[i] + more])).logits[0]
                assert not differ(steps, plain[len(prompts[i]) - 1:-1])

def test_one_reading_of_a_prompt_for_several_continuations(lm):
    "Log-probabilities of kept tokens, with the prompt read once, against whole rows."
    if not can_share_prompts(lm): return
    prompts, owners, rng = [[5, 6, 7, 8, 9, 10, 11], [12, 13, 14]], torch.tensor([0, 1, 0]), np.random.default_rng(0)
    kept = rng.integers(3, V, size=(3, 4, 5))
    drawn, gates = Continuations(kept[..., 0], kept, None), torch.rand(2, lm.n_heads_total)
    with torch.no_grad():
        shared = head_gradients.step_log_probabilities(lm, prompts, drawn, owners, gates)
        for i, row in enumerate(owners):
            alone = Continuations(kept[[i], :, 0], kept[[i]], None)
            whole = head_gradients._read_whole(lm, [prompts[row]], torch.tensor(alone.tokens),
                                               torch.zeros(1, dtype=int),
                                               gates[row][None])
            assert not differ(shared[i], whole.gather(2, torch.tensor(alone.kept)).float().log_softmax(-1)[0])

def test_ablation_by_layer(lm):
    "Each head of the last layer by layer, where that shortcut is taken."
    if not can_skip_layers(lm): return
    metric, p = TextPerplexity(lm, ["w5 w6 w7 w8 w9 w10", "w20 w21 w22"], window=16), lm.projections[-1]
    shared = ablate_layer(lm, record_layers(lm, metric), p.layer, [0, 1])
    for head, found in enumerate(shared):
        with heads_dropped(lm.model, np.arange(lm.n_heads_total) == p.start + head): plain = metric(lm)
        np.testing.assert_allclose(found, plain, rtol=1e-4, atol=1e-5)


if __name__ == "__main__": pd.DataFrame(map(outcome, families)).to_csv(table, index=False)
