"The cost model's counts against real modules of several families."
import numpy as np, pytest, torch
from torch import nn
from transformers import (AutoModelForCausalLM, BloomConfig, GPT2Config, GPTJConfig, GPTNeoConfig, GPTNeoXConfig, LlamaConfig, OPTConfig, Qwen2Config)
from transformers.pytorch_utils import Conv1D

from fairness_repair.language.costs import model_size, architectures, forward, generation, machines, paper_plans, plan_hours, reading

configs = {
    "gpt2": GPT2Config(n_embd=32, n_layer=2, n_head=4, vocab_size=50, n_positions=64),
    "gpt-neo": GPTNeoConfig(hidden_size=32, num_layers=2, num_heads=4, attention_types=[[["global", "local"], 1]], vocab_size=50, max_position_embeddings=64),
    "gpt-j": GPTJConfig(n_embd=32, n_layer=2, n_head=4, rotary_dim=4, vocab_size=50, n_positions=64),
    "gpt-neox": GPTNeoXConfig(hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64, vocab_size=50),
    "opt": OPTConfig(hidden_size=32, num_hidden_layers=2, num_attention_heads=4, ffn_dim=64, vocab_size=50, word_embed_proj_dim=32),
    "bloom": BloomConfig(hidden_size=32, n_layer=2, n_head=4, vocab_size=50),
    "llama, grouped": LlamaConfig(hidden_size=32, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, intermediate_size=64, vocab_size=50),
    "qwen2": Qwen2Config(hidden_size=32, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, intermediate_size=64, vocab_size=50)}


@pytest.mark.parametrize("family", configs)
def test_products_are_those_of_a_real_forward_pass(family):
    "Multiplications of all linear layers, counted while a model runs."
    config = configs[family]
    model, counted = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval(), []
    for m in model.modules():
        if isinstance(m, (nn.Linear, Conv1D)): m.register_forward_hook(lambda m, x, y: counted.append(2*m.weight.numel()*x[0].numel()//x[0].shape[-1]))
    with torch.inference_mode(): cache = model(input_ids=torch.zeros(3, 7, dtype=torch.long), use_cache=True).past_key_values
    a = model_size(config)
    attention = 4*3*7*7*a.attended
    assert forward(a, 3, 7, 7, scored=7)[0] - attention == sum(counted)
    kept = sum(layer.keys.numel() + layer.values.numel() for layer in cache.layers)
    assert 3*7*a.cached == kept


def test_published_sizes():
    totals = {name: (a := model_size(c)).body + a.head for name, c in architectures.items()}
    for name, billions in {"Distilgpt-2": .081, "GPT-2": .124, "GPT-Neo-125M": .124, "GPT-Neo-1.3B": 1.31, "GPT-J-6B": 5.85, "Llama-2-7B": 6.61, "Llama-3-8B": 7.50}.items():
        assert abs(totals[name]/1e9 - billions)/billions < .03, (name, totals[name])


def test_work_grows_as_it_should():
    a = model_size(configs["gpt2"])
    one, two = (sum(reading(a, [32]*k, tokens=32).values()) for k in (1, 2))
    np.testing.assert_allclose(two, 2*one)
    few, many = (generation(a, [8]*k, new_tokens=5, batch=64)["new tokens"] for k in (4, 8))
    assert many[0] == 2*few[0] and many[1] < 2*few[1] and many[2] == few[2]


def test_a_faster_card_is_never_slower():
    for model, config in architectures.items():
        a = model_size(config)
        for plans in paper_plans(model, 100).values():
            for plan in plans: assert plan_hours(plan, a, machines["H200"]) <= plan_hours(plan, a, machines["A6000"])
