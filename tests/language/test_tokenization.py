"Prompts are continued, continuations read as a reader sees them, and text alone is scored, under every tokenizer."
import pytest, torch
from transformers import AutoConfig, AutoModelForCausalLM, ByT5Tokenizer

from fairness_repair.core import InputError
from fairness_repair.language.generation import continue_batch, generate, make_sampler, sample_token
from fairness_repair.language.model_metrics import NextTokenToxicity, SampledToxicity, TextPerplexity, tokenizer_hash
from fairness_repair.language.models import LM
from fairness_repair.language.tokenization import (added_tokens, decode_all, decode_continuations, n_positions,
                                                   padding_id, prompt_ids)
from fairness_repair.language.toxicity import load_scorer
import pandas as pd

from families import build, tokenizer
from tokenizers_of_each_family import families

small = dict(num_hidden_layers=2, num_attention_heads=4, hidden_size=32, intermediate_size=64)
gpt2 = dict(n_layer=2, n_head=4, n_embd=32, n_positions=32)


def model_of(kind, vocabulary, **more):
    torch.manual_seed(0)
    config = AutoConfig.for_model(kind, vocab_size=vocabulary, **more)
    model = AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for p in model.parameters(): p.normal_(0, .3)
    return model


@pytest.fixture(params=families)
def own(request): return families[request.param]()


def lm_with(tokens): return LM("mine", model_of("gpt2", len(tokens), **gpt2), tokens)


@pytest.mark.parametrize("prompt, more", [("the man is", " a good doctor"), ("she", " doesn't like it"),
                                          ("they are", " kind. he's fine"), ("a woman", ", but happy")])
def test_a_scorer_gets_the_text_as_a_reader_sees_it(own, prompt, more):
    "The continuation has the space that separates it from its prompt, or none before a comma."
    whole = own(prompt + more, add_special_tokens=False)["input_ids"]
    rows = prompt_ids(lm_with(own), [prompt])
    given = own(prompt, add_special_tokens=False)["input_ids"]
    assert whole[:len(given)] == given
    found = decode_continuations(own, rows, [whole[len(given):]])
    shown = own.decode(whole, skip_special_tokens=True) # WordPiece itself shows "he's" as "he's" or "he ' s"
    assert prompt + found[0] == shown
    assert found[0][:1] == more[:1]


def test_byte_level_text_is_as_it_was():
    own = families["byte level"]()
    new = [own(text, add_special_tokens=False)["input_ids"] for text in (" a good", "x", "\n\n Ü€", "'s")]
    assert decode_continuations(own, [[9]]*4, new) == own.batch_decode(new)


def test_special_tokens_are_no_text(own):
    special = own.convert_tokens_to_ids(own.all_special_tokens)
    row = own("the man", add_special_tokens=False)["input_ids"]
    [text] = decode_continuations(own, [row], [[*special, *row]])
    assert not any(token in text for token in own.all_special_tokens) and "the man" in text


def test_decoding_all_equals_one_by_one(own):
    "Random ids, special ones among them, also where the tokenizer tidies the spaces of its text."
    rows = [tuple(row) for row in torch.randint(len(own), (40, 7), generator=torch.Generator().manual_seed(0)).tolist()]
    for tidy in (False, True):
        own.clean_up_tokenization_spaces = tidy
        assert decode_all(own, rows) == [own.decode(list(row), skip_special_tokens=True) for row in rows]
    assert decode_all(own, []) == []


def test_broken_rows_have_no_text(own):
    row = own("the man", add_special_tokens=False)["input_ids"]
    assert decode_continuations(own, [row, row], torch.tensor([[4, -1], [4, 4]]))[0] is None
    assert decode_continuations(own, [row], [[-1]]) == [None] and decode_continuations(own, [], []) == []


def test_prompts_are_continued_not_closed(own):
    lm, text = lm_with(own), "the man is"
    before, after = added_tokens(own, text)
    [row] = prompt_ids(lm, [text])
    assert row == before + own(text, add_special_tokens=False)["input_ids"]
    assert own(text)["input_ids"] == row + after
    if own.eos_token: assert row[-1] != own.eos_token_id
    assert make_sampler(lm, [text], new_tokens=2).rows == [row]


def test_perplexity_scores_what_the_text_has(own):
    lm, text = lm_with(own), "the man is a good doctor"
    ids = own(text, add_special_tokens=False)["input_ids"]
    before, _ = added_tokens(own, text)
    context = len(before) or (own.bos_token_id is not None)
    metric = TextPerplexity(lm, [text])
    assert int(metric.scored.sum()) == len(ids) - (not context)
    assert all(w.ids[w.start:] == tuple(ids[-w.scored:]) for w in metric.windows)
    whole = TextPerplexity(lm, [text]*3, window=5, stride=2)
    assert int(whole.scored.sum()) == 3*(len(ids) - (not context))
    assert max(len(w.ids) for w in whole.windows) == 5


