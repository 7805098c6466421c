"""A small CLIP-like tokenizer trained on one's own captions, for models that start from random weights."""

from collections.abc import Iterable

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

BOS, EOS, PAD = "<|startoftext|>", "<|endoftext|>", "<|pad|>"


def train_bpe_tokenizer(texts: Iterable[str], vocab_size: int = 1000, max_length: int = 77) -> PreTrainedTokenizerFast:
    """Byte-level BPE with character offsets: lower-cased, BOS and EOS around every text, any string encodable.

    Ids: BOS 0, EOS 1, PAD 2 (`eos_token_id=2` would select CLIPTextConfig's legacy pooling). Fewer than `vocab_size`
    pieces come out when the texts hold no more. ValueError below 259: the 256 bytes and three special tokens.
    """
    smallest = len(pre_tokenizers.ByteLevel.alphabet()) + 3
    if vocab_size < smallest:
        raise ValueError(f"vocab_size={vocab_size}: must be at least {smallest}, the bytes and three special tokens")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
    # the prefix space marks where a word begins; CLIP marks its end, which would leave rare last letters unencodable
    words, digits = pre_tokenizers.Whitespace(), pre_tokenizers.Digits(individual_digits=True)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [words, digits, pre_tokenizers.ByteLevel(add_prefix_space=True, use_regex=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[BOS, EOS, PAD],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    ids = {token: tokenizer.token_to_id(token) for token in (BOS, EOS)}
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A {EOS}", pair=f"{BOS} $A {EOS} $B {EOS}", special_tokens=list(ids.items())
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=BOS, eos_token=EOS, pad_token=PAD, model_max_length=max_length
    )
