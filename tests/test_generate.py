"Generation on several cores."
import numpy as np, pytest, torch
from transformers import GPT2Config, GPT2LMHeadModel

from fairness_repair.generate import generate
from fairness_repair.models import LM, load

@pytest.fixture(scope="module")
def wide():
    "A random model large enough for batches to be handed out to cores."
    torch.manual_seed(0)
    tokenizer = load("tiny").tokenizer
    model = GPT2LMHeadModel(GPT2Config(vocab_size=len(tokenizer), n_positions=64, n_embd=640, n_layer=3, n_head=4)).eval()
    assert sum(p.numel() for p in model.parameters()) > 1e7
    return LM("wide", model, tokenizer)

@pytest.fixture
def threads():
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)

@pytest.mark.parametrize("inside", [False, True])
def test_cores_do_not_matter(wide, threads, inside):
    texts = ["the man is", "a woman was", "they are", "he", "she is the", "a man"]
    found = []
    for cores in (1, 2):
        threads(cores)
        with torch.inference_mode(inside): found.append(generate(wide, texts, new_tokens=3, batch=2))
        assert torch.get_num_threads() == cores
    assert found[0] == found[1] and len(set(found[0])) > 1
