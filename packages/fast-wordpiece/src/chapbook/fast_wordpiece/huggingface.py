"""A tokenizer as Hugging Face's `tokenizers` would make it, to be held beside ours.

It goes through no file: what is compared with it includes how files are read and written.
"""

from typing import Any

from chapbook.fast_wordpiece.settings import Settings


def huggingface(settings: Settings) -> Any:
    """Makes the same tokenizer of the parts of `tokenizers`.

    Args:
        settings: The tokenizer.

    Returns:
        A `tokenizers.Tokenizer`.

    Raises:
        ImportError: `tokenizers` is not installed.
        ValueError: Hugging Face would give an added token another id.
    """
    import tokenizers
    from tokenizers import decoders, models, normalizers, pre_tokenizers

    normalizer = settings.normalizer
    made = tokenizers.Tokenizer(
        models.WordPiece(
            dict(settings.vocab),
            unk_token=settings.unk_token,
            continuing_subword_prefix=settings.mark,
            max_input_chars_per_word=settings.max_input_chars_per_word,
        )
    )
    made.normalizer = normalizers.BertNormalizer(
        normalizer.clean_text,
        normalizer.handle_chinese_chars,
        normalizer.strip_accents,
        normalizer.lowercase,
    )
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    made.decoder = decoders.WordPiece(settings.mark, settings.cleanup)
    for token in settings.added_tokens:
        theirs = tokenizers.AddedToken(
            token.content,
            single_word=token.single_word,
            lstrip=token.lstrip,
            rstrip=token.rstrip,
            normalized=token.normalized,
            special=token.special,
        )
        (made.add_special_tokens if token.special else made.add_tokens)([theirs])
        if made.token_to_id(token.content) != token.id:
            raise ValueError(f"Hugging Face gives {token.content!r} another id than {token.id}")
    made.encode_special_tokens = settings.encode_special_tokens
    made.post_processor = _processor(settings)
    if (truncation := settings.truncation) is not None:
        made.enable_truncation(
            truncation.max_length,
            stride=truncation.stride,
            strategy=truncation.strategy,
            direction=truncation.direction,
        )
    if (padding := settings.padding) is not None:
        made.enable_padding(
            direction=padding.side,
            pad_id=padding.id,
            pad_type_id=padding.type_id,
            pad_token=padding.token,
            length=padding.length,
            pad_to_multiple_of=padding.multiple_of,
        )
    return made


def _processor(settings: Settings) -> Any:
    from tokenizers import processors

    template = settings.template
    if template is None:
        return None
    if template.roberta:
        first, last = (piece for piece in template.single if len(piece) == 3)
        return processors.RobertaProcessing(
            (last[0], last[1][0]),
            (first[0], first[1][0]),
            template.trim_offsets,
            template.add_prefix_space,
        )
    single, pair = (
        [f"${p[0]}:{p[1]}" if len(p) == 2 else f"{p[0]}:{p[2]}" for p in pieces]
        for pieces in (template.single, template.pair)
    )
    special = {piece[0]: piece[1][0] for piece in template.pair if len(piece) == 3}
    return processors.TemplateProcessing(single, pair, list(special.items()))
