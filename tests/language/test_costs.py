"The cost model's counts against real modules of several families."
import numpy as np, pytest, torch
from torch import nn
from transformers import (AutoModelForCausalLM, BloomConfig, GPT2Config, GPTJConfig, GPTNeoConfig,
                          GPTNeoXConfig, LlamaConfig, OPTConfig, Qwen2Config)
from transformers.pytorch_utils import Conv1D

from fairness_repair.language.costs import Machine, evaluator_cost, forward_cost, model_size, seconds
from fairness_repair.language.costs import total_cost
from fairness_repair.language.evaluator import Evaluator
from fairness_repair.language.generation import ForwardPass, generation_passes
from fairness_repair.language.likelihood import reading_passes
from fairness_repair.language.models import load
from fairness_repair.language.subsampling import Subsampling
from fairness_repair.pruning.experiment import build_evaluator, make_config

new = dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=4, vocab_size=50)
gated = new | dict(intermediate_size=64, num_key_value_heads=2)
configs = {
    "gpt2": GPT2Config(n_embd=32, n_layer=2, n_head=4, vocab_size=50, n_positions=64),
    "gpt-neo": GPTNeoConfig(hidden_size=32, num_layers=2, num_heads=4, vocab_size=50,
                            max_position_embeddings=64, attention_types=[[["global", "local"], 1]]),
    "gpt-j": GPTJConfig(n_embd=32, n_layer=2, n_head=4, rotary_dim=4, vocab_size=50, n_positions=64),
    "gpt-neox": GPTNeoXConfig(intermediate_size=64, **new),
    "opt": OPTConfig(ffn_dim=64, word_embed_proj_dim=32, **new),
    "bloom": BloomConfig(hidden_size=32, n_layer=2, n_head=4, vocab_size=50),
    "llama, grouped": LlamaConfig(**gated), "qwen2": Qwen2Config(**gated)}


@pytest.mark.parametrize("family", configs)
def test_products_are_those_of_a_real_forward_pass(family):
    "Multiplications of all linear layers, counted while a model runs."
    config = configs[family]
    model, counted = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval(), []
    def count(m, x, y): counted.append(2*m.weight.numel()*x[0].numel()//x[0].shape[-1])
    for m in model.modules():
        if isinstance(m, (nn.Linear, Conv1D)): m.register_forward_hook(count)
    ids = torch.zeros(3, 7, dtype=torch.long)
    with torch.inference_mode(): cache = model(input_ids=ids, use_cache=True).past_key_values
    size = model_size(config)
    attention = 4*3*7*7*size.attended
    assert forward_cost(size, ForwardPass(3, 7, 7, 7))[0] - attention == sum(counted)
    kept = sum(layer.keys.numel() + layer.values.numel() for layer in cache.layers)
    assert 3*7*size.cached == kept


def gpt_neo(width, layers, heads):
    kinds = [[["global", "local"], layers//2]]
    return GPTNeoConfig(hidden_size=width, num_layers=layers, num_heads=heads, attention_types=kinds)


published = { # the models of the papers -> configuration, parameters in billions
    "Distilgpt-2": (GPT2Config(n_layer=6), .081), "GPT-2": (GPT2Config(), .124),
    "GPT-Neo-125M": (gpt_neo(768, 12, 12), .124), "GPT-Neo-1.3B": (gpt_neo(2048, 24, 16), 1.31),
    "GPT-J-6B": (GPTJConfig(), 5.85), "Llama-2-7B": (LlamaConfig(), 6.61),
    "Llama-3-8B": (LlamaConfig(vocab_size=128256, intermediate_size=14336, num_key_value_heads=8), 7.50)}


@pytest.mark.parametrize("name", published)
def test_published_sizes(name):
    config, billions = published[name]
    size = model_size(config)
    assert abs((size.linear_params + size.lm_head_params)/1e9 - billions)/billions < .03


def test_work_grows_as_it_should():
    size = model_size(configs["gpt2"])
    one, two = (total_cost(size, reading_passes([32]*k, tokens=32)).loc["text"].to_numpy() for k in (1, 2))
    np.testing.assert_allclose(two, 2*one)
    passes = [generation_passes([8]*k, new_tokens=5, batch_size=64) for k in (4, 8)]
    few, many = (total_cost(size, p).loc["new tokens"] for p in passes)
    assert many["operations"] == 2*few["operations"] and many["calls"] == few["calls"]
    assert many["bytes"] < 2*few["bytes"]


def test_a_faster_card_is_never_slower():
    slow, fast = Machine("slow", 1e14, 7e11, 3e-4, "made up"), Machine("fast", 9e14, 5e12, 3e-4, "made up")
    for config, _ in published.values():
        work = total_cost(model_size(config), generation_passes([16]*8, new_tokens=10, batch_size=8))
        assert (seconds(work, fast) <= seconds(work, slow)).all()


def test_a_share_of_the_data_costs_less():
    lm = load("tiny")
    whole = build_evaluator(make_config("tiny"), lm, "search", prompts=12, tokens=2200)
    part = Evaluator(lm, whole.toxicity, whole.text, subsampling=Subsampling(.25, .25))
    ratio = evaluator_cost(part)["operations"]/evaluator_cost(whole)["operations"]
    assert (.15 < ratio).all() and (ratio < .4).all()