def test_all_that_is_added_is_context():
    own = families["word piece"]()
    own.backend_tokenizer.post_processor = type(own.backend_tokenizer.post_processor)(
        single="[CLS] [PAD] $A [SEP]", special_tokens=[(t, own.convert_tokens_to_ids(t)) for t in ("[CLS]", "[PAD]", "[SEP]")])
    metric = TextPerplexity(lm_with(own), ["the man"])
    assert int(metric.scored.sum()) == len(own("the man", add_special_tokens=False)["input_ids"])
    assert metric.windows[0].start == 2


def test_the_next_word_follows_a_space():
    "Byte-level BPE has one token for a word in a text and another for the same letters at its start."
    own = families["byte level"]()
    prompts = pd.DataFrame(dict(text=["the man", "the woman", "a man", "a woman"], group=list("abab")))
    found = NextTokenToxicity(lm_with(own), prompts, ["is", "was"])
    assert own.convert_ids_to_tokens(found.word_ids) == ["Ġis", "Ġwas"]
    with pytest.raises(InputError, match="word 'doctors' is not one token"):
        NextTokenToxicity(lm_with(own), prompts, ["doctors"])
    with pytest.raises(InputError, match="at least one word"): NextTokenToxicity(lm_with(own), prompts, [])


kinds = {
    "gpt2": gpt2, "opt": small | dict(ffn_dim=64, word_embed_proj_dim=32, max_position_embeddings=32),
    "llama": small | dict(num_key_value_heads=2),
    "xglm": dict(num_layers=2, attention_heads=4, d_model=32, ffn_dim=64, max_position_embeddings=32),
    "biogpt": small | dict(max_position_embeddings=32),
    "openai-gpt": gpt2, # without a cache
    "roberta": small | dict(is_decoder=True, max_position_embeddings=33, pad_token_id=0, type_vocab_size=1),
    "camembert": small | dict(is_decoder=True, max_position_embeddings=33, pad_token_id=0),
    "bert": small | dict(is_decoder=True, max_position_embeddings=32),
    "bloom": dict(n_layer=2, n_head=4, hidden_size=32)}


@pytest.mark.parametrize("kind", kinds)
def test_a_batch_equals_one_row_after_the_other_without_cache(kind):
    "Padding, positions and cache change nothing, wherever a model starts to count positions."
    tokens = families["metaspace, no prefix space"]()
    lm = LM(kind, model_of(kind, len(tokens), **kinds[kind]), tokens)
    rows, seeds = prompt_ids(lm, ["the man is", "she", "they are kind"]), torch.arange(6)
    found = continue_batch(lm, rows, seeds, 4, forbidden=[0])
    for row, seed, new in zip([row for row in rows for _ in range(2)], seeds, found):
        ids = list(row)
        for step in range(4):
            with torch.inference_mode(): logits = lm.model(input_ids=torch.tensor([ids])).logits[:, -1]
            ids.append(int(sample_token(logits, seed[None], step, forbidden=[0])))
        assert ids[len(row):] == new.tolist()


@pytest.mark.parametrize("kind, limit", [("gpt2", 32), ("opt", 32), ("roberta", 32), ("camembert", 32),
                                         ("xglm", 32), ("openai-gpt", 32), ("bloom", None)])
def test_positions_stay_below_the_limit(kind, limit):
    tokens = families["metaspace"]()
    lm = LM(kind, model_of(kind, len(tokens), **kinds[kind]), tokens)
    assert n_positions(lm) == limit
    if not limit: return
    text = "the man is a"
    n = len(prompt_ids(lm, [text])[0])
    assert len(generate(lm, [text], new_tokens=limit - n)) == 1
    prompts = pd.DataFrame(dict(text=[text]*4, group=list("aabb"), draw=[0, 1]*2))
    too_long = SampledToxicity(prompts, load_scorer("words:bad"), new_tokens=limit - n + 1)
    with pytest.raises(InputError, match=f"need {limit + 1} tokens, {kind} has {limit} positions"):
        too_long.prompt_digest(lm)
    assert max(len(w.ids) for w in TextPerplexity(lm, [" ".join([text]*20)]).windows) == limit
    with pytest.raises(InputError, match=f"{kind} has {limit} positions"): TextPerplexity(lm, [text], window=limit + 1)


def test_a_configuration_without_positions():
    lm = LM("gpt2", build("gpt2"), tokenizer())
    for value in (None, -1, 0):
        vars(lm.model.config)["n_positions"] = value
        assert n_positions(lm) is None
        assert TextPerplexity(lm, ["w5 w6 w7"]).window == 1024


@pytest.mark.parametrize("pad", ["<new>", None])
def test_a_padding_token_that_the_model_lacks(pad):
    "Llama's derivatives often name a padding token one above the last embedding."
    usual, lm = LM("mine", build("llama"), tokenizer()), LM("mine", build("llama"), tokenizer())
    texts = ["w5 w6 w7", "w8", "w9 w10"]
    lm.tokenizer.pad_token = None
    if pad: lm.tokenizer.add_special_tokens(dict(pad_token=pad))
    assert lm.tokenizer.pad_token_id == (64 if pad else None) and padding_id(lm) == 0
    if pad: assert generate(lm, texts, new_tokens=3) == generate(usual, texts, new_tokens=3)
    lm.tokenizer.eos_token = None
    assert len(generate(lm, texts, new_tokens=3)) == 3


