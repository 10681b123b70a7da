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
    "Make a model with random weights; a configuration may be given instead of the name of a family."
    torch.manual_seed(0)
    config = AutoConfig.for_model(kind, **every.get(kind, {}) | more) if isinstance(kind, str) else kind
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


# Every other architecture: its own default configuration with small numbers.
SIZES = {}
def set_size(value, *settings): SIZES.update(dict.fromkeys(settings, value))
set_size(32, *"""hidden_size n_embd d_model dim_model emb_dim embedding_size word_embed_proj_dim embedding_dim lru_width
    backbone_hidden_size projection_dim output_proj_dims output_hidden_size vision_output_dim""".split())
set_size(L, *"""num_hidden_layers n_layer n_layers num_layers encoder_layers decoder_layers num_decoder_layers
    num_encoder_layers depth num_global_layers num_blocks linear_num_key_heads""".split())
set_size(H, *"""num_attention_heads n_head n_heads num_heads encoder_attention_heads decoder_attention_heads
    num_encoder_attention_heads num_decoder_attention_heads attention_heads num_experts n_routed_experts
    num_local_experts moe_num_experts num_routed_experts qk_rope_head_dim qk_nope_head_dim rotary_dim index_n_heads
    index_topk linear_num_value_heads sliding_window window_size attention_window_size local_attention patch_size
    linear_num_heads swa_num_attention_heads""".split())
set_size(V, *"""intermediate_size n_inner ffn_dim encoder_ffn_dim decoder_ffn_dim d_ff d_inner dff dim_ff feed_forward_size
    ffn_hidden_size ff_embed_dim shared_intermediate_size intermediate_size_mlp mlp_dim vocab_size
    vocab_size_per_layer_input pronunciation_vocab_size shape_vocab_size max_position_embeddings n_positions n_ctx
    max_seq_len max_target_positions max_source_positions max_length_position""".split())
set_size(2, *"num_experts_per_tok num_experts_per_token moe_k moe_topk top_k_experts swa_num_key_value_heads".split())
set_size(16, *"""moe_intermediate_size moe_shared_expert_intermediate_size shared_expert_intermediate_size head_dim
    expert_ffn_hidden_size expert_dim moe_ffn_hidden_size kv_channels attention_head_dim""".split())
set_size(8, *"""q_lora_rank kv_lora_rank v_head_dim o_lora_rank index_head_dim linear_key_head_dim linear_value_head_dim
    mamba_head_dim mamba_headdim mamba_d_head mamba_d_state ssm_state_size state_size time_step_rank mamba_dt_rank
    hidden_size_per_layer_input laurel_rank image_size linear_head_dim swa_head_dim dim_head""".split())
set_size(1, *"""n_group topk_group n_shared_experts num_shared_experts moe_num_shared_experts n_groups mamba_n_groups
    mamba_ngroups""".split())
SIZES |= ids | dict(decoder_start_token_id=1)

rope = dict(rope_theta=1e4, rope_type="default")
mamba = dict(mamba_n_heads=8, mamba_d_head=8, mamba_expand=2)
mla = dict(head_dim=4, qk_rope_head_dim=4)
decoder = dict(is_decoder=True)
gemma4 = dict(layer_types=["sliding_attention", "full_attention"]*2, num_hidden_layers=4, num_kv_shared_layers=2,
              global_head_dim=32, num_global_key_value_heads=1)
FEW_EXPERTS = dict(num_experts_per_tok=2, n_group=1, topk_group=1)
special = { # what small numbers alone do not give
    "axk1": mla, "bailing_hybrid": dict(head_dim=8, n_group=1, topk_group=1),
    "bamba": mamba | dict(attn_layer_indices=[1]), "falcon_h1": mamba | dict(mamba_d_ssm=64),
    "granitemoehybrid": mamba | dict(layer_types=["linear_attention", "full_attention"]),
    "cohere_compass_text": dict(rope_parameters=dict(full_attention=rope)),
    "deepseek_v2": mla | dict(topk_method="greedy", num_experts_per_tok=2), "deepseek_v3": mla, "longcat_flash": mla | dict(num_layers=L),
    "youtu": mla, "dots1": FEW_EXPERTS | dict(n_routed_experts=4, n_shared_experts=1),
    "gemma3n_text": dict(layer_types=["sliding_attention", "full_attention"]*2, num_hidden_layers=4,
                         num_kv_shared_layers=2, intermediate_size=[64]*4, activation_sparsity_pattern=[0.]*4),
    "gemma4": dict(text_config=gemma4), "gemma4_text": gemma4, "gemma4_unified": dict(text_config=gemma4),
    "gemma4_unified_text": gemma4, "helium": dict(head_dim=8), "gpt_neo": listed["gpt_neo"],
    "hunyuan_v1_dense": dict(rope_parameters=rope, head_dim=16),
    "hunyuan_v1_moe": dict(rope_parameters=rope, head_dim=16),
    "jamba": dict(attn_layer_period=2, attn_layer_offset=1), "lfm2": dict(layer_types=["conv", "full_attention"]),
    "lfm2_moe": dict(layer_types=["conv", "full_attention"]), "ministral": dict(rope_parameters=rope, head_dim=16),
    "nemotron": dict(head_dim=8, num_key_value_heads=2),
    "recurrent_gemma": dict(block_types=["recurrent", "attention"], head_dim=8),
    "reformer": decoder | dict(axial_pos_embds_dim=(16, 16), axial_pos_shape=(8, 8), attn_layers=["local", "lsh"],
                               attention_head_size=8),
    "zamba": dict(num_hidden_layers=3, layer_types=["linear_attention", "hybrid", "hybrid"]),
    "zamba2": dict(num_hidden_layers=3, layer_types=["linear_attention", "hybrid", "hybrid"]),
    "zaya": dict(num_experts_per_tok=1), "xmod": decoder | dict(default_language="en_XX"),
}
special |= dict.fromkeys("""bert bert-generation big_bird camembert data2vec-text electra ernie megatron-bert rembert
    roberta roberta-prelayernorm roc_bert roformer xlm-roberta xlm-roberta-xl""".split(), decoder)

def merge(a, b):
    inner = {k: merge(a[k], v) for k, v in b.items() if isinstance(v, dict) and isinstance(a.get(k), dict)}
    return a | b | inner

def small_numbers(kind, default):
    "Shrink a configuration, given as a dictionary."
    small = {k: SIZES[k] for k, v in default.items() if k in SIZES and (isinstance(v, (int, list)) or k in ids)}
    if kv := default.get("num_key_value_heads"):
        small["num_key_value_heads"] = H if kv == default.get("num_attention_heads") else 2
    if isinstance(types := default.get("layer_types"), list) and kind not in ("bamba", "jamba"): # each kind once
        kept = list(dict.fromkeys(types))*(1 + (len(set(types)) == 1))
        small |= dict(layer_types=kept) | {k: len(kept) for k in ("num_hidden_layers", "num_layers") if k in default}
        if mlp := default.get("mlp_layer_types"): small["mlp_layer_types"] = (list(dict.fromkeys(mlp))*2*L)[:len(kept)]
    inner = {k: v for k, v in default.items() if isinstance(v, dict) and "model_type" in v}
    return small | {k: small_numbers(v["model_type"], v) | dict(model_type=v["model_type"]) for k, v in inner.items()}

def small_config(kind):
    more = special.get(kind, {})
    try: default = AutoConfig.for_model(kind)
    except (KeyError, TypeError, ValueError): default = AutoConfig.for_model(kind, **more)
    return AutoConfig.for_model(kind, **merge(small_numbers(kind, default.to_dict()), more))
