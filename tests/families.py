"Architectures to try things on, each with two layers, four heads and small random weights."
import hashlib
from functools import partial

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

L, H, V = 2, 4, 64
ids = dict(bos_token_id=1, eos_token_id=2, pad_token_id=0)
gpt = dict(n_layer=L, n_head=H, n_embd=32, vocab_size=V, n_positions=64) | ids
new = dict(num_hidden_layers=L, num_attention_heads=H, hidden_size=32, intermediate_size=64, vocab_size=V,
           max_position_embeddings=64) | ids
gqa = new | dict(num_key_value_heads=2)
listed = {
    "gpt2": gpt,
    "gpt_neo": dict(num_layers=L, num_heads=H, hidden_size=32, vocab_size=V, max_position_embeddings=64,
                    attention_types=[[["global", "local"], 1]], window_size=4) | ids,
    "gptj": gpt | dict(rotary_dim=4),
    "opt": new | dict(ffn_dim=64, word_embed_proj_dim=32),
    "llama": gqa, "mistral": gqa, "qwen2": gqa,
    "gemma": gqa | dict(head_dim=16), # heads wider than their share of the hidden size
    "phi": gqa, "gpt_neox": new,
}
by_structure = {
    "bloom": dict(n_layer=L, n_head=H, hidden_size=32, vocab_size=V) | ids,
    "falcon": dict(num_hidden_layers=L, num_attention_heads=H, hidden_size=32, vocab_size=V) | ids,
    "gpt_bigcode": gpt, "codegen": gpt | dict(rotary_dim=4),
    "mpt": dict(n_layers=L, n_heads=H, d_model=32, vocab_size=V, max_seq_len=64) | ids,
    "gemma2": gqa | dict(head_dim=16), "gemma3_text": gqa | dict(head_dim=16),
    "qwen3": gqa | dict(head_dim=16),
    "phi3": gqa, "stablelm": gqa, "olmo2": gqa, "mixtral": gqa, "starcoder2": gqa,
    "deepseek_v3": new | dict( # values narrower than keys
        q_lora_rank=8, kv_lora_rank=8, qk_rope_head_dim=4, qk_nope_head_dim=4, v_head_dim=8,
        n_routed_experts=4, moe_intermediate_size=16, n_group=1, topk_group=1, num_experts_per_tok=2),
}
every = listed | by_structure
batch = torch.randint(3, V, (3, 7), generator=torch.Generator().manual_seed(0))


def build(kind, **more):
    torch.manual_seed(0)
    config = AutoConfig.for_model(kind, **every.get(kind, {}) | more)
    make = partial(AutoModelForCausalLM.from_config, config, dtype=torch.float32)
    try: model = make(attn_implementation="sdpa")
    except ValueError: model = make(attn_implementation="eager")
    with torch.no_grad():
        for p in model.parameters(): p.normal_(0, .3) # biases too: a projection's bias must survive
    return model.eval()

def tokenizer():
    words = Tokenizer(models.WordLevel({f"w{i}": i for i in range(V)}, unk_token="w3"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    special = dict(bos_token="w1", eos_token="w2", pad_token="w0", unk_token="w3")
    return PreTrainedTokenizerFast(tokenizer_object=words, **special)

def logits(model, x=batch):
    with torch.no_grad(): return model(x).logits

def fingerprint(model):
    "Hash everything in the state dict, and count all hooks."
    digest = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        digest.update(name.encode() + value.reshape(-1).contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest(), sum(len(m._forward_pre_hooks) for m in model.modules())