def test_a_tokenizer_with_more_ids_than_the_model():
    lm = LM("mine", build("gpt2", vocab_size=20), tokenizer())
    assert prompt_ids(lm, ["w9"]) == [[9]]
    message = "token 'w40' has the id 40, but mine has only 20 embeddings: model and tokenizer do not belong"
    for work in (lambda: generate(lm, ["w5 w40"]), lambda: TextPerplexity(lm, ["w5 w40"])):
        with pytest.raises(InputError, match=message): work()


def test_a_model_with_more_rows_than_the_tokenizer_has_ids():
    "Vocabularies padded to a multiple of 64: tokens without a text leave none."
    lm = LM("mine", build("gpt2", vocab_size=4000), tokenizer())
    assert all(isinstance(text, str) for text in generate(lm, ["w5 w6"]*8, new_tokens=4))


def test_a_prompt_without_tokens():
    lm = lm_with(families["word piece"]())
    own = families["byte level"]()
    with pytest.raises(InputError, match="prompt '' has no token for mine"): prompt_ids(lm_with(own), ["the", ""])
    assert prompt_ids(lm, [""]) == [[lm.tokenizer.cls_token_id]]


@pytest.mark.parametrize("name, value", [("new_tokens", 0), ("top_k", 0), ("temperature", 0.), ("temperature", float("nan"))])
def test_sampling_options_are_checked(name, value):
    lm = LM("mine", build("gpt2"), tokenizer())
    with pytest.raises(InputError, match=f"{name} = .*above 0"): generate(lm, ["w5"], **{name: value})


def change_post_processor(tokens):
    fast, bos = tokens.backend_tokenizer, (tokens.bos_token, tokens.bos_token_id)
    fast.post_processor = type(fast.post_processor)(single="<s> $A", special_tokens=[bos])

@pytest.mark.parametrize("change", [lambda t: t.add_tokens(["<new>"]), lambda t: t.add_special_tokens(dict(mask_token="<mask>")),
                                    change_post_processor])
def test_a_tokenizer_that_changes_in_place_has_another_hash(change):
    tokens = families["byte level"]()
    before = tokenizer_hash(tokens)
    tokens("the man", padding="max_length", truncation=True, max_length=3)
    assert tokenizer_hash(tokens) == before
    change(tokens)
    assert tokenizer_hash(tokens) != before


@pytest.mark.parametrize("texts, message", [("w5 w6", "not one text: put it in brackets"), (["w5", None], "None is not a text"),
                                            (["w5", float("nan")], "nan is not a text"), ([], "no prompt|no token to score")])
def test_what_is_no_list_of_texts(texts, message):
    lm = LM("mine", build("gpt2"), tokenizer())
    for work in (lambda: generate(lm, texts), lambda: TextPerplexity(lm, texts)):
        with pytest.raises(InputError, match=message): work()


@pytest.mark.parametrize("options, message", [
    (dict(tokens=1), "tokens = 1: needs 2"), (dict(tokens=-4), "tokens = -4: needs 2"), (dict(window=1), "no token to score"),
    (dict(stride=99, window=8), "stride = 99"), (dict(stride=-1), "stride = -1"), (dict(mode="x"), "mode 'x'")])
def test_windows_that_score_nothing_or_leave_text_out(options, message):
    lm = LM("mine", build("gpt2"), tokenizer())
    with pytest.raises(InputError, match=message): TextPerplexity(lm, ["w5 w6 w7 w8"], **options)


def test_padding_and_truncation_stored_in_a_tokenizer_count_for_nothing(own):
    lm, text = lm_with(own), "the man is a good doctor"
    row, scored = prompt_ids(lm, [text]), TextPerplexity(lm, [text]).scored.sum()
    own.backend_tokenizer.enable_truncation(3)
    own.backend_tokenizer.enable_padding(length=40)
    assert prompt_ids(lm, [text]) == row and TextPerplexity(lm, [text]).scored.sum() == scored


def test_a_tokenizer_in_python():
    "ByT5's: bytes, an end token behind each text, no `tokenizer.json`."
    own = ByT5Tokenizer()
    lm = LM("mine", model_of("gpt2", len(own), **gpt2), own)
    row, new = prompt_ids(lm, ["the män"])[0], own(" is", add_special_tokens=False)["input_ids"]
    assert row == own("the män", add_special_tokens=False)["input_ids"]
    assert decode_continuations(own, [row], [new]) == [" is"]
    assert TextPerplexity(lm, ["abc"]).scored.sum() == 2
    before = tokenizer_hash(own)
    own.add_tokens(["<new>"])
    assert tokenizer_hash(own) != before
