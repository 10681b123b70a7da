"Small trained tokenizers of the families that language models use."
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

corpus = ["the man is a good doctor", "she doesn't like it, but he's fine.", "a woman was happy", "they are kind"]*5
plain = dict(pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="<unk>")
bert = dict(pad_token="[PAD]", cls_token="[CLS]", sep_token="[SEP]", unk_token="[UNK]")


def wrap(model, trainer, special, template="$A", **parts):
    tokenizer = Tokenizer(model)
    for name, part in parts.items(): setattr(tokenizer, name, part)
    tokenizer.train_from_iterator(corpus, trainer)
    ids = [(token, tokenizer.token_to_id(token)) for token in special.values()]
    tokenizer.post_processor = processors.TemplateProcessing(single=template, special_tokens=ids)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special)


def byte_level(template="$A", **more):
    trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=list(plain.values()), show_progress=False,
                                  initial_alphabet=pre_tokenizers.ByteLevel.alphabet())
    return wrap(models.BPE(), trainer, plain, template, decoder=decoders.ByteLevel(),
                pre_tokenizer=pre_tokenizers.ByteLevel(add_prefix_space=False))


def metaspace(template="<s> $A", scheme="always"):
    trainer = trainers.UnigramTrainer(vocab_size=90, special_tokens=list(plain.values()), unk_token="<unk>",
                                      show_progress=False)
    return wrap(models.Unigram(), trainer, plain, template, decoder=decoders.Metaspace(prepend_scheme=scheme),
                pre_tokenizer=pre_tokenizers.Metaspace(prepend_scheme=scheme))


def llama_style(template="<s> $A"):
    "SentencePiece as Llama 2 has it: a normalizer and a sequence of decoders."
    trainer = trainers.BpeTrainer(vocab_size=120, special_tokens=list(plain.values()), show_progress=False)
    parts = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    found = wrap(models.BPE(unk_token="<unk>"), trainer, plain, template, pre_tokenizer=pre_tokenizers.Metaspace(),
                 decoder=decoders.Sequence(parts))
    fast = found.backend_tokenizer
    fast.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    fast.pre_tokenizer = None
    return found


def word_piece(template="[CLS] $A [SEP]"):
    trainer = trainers.WordPieceTrainer(vocab_size=120, special_tokens=list(bert.values()), show_progress=False)
    return wrap(models.WordPiece(unk_token="[UNK]"), trainer, bert, template, decoder=decoders.WordPiece(),
                pre_tokenizer=pre_tokenizers.BertPreTokenizer(), normalizer=normalizers.BertNormalizer())


families = {
    "byte level": byte_level, "byte level, end": lambda: byte_level("$A </s>"),
    "byte level, begin and end": lambda: byte_level("<s> $A </s>"), "metaspace": metaspace,
    "metaspace, no prefix space": lambda: metaspace(scheme="never"),
    "metaspace, begin is end": lambda: metaspace("</s> $A"), # as XGLM
    "llama": llama_style, "word piece": word_piece}
